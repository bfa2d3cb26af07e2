"""`trailweave sessions`."""

from datetime import datetime
from typing import Any

import click
from trailweave.deploy.commands.filters import (
    SEVERITIES,
    TIME,
    all_of,
    limit,
    period,
    severity_rank,
)
from trailweave.deploy.commands.options import Given, common


@click.group()
def sessions() -> None:
    """Chains: what each session did, and whether its record is complete."""


_COLUMNS = {
    "last_recorded_at": "last event",
    "tenant": "tenant",
    "trace_id": "trace",
    "agents": "agents",
    "sponsors": "on behalf of",
    "state": "state",
    "completeness": "record is",
    "highest_severity": "severity",
    "findings": "findings",
    "events": "events",
}

_FILTERS = [
    click.option("--tenant", default="", help="Sessions of this tenant."),
    click.option("--agent", default="", help="Sessions in which this agent acted."),
    click.option("--identity", default="", help="Who acted, or on whose behalf."),
    click.option("--credential", default="", help="Sessions that used this credential id."),
    click.option("--tool", default="", help="Sessions that called this tool."),
    click.option("--finding", default="", help="Sessions with this finding."),
    click.option("--completeness", type=click.Choice(("complete", "incomplete", "unprovable"))),
    click.option("--state", type=click.Choice(("open", "closed", "fragment"))),
    click.option("--severity", type=click.Choice(SEVERITIES), help="At least so severe."),
    click.option("--since", type=TIME, help="Active at or after: ISO time, or 90m, 6h, 7d ago."),
    click.option("--until", type=TIME, help="Begun before: ISO time, or 90m, 6h, 7d ago."),
    limit,
]
_filtered = all_of(_FILTERS)


@sessions.command("list")
@_filtered
@common
def list_(given: Given, **filters: Any) -> None:
    """List sessions by their latest verdict, newest first."""
    _print_sessions(given, **filters)


@sessions.command()
@click.argument("word", required=False, default="")
@_filtered
@common
def search(given: Given, word: str, **filters: Any) -> None:
    """Search sessions by agent, identity, credential, tool, tenant, finding and time.

    WORD is looked for in trace ids, agents, identities, credentials, tools and outcomes.
    """
    if not word and not any(filters[name] for name in filters if name != "limit"):
        raise click.UsageError("say what to look for: a WORD, or a filter such as --agent")
    _print_sessions(given, word=word, **filters)


def _print_sessions(
    given: Given,
    *,
    severity: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    word: str = "",
    **texts: str | None,
) -> None:
    from trailweave.deploy.clients import clickhouse
    from trailweave.deploy.output import print_rows
    from trailweave.deploy.stored import named_all
    from trailweave.sinks.ask import ask

    with clickhouse(given.settings) as client:
        rows = ask(
            client,
            "sessions",
            word=word,
            severity_rank=severity_rank(severity),
            limit=limit,
            **period(since, until),
            **{name: text or "" for name, text in texts.items()},
        )
    for row in rows:
        row["missing"] = named_all(("what", "subject", "detail"), row["missing"])
    print_rows(rows, given.json, _COLUMNS, "no session is like that")


@sessions.command()
@click.argument("trace")
@click.option("--tenant", help="Whose session, when several tenants are in one trace.")
@common
def show(given: Given, trace: str, tenant: str | None) -> None:
    """Show one session as a tree; missing steps are marked. Exit 1 when it is not complete."""
    from trailweave.deploy.clients import clickhouse
    from trailweave.deploy.output import print_json, stdout_console
    from trailweave.deploy.render import print_trail, trail_document
    from trailweave.deploy.stored import read_trail
    from trailweave.deploy.trail import header

    with clickhouse(given.settings) as client:
        trail = read_trail(client, trace.strip().lower(), tenant)
    if given.json:
        print_json(trail_document(trail))
    else:
        print_trail(stdout_console(), trail)
    if header(trail).completeness != "complete":
        raise SystemExit(1)
