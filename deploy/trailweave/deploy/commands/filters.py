"""What several listings filter by: a period, a severity, a number of rows."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click

SEVERITIES = ("low", "medium", "high", "critical")
_AGO = re.compile(r"(\d{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
#: ClickHouse's DateTime64 goes no further.
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = datetime(2262, 1, 1, tzinfo=UTC)

limit = click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Rows at most."
)


def all_of(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """One decorator that adds several options, the first of them first in the help."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


class Time(click.ParamType):
    """A moment: ISO 8601 (UTC when it names no zone), or how long ago."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        if ago := _AGO.fullmatch(value.strip()):
            span = timedelta(**{_UNITS[ago.group(2)]: int(ago.group(1))})
            return datetime.now(UTC) - span
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            self.fail(f"{value!r} is no time: write 2026-11-21T09:30 or 90m, 6h, 7d", param, ctx)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


TIME = Time()


def period(since: datetime | None, until: datetime | None) -> dict[str, datetime]:
    """The two ends of a period as the questions take them."""
    return {
        "since": max(since or _EARLIEST, _EARLIEST),
        "until": min(until or _LATEST, _LATEST),
    }


def severity_rank(severity: str | None) -> int:
    """1 for `none` and up, as the questions count."""
    return 1 if severity is None else SEVERITIES.index(severity) + 2
