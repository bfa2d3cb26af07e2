"""What lies around a load worker in the runs of `test_load_model`: records, a log, the tables.

Tables are read back from the bytes that were inserted, by a decoder of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from trailweave.schemas import codec, events
from trailweave.schemas.compiled import Json
from trailweave.schemas.examples import example
from trailweave.schemas.standing import Standing
from trailweave.sinks.load_build import Builder, Source
from trailweave.sinks.rows import Layout

from tests.unit.sinks.native_format import rows_of

TOPICS: Final = ("trailweave.tools", events.SESSIONS_TOPIC)
#: The end of a month: days and months both change within a run.
START_MS: Final = 1_769_903_999_990
DAY_MS: Final = 86_400_000

#: Table, topic id, offset, ordinal.
Row = tuple[str, str, int, int]
Committed = tuple[int, str]


@dataclass(frozen=True)
class Arriving:
    """A record, and what has to become of it, written down independently of the code."""

    topic: str
    key: bytes
    value: bytes
    rows: tuple[tuple[str, int], ...] = ()
    letter: bool = False


class Published:
    """The schema of another version's events."""

    def __init__(self, key: bytes, schema: Json) -> None:
        self.key, self.schema = key, schema

    def schema_of(self, key: bytes) -> Json | None:
        return self.schema if key == self.key else None

    def standing(self, key: bytes, recorded_at_ms: int, now_ms: int) -> Standing:  # noqa: ARG002
        return "known"


@cache
def pool() -> tuple[list[Arriving], Builder]:
    """All that arrives, and who can read it."""
    encoder, found = codec.Encoder(), []
    tools, sessions = TOPICS
    event, chain = example("tool_requested"), example("chain")
    key = event["trace_id"].encode()
    good = encoder.encode("tool_requested", event)
    kind = events.event_types()["tool_requested"]
    fields = [f for f in kind.schema["fields"] if f["name"] != "prev_hash"]
    older = events.record_type(kind.name, kind.topic, {**kind.schema, "fields": fields})
    other = codec.SINGLE_OBJECT + older.fingerprint + good[10:-1]
    bad = encoder.encode("tool_requested", {**event, "call_id": "poison"})
    row = (("events", 0),)
    found += [Arriving(tools, key, good, row)] * 4 + [Arriving(tools, key, other, row)] * 2
    found += [Arriving(tools, key, good[:-1])] + [Arriving(tools, key, bad, letter=True)] * 2
    (handle,) = chain["handles"]
    for size in (0, 1, 2, 1, 2):
        value = encoder.encode("chain", {**chain, "evidence": [], "handles": [handle] * size})
        rows = (("chains", 0), *(("handles", n) for n in range(size)))
        found.append(Arriving(sessions, b"k", value, rows))
    poison = {**chain, "evidence": [], "outcome": "poison"}
    value = encoder.encode("chain", poison)
    found.append(Arriving(sessions, b"k", value, (("handles", 0),), letter=True))
    found.append(Arriving(sessions, b"k", b"nonsense", letter=True))
    return found, Builder(Published(older.fingerprint, older.schema))


@dataclass
class Log:
    """One partition. None stands for a marker or an aborted record: never delivered."""

    topic: str
    topic_id: str
    records: list[tuple[int, Arriving] | None] = field(default_factory=list)
    committed: Committed | None = None
    before: list[Committed] = field(default_factory=list)

    def source(self) -> Source:
        return Source(self.topic, self.topic_id, 0)

    def finished(self) -> bool:
        return not any(self.records[self.committed[0] if self.committed else 0 :])


@dataclass
class Late:
    """An insert on its way; a server gives it up in time."""

    table: str
    blocks: list[tuple[int, list[Row]]]
    token: str
    expires: int


@dataclass
class ClickHouse:
    """Tables: rows as often as they are stored, and the tokens of the last inserts."""

    window: int
    rows: Counter[Row] = field(default_factory=Counter)
    tokens: dict[str, dict[tuple[int, str], None]] = field(default_factory=dict)
    inserts: Counter[str] = field(default_factory=Counter)
    late: list[Late] = field(default_factory=list)

    def apply(self, table: str, token: str, block: tuple[int, list[Row]]) -> None:
        period, rows = block
        if self.remember(table, token, period):
            self.rows.update(rows)

    def remember(self, table: str, token: str, period: int) -> bool:
        """Whether the token is new."""
        known = self.tokens.setdefault(table, {})
        self.inserts[table] += 1
        if (period, token) in known:
            return False
        known[period, token] = None
        while len(known) > self.window:
            del known[next(iter(known))]
        return True

    def crash(self) -> None:
        """Its inserts end with it."""
        self.late = []


class Columns:
    """The columns in front of a row's record, decoded one after the other."""

    def __init__(self, row: bytes) -> None:
        self.row, self.at = row, 0

    def number(self) -> int:
        value, shift, byte = 0, 0, 128
        while byte & 128:
            byte = self.row[self.at]
            value |= (byte & 127) << shift
            self.at, shift = self.at + 1, shift + 7
        return (value >> 1) ^ -(value & 1)

    def text(self) -> str:
        size = self.number()
        self.at += size
        return self.row[self.at - size : self.at].decode()


def stored(layout: Layout, rows: Iterable[bytes]) -> list[tuple[int, bytes, Row]]:
    """(broker time, bytes, place) of each row of a container."""
    if layout.format == "Native":
        return [
            (
                row["recorded_at"],
                repr(row).encode(),
                (layout.table, row["topic_id"], row["offset"], 0),
            )
            for row in rows_of(rows)
        ]
    found = []
    for row in rows:
        columns = Columns(row)
        columns.number()  # rows of the block
        columns.number()  # its bytes
        columns.text()  # the topic's name
        topic_id, _, offset, recorded_at = (
            columns.text(), columns.number(), columns.number(), columns.number(),
        )  # fmt: skip
        ordinal = columns.number() if layout.table == "handles" else 0
        found.append((recorded_at, row, (layout.table, topic_id, offset, ordinal)))
    return found


def period(table: str, at_ms: int) -> int:
    """The partition of a row, as tables.sql has it: the month changes with the first day only."""
    days = at_ms // DAY_MS
    if table == "events":
        return days
    since = days - START_MS // DAY_MS
    return sum(since >= first for first in (1, 29, 60, 90, 121, 151, 182, 213, 243))
