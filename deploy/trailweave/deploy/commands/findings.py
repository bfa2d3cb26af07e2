"""`trailweave findings`."""

from datetime import datetime

import click
from trailweave.deploy.commands.filters import SEVERITIES, TIME, limit, period, severity_rank
from trailweave.deploy.commands.options import Given, common

_COLUMNS = {
    "detected_at": "detected",
    "severity": "severity",
    "rule": "finding",
    "trace_id": "trace",
    "agent_id": "agent",
    "sponsor": "on behalf of",
    "summary": "summary",
    "state": "state",
}


@click.group()
def findings() -> None:
    """What the rules found, and what each finding means."""


@findings.command("list")
@click.option("--tenant", default="", help="Findings about this tenant.")
@click.option("--trace", default="", help="Findings about this trace.")
@click.option("--rule", default="", help="Findings of this name.")
@click.option("--agent", default="", help="Findings about this agent.")
@click.option("--state", type=click.Choice(("open", "retracted", "any")), default="open")
@click.option("--severity", type=click.Choice(SEVERITIES), help="At least so severe.")
@click.option("--since", type=TIME, help="Detected at or after: ISO time, or 90m, 6h, 7d ago.")
@click.option("--until", type=TIME, help="Detected before: ISO time, or 90m, 6h, 7d ago.")
@limit
@common
def list_(
    given: Given,
    state: str,
    severity: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    **texts: str,
) -> None:
    """List findings in their latest state, newest first."""
    from trailweave.deploy.clients import clickhouse
    from trailweave.deploy.output import print_rows
    from trailweave.sinks.ask import ask

    with clickhouse(given.settings) as client:
        rows = ask(
            client,
            "findings",
            state="" if state == "any" else state,
            severity_rank=severity_rank(severity),
            limit=limit,
            **period(since, until),
            **texts,
        )
    print_rows(rows, given.json, _COLUMNS, "no finding is like that")


@findings.command()
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="The whole page: docs/findings.md.")
@common
def explain(given: Given, name: str | None, markdown: bool) -> None:
    """Say what a finding means: rule, inputs, controls, what to do. Without NAME, list all."""
    import difflib

    from trailweave.deploy.findings_page import about, across, page
    from trailweave.deploy.output import print_json, print_rows
    from trailweave.stream_processors.detectors import DETECTORS
    from trailweave.stream_processors.rules import RULES

    if markdown:
        click.echo(page(), nl=False)
        return
    known = {rule.name: about(rule) for rule in RULES}
    known |= {name: across(detector) for name, detector in DETECTORS.items()}
    if name is None:
        print_rows(list(known.values()), given.json, ("name", "severity", "expected"), "")
        return
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else "`findings explain` lists all"
        raise click.UsageError(f"no finding is called {name!r}; {hint}")
    if given.json:
        print_json(known[name])
        return
    rule = known[name]
    click.echo(f"{name} ({rule['severity']})\n\n{rule['meaning']}\n")
    click.echo(f"Expected   {rule['expected']}")
    click.echo(f"Next step  {rule['next_step']}")
    click.echo(f"Needs      {', '.join(rule['needs']) or 'nothing beside the session itself'}")
    click.echo(f"Asked      {rule['asked']}")
    click.echo(f"Controls   {', '.join(rule['controls'])}")
