"""`trailweave score`."""

from pathlib import Path

import click
from trailweave.deploy.commands.options import Given, common


@click.command()
@click.argument("labels", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@common
def score(given: Given, labels: Path) -> None:
    """Compare the verdicts with what `simulate --labels` says of each trace.

    Traces that LABELS does not name are left out. Exit 1 unless exactly the planted findings are
    there and every session is as complete as it should be.
    """
    from trailweave.deploy.clients import clickhouse
    from trailweave.deploy.fleet import score as scoring
    from trailweave.deploy.fleet.labels import read_labels
    from trailweave.deploy.output import print_json, stdout_console, table
    from trailweave.deploy.verdicts import read_verdicts

    try:
        known = list(read_labels(labels))
    except (ValueError, TypeError, KeyError) as error:
        raise click.UsageError(
            f"{labels} is no labels file of `trailweave simulate --labels`: {error}"
        ) from error
    with clickhouse(given.settings) as client:
        traces = {label.trace_id for label in known}
        verdicts = [one for one in read_verdicts(client) if one.trace_id in traces]
    result = scoring.score(known, verdicts)
    if given.json:
        print_json(result.document())
    else:
        console = stdout_console()
        counts = ("finding", "planted", "caught", "missed", "invented")
        console.print(table(None, counts, result.rows()))
        console.print(
            f"{len(verdicts):,} sessions: precision {result.precision:.4f},"
            f" recall {result.recall:.4f}"
        )
        for trace_id, expected, found in result.completeness_mismatches[:10]:
            console.print(f"{trace_id} is {found or 'not judged'}, and should be {expected}")
        for trace_id, rule, subject in result.missed[:10]:
            console.print(f"{trace_id} lacks {rule} of {subject}")
        for trace_id, rule, subject in result.invented[:10]:
            console.print(f"{trace_id} has {rule} of {subject}, and should not")
    if not result.exact:
        raise SystemExit(1)
