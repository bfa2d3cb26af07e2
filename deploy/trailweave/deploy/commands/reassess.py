"""`trailweave reassess`."""

from datetime import UTC, datetime, timedelta

import click
from trailweave.deploy.commands.filters import TIME, period
from trailweave.deploy.commands.options import Given, common, setting


@click.command()
@click.option("--tenant", default="", help="Sessions of this tenant.")
@click.option("--trace", default="", help="The session of this trace.")
@click.option("--since", type=TIME, help="With an event at or after: ISO time, or 90m, 6h, 7d ago.")
@click.option("--until", type=TIME, help="With no event at or after: ISO time, or 90m, 6h, 7d ago.")
@click.option("--pending", is_flag=True, help="Only sessions of which something came late.")
@click.option("--rule", "rules", multiple=True, help="Only where this rule's findings change.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@setting("--rules", "rules.path", click.Path(dir_okay=False), "rules.toml.")
@common
def reassess(
    given: Given,
    since: datetime | None,
    until: datetime | None,
    pending: bool,
    rules: tuple[str, ...],
    dry_run: bool,
    **texts: str,
) -> None:
    """Judge stored sessions anew: those of which something came late, and those that other rules
    have judged.

    Each gets its next revision, with findings opened and taken back. What is up to date is left
    alone, so a run that was interrupted goes on where it was. Sessions that may still go on, whose
    last event is younger than `join.idle_s`, are left for later unless --until says otherwise.
    Exit 1 when some could not be judged.
    """
    from trailweave.deploy.clients import clickhouse
    from trailweave.deploy.output import print_json, progress
    from trailweave.deploy.reassess import Wanted
    from trailweave.deploy.reassess import reassess as run
    from trailweave.deploy.registry import writer_schemas
    from trailweave.deploy.workers import rules_config
    from trailweave.stream_processors.rules import RULES

    unknown = sorted(set(rules) - {rule.name for rule in RULES})
    if unknown:
        raise click.UsageError(f"no rule is called {unknown[0]!r}; `findings explain` lists all")
    quiet = datetime.now(UTC) - timedelta(seconds=given.settings.join.idle_s)
    config = rules_config(given.settings)
    wanted = Wanted(
        **period(since, until or quiet),
        tenant=texts["tenant"],
        trace=texts["trace"],
        pending_only=pending,
        rules=frozenset(rules),
        dry_run=dry_run,
    )
    with (
        clickhouse(given.settings) as client,
        writer_schemas(given.settings) as schemas,
        progress("judging anew", None) as told,
    ):
        done = run(given.settings, client, schemas, config, wanted, told)
    if given.json:
        print_json(done.document())
    else:
        word = "would get" if dry_run else "got"
        click.echo(
            f"{done.looked_at} sessions looked at: {done.revised} {word} a revision,"
            f" {done.unchanged + done.up_to_date} are as they should be"
        )
        click.echo(f"{done.findings_opened} findings opened, {done.findings_retracted} taken back")
        for rule, count in sorted(done.rules.items()):
            click.echo(f"  {rule}: {count:+d}")
        if done.not_stored:
            click.echo(f"{done.not_stored} wait for their events, or these have expired")
        if done.spread:
            click.echo(f"{done.spread} lie in several partitions, and were not judged")
        if not done.loaded:
            click.echo("load has not stored all revisions yet")
    if done.not_stored or done.spread or not done.loaded:
        raise SystemExit(1)
