"""`trailweave tables`."""

import click
from trailweave.deploy.commands.options import Given, common, setting

_PROFILE = setting("--profile", "tables.profile", str, "Retention: ai_act (default) or pci.")


@click.group()
def tables() -> None:
    """ClickHouse's tables and views."""


@tables.command()
@_PROFILE
@common
def apply(given: Given) -> None:
    """Create what is missing; never changes or drops a table."""
    from trailweave.deploy.output import print_json
    from trailweave.deploy.tables import apply_tables, check_tables

    apply_tables(given.settings)
    left = check_tables(given.settings)
    if given.json:
        print_json({"left": left})
    for sentence in left:
        click.echo(f"left as it is: {sentence}", err=True)
    if left:
        raise SystemExit(1)


@tables.command()
@_PROFILE
@common
def check(given: Given) -> None:
    """Say how the database differs; exit 1 when it does."""
    from trailweave.deploy.output import print_json
    from trailweave.deploy.tables import check_tables

    left = check_tables(given.settings)
    if given.json:
        print_json({"differences": left})
    else:
        click.echo("\n".join(left) or "the tables are as tables.sql wants them")
    if left:
        raise SystemExit(1)


@tables.command("print")
@_PROFILE
@common
def print_(given: Given) -> None:
    """Print the statements, for who would rather run them by hand."""
    from trailweave.deploy.output import print_json
    from trailweave.deploy.tables import ddl

    statements = ddl(given.settings)
    if given.json:
        print_json({"statements": statements})
    else:
        click.echo(";\n\n".join(statements) + ";")
