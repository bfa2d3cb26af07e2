"""`trailweave settings show`."""

import click
from trailweave.deploy.commands.options import Given, common


@click.group()
def settings() -> None:
    """The settings in force."""


@settings.command()
@common
def show(given: Given) -> None:
    """Print every setting with its value; secrets are masked."""
    from trailweave.deploy.output import print_json, stdout_console, table

    sections = given.settings.shown()
    if given.json:
        print_json(sections)
        return
    rows = [
        (f"{section}.{key}", value)
        for section, values in sections.items()
        for key, value in values.items()
    ]
    stdout_console().print(table(None, ("setting", "value"), rows))
