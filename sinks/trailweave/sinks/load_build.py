"""Records of one range to the inserts they become: one per layout, plus what is refused.

Pure but for the schema source that it is given. Decides nothing about offsets; `load_plan` does.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trailweave.schemas import codec, events
from trailweave.schemas.compiled import Json
from trailweave.schemas.errors import Reason, Rejected
from trailweave.schemas.standing import WriterStandings
from trailweave.schemas.validity import valid_type
from trailweave.sinks import columns, rows, tables
from trailweave.sinks.load_plan import Place
from trailweave.sinks.rows import Layout, number, text

if TYPE_CHECKING:
    from trailweave.sinks.native_columns import Columns

#: The type that a topic other than the event topics carries.
RECORD_OF: Final = {
    events.SESSIONS_TOPIC: "chain",
    events.FINDINGS_TOPIC: "finding",
    events.HEARTBEATS_TOPIC: "producer_heartbeat",
    events.DEAD_LETTERS_TOPIC: "dead_letter",
}

DAY_MS: Final = 86_400_000


class Record(NamedTuple):  # a tuple: one is built for every record, on the hot path
    """A Kafka record as far as its row depends on it."""

    offset: int
    recorded_at: int
    key: bytes | None
    value: bytes | None
    headers: Any = None


@dataclass(frozen=True, slots=True)
class Source:
    """A partition, by the names that rows carry."""

    topic: str
    topic_id: str
    partition: int

    def name(self) -> str:
        """As people write it."""
        return f"{self.topic}/{self.partition}"


@dataclass(slots=True)
class Insert:
    """Rows of one layout and one partition of its table, in order.

    ClickHouse stores each partition's rows by themselves, each under the token. An insert into two
    of them may stop between them, and what completes it has another token: rows would be doubled.
    """

    #: Of the rows as Avro, and so of what they are.
    layout: Layout
    #: Which partition: the number of the day or of the month.
    period: int
    places: list[Place] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)
    #: All rows as columns; `rows` are then made when some are needed alone.
    by_column: "ByColumn | None" = field(default=None, compare=False)

    @property
    def part(self) -> str:
        """Its name within the range, for the token."""
        return f"{self.layout.part}.{self.period}"

    def whole(self) -> tuple[Layout, Iterable[bytes]]:
        """All rows, and how ClickHouse reads them."""
        if self.by_column is not None:
            return columns.layout(), self.by_column.block()
        return self.layout, self.rows

    def only(self, places: Collection[Place]) -> Iterator[bytes]:
        """The rows at these places, as `layout` says."""
        self.give_up_columns()
        return (row for place, row in zip(self.places, self.rows, strict=True) if place in places)

    def give_up_columns(self) -> None:
        """Have them all in `rows`."""
        if self.by_column is not None:
            self.rows, self.by_column = self.by_column.rows(), None


@dataclass(slots=True)
class ByColumn:
    """Events of this version, and what C has made of them."""

    source: Source
    columns: "Columns"
    records: list[Record] = field(default_factory=list)

    def take(self, records: list[Record], at: int, times_ms: range) -> list[Record]:
        """Those from the one at `at` on that C takes, and that have such times."""
        taken = records[at : self.columns.take(records, at, times_ms.start, times_ms.stop)]
        self.records += taken
        return taken

    def block(self) -> list[bytes]:
        """For `columns.layout`."""
        return columns.block(self.columns, self.source.topic_id, self.source.partition)

    def rows(self) -> list[bytes]:
        """For `rows.current_events`."""
        prefix, made = _prefix(self.source), []
        for record in self.records:
            key, start = codec.frame(record.value or b"")
            made.append(_event_row(prefix, _kinds()[key], record, start))
        return made


@dataclass(slots=True)
class Built:
    """What a range becomes."""

    inserts: list[Insert]
    rejected: list[tuple[Record, Reason]]
    #: The first record whose schema may still be published; the range has to end before it.
    waits_at: int | None = None


class _WaitsError(Exception):
    """The record's schema may still be published."""


class Builder:
    """Makes inserts of records. Keeps what it learned of schemas; for one thread."""

    def __init__(
        self,
        schemas: WriterStandings | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._schemas = schemas
        self._now_s = now_s
        self._checker = codec.event_checker(schemas)
        self._layouts: dict[bytes, Layout] = {}
        self._built_in = frozenset(kind.fingerprint for kind in events.all_types())
        self._index = {name: number(i) for i, name in enumerate(events.event_names())}

    @cached_property  # compiling readers takes a moment, and events need none of them
    def _reader(self) -> codec.Decoder:
        return codec.Decoder({"chain": ("tenant", "trace_id", "handles")}, self._schemas)

    def build(self, source: Source, records: list[Record]) -> Built:
        """The inserts of these records, in order of offset.

        Raises `Retryable` when the schema source is away.
        """
        if source.topic in RECORD_OF:
            return self._build_records(source, records)
        return self._build_events(source, records)

    def _build_events(self, source: Source, records: list[Record]) -> Built:
        prefix, ours = _prefix(source), rows.current_events()
        inserts: dict[tuple[str, int], Insert] = {}
        by_key: dict[bytes, Insert] = {}
        by_day: dict[int, ByColumn | None] = {}
        day, day_ms = -1, range(0)
        built = Built([], [])
        at = 0
        while at < len(records):
            record = records[at]
            if record.recorded_at not in day_ms:
                by_key = {}
                day = period_of("events", record.recorded_at)
                day_ms = range(day * DAY_MS, (day + 1) * DAY_MS)
            if day not in by_day:
                by_day[day] = _by_column(source)
            by_column = by_day[day]
            if by_column is not None:
                taken = by_column.take(records, at, day_ms)
                if taken:
                    insert = inserts.setdefault((ours.part, day), Insert(ours, day))
                    insert.by_column = by_column
                    insert.places += [(record.offset, 0) for record in taken]
                    at += len(taken)
                    continue
            at += 1
            try:
                value, key, start = self._admitted(record)
                name = valid_type(source.topic, record.key, value, self._checker)
            except _WaitsError:
                built.waits_at = record.offset
                break
            except Rejected as refusal:
                built.rejected.append((record, refusal.reason))
                continue
            if key not in by_key:
                layout = self._event_layout(key, name)
                by_key[key] = inserts.setdefault((layout.part, day), Insert(layout, day))
            insert = by_key[key]
            if insert.layout is ours:
                # One token stands for the same rows whoever made them: all by column, or none.
                insert.give_up_columns()
                by_day[day] = None
            insert.rows.append(_event_row(prefix, self._index[name], record, start))
            insert.places.append((record.offset, 0))
        built.inserts = list(inserts.values())
        return built

    def _build_records(self, source: Source, records: list[Record]) -> Built:
        name = RECORD_OF[source.topic]
        inserts: dict[tuple[str, str, int], Insert] = {}
        built = Built([], [])

        def insert_of(layout: Layout, record: Record) -> Insert:
            period = period_of(layout.table, record.recorded_at)
            key = (layout.table, layout.part, period)
            return inserts.setdefault(key, Insert(layout, period))

        for record in records:
            try:
                value, key, start = self._admitted(record)
                decoded = self._read(name, value)
            except _WaitsError:
                built.waits_at = record.offset
                break
            except Rejected as refusal:
                built.rejected.append((record, refusal.reason))
                continue
            insert = insert_of(self._record_layout(key, name), record)
            insert.rows.append(rows.block(_columns(name, source, record), value[start:]))
            insert.places.append((record.offset, 0))
            if decoded.get("handles"):
                _add_handles(insert_of(rows.handles(), record), source, record, decoded)
        built.inserts = list(inserts.values())
        return built

    def _admitted(self, record: Record) -> tuple[bytes, bytes, int]:
        """The value, what its frame names, where the record starts; the schema counts for it."""
        if record.value is None:
            raise Rejected("no_value", "the record has no value")
        key, start = codec.frame(record.value)
        if key not in self._built_in:
            standing = "unknown"
            if self._schemas is not None:
                now_ms = int(self._now_s() * 1000)
                standing = self._schemas.standing(key, record.recorded_at, now_ms)
            if standing == "wait":
                raise _WaitsError
            if standing == "unknown":
                raise Rejected("unknown_schema", f"nobody has published the schema {key.hex()}")
        return record.value, key, start

    def _read(self, name: str, value: bytes) -> dict[str, Any]:
        found, decoded = self._reader.decode(value)
        if found != name:
            raise Rejected("wrong_topic", f"a record of type {found} does not belong here")
        return decoded

    def _event_layout(self, key: bytes, name: str) -> Layout:
        if key not in self._layouts:
            schema = self._foreign_schema(key, events.event_types()[name])
            self._layouts[key] = rows.current_events() if schema is None else rows.events_of(schema)
        return self._layouts[key]

    def _record_layout(self, key: bytes, name: str) -> Layout:
        if key not in self._layouts:
            kind = events.record_types()[name]
            schema = self._foreign_schema(key, kind)
            self._layouts[key] = rows.records_of(name, schema or kind.schema)
        return self._layouts[key]

    def _foreign_schema(self, key: bytes, kind: events.RecordType) -> Json | None:
        """The writer's schema, or None if it is this version's, under whichever key."""
        if key == kind.fingerprint:
            return None
        schema = None if self._schemas is None else self._schemas.schema_of(key)
        if schema is None or events.fingerprint_of(schema) == kind.fingerprint:
            return None
        return schema


def _by_column(source: Source) -> ByColumn | None:
    made = columns.begin(source.topic)
    return None if made is None else ByColumn(source, made)


def _prefix(source: Source) -> bytes:
    return rows.place_prefix(source.topic, source.topic_id, source.partition)


@cache
def _kinds() -> dict[bytes, bytes]:
    """How rows name the type, by the fingerprint of its schema in this version."""
    names = events.event_names()
    return {events.event_types()[name].fingerprint: number(i) for i, name in enumerate(names)}


def _event_row(prefix: bytes, kind: bytes, record: Record, start: int) -> bytes:
    time = number(max(0, record.recorded_at))
    columns_ = prefix + number(record.offset) + time + kind
    return rows.event_block(columns_, record.value or b"", start)


def period_of(table: str, recorded_at_ms: int) -> int:
    """The partition of a table that a row goes to: `PARTITION BY` of tables.sql, numbered."""
    days = max(0, recorded_at_ms) // DAY_MS
    if tables.partition_by(table) == "day":
        return days
    date = time.gmtime(days * 86_400)
    return date.tm_year * 12 + date.tm_mon


def _columns(name: str, source: Source, record: Record) -> bytes:
    place = _prefix(source) + number(record.offset) + number(max(0, record.recorded_at))
    if name != "chain":
        return place
    headers = dict(record.headers or ())
    return place + text(headers.get("w") or b"") + text(headers.get("kind") or b"")


def _add_handles(insert: Insert, source: Source, record: Record, chain: dict[str, Any]) -> None:
    place = _columns("handle", source, record)
    owner = [text(chain[name].encode()) for name in ("tenant", "trace_id")]
    for ordinal, handle in enumerate(chain["handles"]):
        own = [text(handle[name].encode()) for name in ("kind", "hash", "event_id")]
        insert.rows.append(rows.block(b"".join((place, number(ordinal), *owner, *own)), b""))
        insert.places.append((record.offset, ordinal))
