"""`trailweave schemas`."""

from pathlib import Path

import click
from trailweave.deploy.commands.options import Given, common


@click.group()
def schemas() -> None:
    """The Avro schemas, whole, as producers in other languages compile them."""


@schemas.command("export")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@common
def export_(given: Given, directory: Path) -> None:
    """Write one .avsc file per type into DIRECTORY."""
    from trailweave.deploy.output import print_json
    from trailweave.schemas.export import export

    written = export(directory)
    if given.json:
        print_json({"files": written})
    else:
        click.echo(f"{len(written)} schemas in {directory}")
