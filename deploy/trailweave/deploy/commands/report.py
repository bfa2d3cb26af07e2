"""`trailweave report`."""

from datetime import datetime
from typing import Any

import click
from trailweave.deploy.commands.filters import TIME, all_of, period
from trailweave.deploy.commands.options import Given, common

_FILTERS = [
    click.option("--tenant", default="", help="Of this tenant."),
    click.option("--since", type=TIME, help="From: ISO time, or 90m, 6h, 7d ago."),
    click.option("--until", type=TIME, help="Before: ISO time, or 90m, 6h, 7d ago."),
]
_filtered = all_of(_FILTERS)


@click.group()
def report() -> None:
    """Reports for auditors and recertification, as Markdown or JSON."""


@report.command()
@click.argument("identity")
@_filtered
@common
def identity(
    given: Given, identity: str, tenant: str, since: datetime | None, until: datetime | None
) -> None:
    """What an identity did: tools, credentials, scopes granted and exercised, exceptions, findings.

    IDENTITY is a subject as sessions show it: of an agent, a workload or a human; for a human, also
    what agents did on his or her behalf.
    """
    from trailweave.deploy.clients import clickhouse
    from trailweave.deploy.report import identity_report

    with clickhouse(given.settings) as client:
        made = identity_report(client, identity, tenant, period(since, until))
    _print(given, f"Identity {identity}", made)


@report.command()
@click.argument("control")
@_filtered
@common
def control(
    given: Given, control: str, tenant: str, since: datetime | None, until: datetime | None
) -> None:
    """What shows that a control holds: the rules that serve it, what they saw, the open findings.

    CONTROL is an id as `findings explain` shows it, such as AC-6 or NHI7:2025.
    """
    from trailweave.deploy.clients import clickhouse
    from trailweave.deploy.report import control_report

    with clickhouse(given.settings) as client:
        made = control_report(client, control, tenant, period(since, until))
    _print(given, f"Control {control}", made)


def _print(given: Given, title: str, made: dict[str, Any]) -> None:
    from trailweave.deploy.output import print_json
    from trailweave.deploy.report import as_markdown

    if given.json:
        print_json(made)
    else:
        click.echo(as_markdown(title, made), nl=False)
