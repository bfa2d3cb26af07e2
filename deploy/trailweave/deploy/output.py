"""What commands print: one JSON document or tables on standard output, all else on standard error.

Content never reaches the terminal as it is: every cell goes through `terminal.plain`, and no text
is read as Rich's markup.
"""

import base64
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import PurePath
from typing import IO, Any, Final
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from trailweave.deploy.terminal import shortened

SEVERITY_STYLES: Final = {
    "critical": "bold white on red",
    "high": "bold red",
    "medium": "yellow",
    "low": "cyan",
    "none": "dim",
}
STATE_STYLES: Final = {
    "complete": "green",
    "incomplete": "bold red",
    "unprovable": "yellow",
    "open": "cyan",
    "fragment": "magenta",
    "missing": "bold red",
    **SEVERITY_STYLES,
}
#: A table that goes to a file or a pipe is not cut at an invented terminal's edge.
PIPE_WIDTH: Final = 240


def stdout_console() -> Console:
    """Tables go here. Made anew for each use, for `sys.stdout` may have been replaced."""
    return _console(sys.stdout)


def stderr_console() -> Console:
    """Progress and remarks go here."""
    return _console(sys.stderr)


def _console(file: IO[str]) -> Console:
    wide = None if file.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=file, markup=False, emoji=False, highlight=False, width=wide)


def json_text(document: object) -> str:
    """The document as JSON in ASCII, which no terminal or locale can stumble over."""
    return json.dumps(document, default=json_value, indent=2, allow_nan=False)


def json_value(value: object) -> object:
    """What JSON has no type for, as text: times in ISO 8601, ids, paths, bytes as base64."""
    if isinstance(value, datetime):
        return utc(value).isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, UUID | PurePath):
        return str(value)
    if isinstance(value, set | frozenset | tuple):
        return sorted(value, key=str)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"couldn't write {type(value).__name__} as JSON")


def utc(value: datetime) -> datetime:
    """The time in UTC; ClickHouse's client gives it without a zone."""
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def print_json(document: object) -> None:
    """The one JSON document of a command."""
    sys.stdout.write(json_text(document) + "\n")


def cell(value: object) -> Text:
    """One value as a table shows it."""
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, datetime):
        return Text(utc(value).strftime("%Y-%m-%d %H:%M:%S"))
    if isinstance(value, float):
        return Text(f"{value:,.2f}".rstrip("0").rstrip("."))
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, int):
        return Text(f"{value:,}")
    if isinstance(value, list | tuple):
        return Text(shortened(", ".join(map(str, value))) or "-")
    text = shortened(value)
    return Text(text, style=STATE_STYLES.get(text, ""))


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table of values; numbers stand right."""
    made = Table(title=title, title_justify="left", header_style="bold")
    kept = [list(row) for row in rows]
    for place, name in enumerate(columns):
        first = kept[0][place] if kept else None
        number = isinstance(first, int | float) and not isinstance(first, bool)
        made.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in kept:
        made.add_row(*map(cell, row))
    return made


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    as_json: bool,
    columns: Mapping[str, str] | Sequence[str],
    nothing: str,
) -> None:
    """A listing: all fields of each row as JSON, or the named columns as a table."""
    if as_json:
        print_json(list(rows))
        return
    if not rows:
        stderr_console().print(nothing)
        return
    named = columns if isinstance(columns, Mapping) else {name: name for name in columns}
    cells = ([row.get(key) for key in named] for row in rows)
    stdout_console().print(table(None, list(named.values()), cells))


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; the function it gives sets how much is done.

    Without a terminal nothing is shown: bars in a log file are noise.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr_console(), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
