"""`trailweave workflows`."""

from datetime import datetime

import click
from trailweave.deploy.commands.filters import TIME, limit, period
from trailweave.deploy.commands.options import Given, common

_COLUMNS = {
    "last_at": "last event",
    "tenant": "tenant",
    "workflow_id": "workflow",
    "sessions": "sessions",
    "agents": "agents",
    "sponsors": "on behalf of",
    "not_complete": "not complete",
    "highest_severity": "severity",
}


@click.group()
def workflows() -> None:
    """Sessions that serve one task, seen as one."""


@workflows.command("list")
@click.option("--tenant", default="", help="Workflows of this tenant.")
@click.option("--since", type=TIME, help="Active at or after: ISO time, or 90m, 6h, 7d ago.")
@click.option("--until", type=TIME, help="Begun before: ISO time, or 90m, 6h, 7d ago.")
@limit
@common
def list_(
    given: Given, tenant: str, since: datetime | None, until: datetime | None, limit: int
) -> None:
    """List workflows, those active last first."""
    from trailweave.deploy.clients import clickhouse
    from trailweave.deploy.output import print_rows
    from trailweave.sinks.ask import ask

    with clickhouse(given.settings) as client:
        rows = ask(client, "workflows", tenant=tenant, limit=limit, **period(since, until))
    print_rows(rows, given.json, _COLUMNS, "no session names a workflow")


@workflows.command()
@click.argument("workflow")
@click.option("--tenant", default="", help="Whose workflow, when several tenants have one.")
@common
def show(given: Given, workflow: str, tenant: str) -> None:
    """Show who handed what to whom in one workflow, and where that breaks.

    Exit 1 when it breaks: a session whose beginner is not stored, that acts for somebody else, that
    does not name the workflow, or whose record is not complete.
    """
    from trailweave.deploy.clients import clickhouse
    from trailweave.deploy.output import print_json, stdout_console, table
    from trailweave.deploy.workflow import read_workflow

    with clickhouse(given.settings) as client:
        found = read_workflow(client, workflow, tenant)
    if given.json:
        print_json(found.document())
    else:
        console = stdout_console()
        columns = ("session", "agents", "on behalf of", "record is", "severity", "findings")
        rows = [
            (
                f"{'  ' * depth}{one['trace_id']}", one["agents"], one["sponsors"],
                one["completeness"], one["highest_severity"], one["findings"],
            )
            for depth, one in found.tree()
        ]  # fmt: skip
        console.print(table(f"{found.workflow_id} of {found.tenant}", columns, rows))
        if found.handovers:
            handed = [(one.agent, one.for_whom, one.scopes, one.trace_id)
                      for one in found.handovers]  # fmt: skip
            console.print(table("handed on", ("agent", "acts for", "may", "session"), handed))
        for broken in found.breaks:
            console.print(f"{broken.trace_id}: {broken.detail}", style="red")
        if not found.breaks:
            console.print("the line of responsibility holds", style="green")
    if found.breaks:
        raise SystemExit(1)
