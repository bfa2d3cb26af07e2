"""docs/reference.md names every command, every flag, every setting and every metric."""

from pathlib import Path

import click
from trailweave.deploy.commands.options import common
from trailweave.deploy.commands.root import root
from trailweave.deploy.settings import setting_names
from trailweave.sinks.metrics import LoadMetrics
from trailweave.stream_processors.metrics import JoinMetrics

REFERENCE = (Path(__file__).parents[3] / "docs" / "reference.md").read_text("utf-8")


def commands(group: click.Group, path: str = "trailweave") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = f"{path} {name}"
        found |= commands(command, inner) if isinstance(command, click.Group) else {inner: command}
    return found


def flags(command: click.Command) -> set[str]:
    options = [each for each in command.params if isinstance(each, click.Option)]
    return {flag for each in options for flag in each.opts if flag.startswith("--")}


def test_every_command_stands_in_the_reference() -> None:
    assert [name for name in commands(root) if f"`{name}" not in REFERENCE] == []


def test_every_flag_stands_in_the_reference() -> None:
    shared = flags(click.command(common(lambda: None)))
    missing = {
        f"{name} {flag}"
        for name, command in commands(root).items()
        for flag in flags(command) - shared
        if f"`{flag}" not in REFERENCE
    }

    assert missing == set()


def test_every_setting_stands_in_the_reference() -> None:
    assert [name for name in setting_names() if f"`{name}`" not in REFERENCE] == []


def test_every_metric_stands_in_the_reference() -> None:
    families = [
        family.name
        for metrics in (JoinMetrics(), LoadMetrics())
        for family in metrics.registry.collect()
    ]

    assert [name for name in families if f"`{name}`" not in REFERENCE] == []
