"""The options that every command takes, and the settings made from them."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from trailweave.deploy.addresses import found_settings
from trailweave.deploy.settings import DATA_DIR, Settings, SettingsError, read_settings

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Given:
    """What was given on the command line that is not of one command only."""

    settings: Settings
    #: Whether `--json` was given.
    json: bool
    data: Path
    #: `--data` if it was given.
    data_given: Path | None
    config: Path | None
    flags: dict[str, str]


def common(command: _Command) -> _Command:
    """Adds the options that every command takes; the command gets `given: Given` first."""

    @functools.wraps(command)
    def with_given(
        config: Path | None,
        data: Path | None,
        kafka: str | None,
        clickhouse: str | None,
        settings: tuple[str, ...],
        as_json: bool,
        **more: Any,
    ) -> Any:
        flags = _flags(settings)
        if kafka is not None:
            flags["kafka.bootstrap.servers"] = kafka
        if clickhouse is not None:
            flags["clickhouse.dsn"] = clickhouse
        # A command's own flags for settings are named `set_<section>_<key>`.
        for name in [name for name in more if name.startswith("set_")]:
            value = more.pop(name)
            section, _, key = name.removeprefix("set_").partition("_")
            if value is not None:
                flags[f"{section}.{key}"] = str(value)
        folder = data or Path(os.environ.get("TRAILWEAVE_DATA") or DATA_DIR)
        named = config or _path(os.environ.get("TRAILWEAVE_CONFIG"))
        read = read_settings(named, os.environ, flags, found_settings(folder))
        return command(Given(read, as_json, folder, data, named, flags), **more)

    for option in reversed(_OPTIONS):
        with_given = option(with_given)
    return with_given  # type: ignore[return-value]


def setting(flag: str, name: str, kind: Any, text: str) -> Callable[[_Command], _Command]:
    """A flag of one command that stands for a setting, such as `--grace-s` for `join.grace_s`."""
    return click.option(flag, f"set_{name.replace('.', '_', 1)}", type=kind, help=text)


def _flags(settings: tuple[str, ...]) -> dict[str, str]:
    flags = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(
                f"couldn't use --set {name!r}: write it as SECTION.KEY=VALUE,"
                " such as --set join.grace_s=5"
            )
        flags[name.strip()] = value.strip()
    return flags


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


_OPTIONS: list[Callable[..., Any]] = [
    click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Settings file (default: ./trailweave.toml if there is one).",
    ),
    click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Data directory of `trailweave up` (default: ./trailweave-data).",
    ),
    click.option("--kafka", metavar="SERVERS", help="Kafka's bootstrap servers."),
    click.option("--clickhouse", metavar="DSN", help="ClickHouse's DSN."),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Any setting; may be repeated.",
    ),
    click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output."),
]
