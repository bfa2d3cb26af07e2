"""Records of one range to the inserts they become: one per layout, plus what is refused.

Pure but for the schema source that it is given. Decides nothing about offsets; `load_plan` does.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

from trailweave.schemas import codec, events
from trailweave.schemas.compiled import Json
from trailweave.schemas.errors import Reason, Rejected
from trailweave.schemas.standing import WriterStandings
from trailweave.schemas.validity import valid_type
from trailweave.sinks import rows, tables
from trailweave.sinks.load_plan import Place
from trailweave.sinks.rows import Layout, number, text

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

    layout: Layout
    #: Which partition: the number of the day or of the month.
    period: int
    places: list[Place] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)

    @property
    def part(self) -> str:
        """Its name within the range, for the token."""
        return f"{self.layout.part}.{self.period}"

    def only(self, places: Collection[Place]) -> Iterator[bytes]:
        """The rows at these places."""
        return (row for place, row in zip(self.places, self.rows, strict=True) if place in places)


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

    def build(self, source: Source, records: Iterable[Record]) -> Built:
        """The inserts of these records, in order of offset.

        Raises `Retryable` when the schema source is away.
        """
        if source.topic in RECORD_OF:
            return self._build_records(source, records)
        return self._build_events(source, records)

    def _build_events(self, source: Source, records: Iterable[Record]) -> Built:
        prefix = rows.place_prefix(source.topic, source.topic_id, source.partition)
        inserts: dict[tuple[str, int], Insert] = {}
        by_key: dict[bytes, Insert] = {}
        day, day_ms = -1, range(0)
        built = Built([], [])
        for record in records:
            if record.recorded_at not in day_ms:
                by_key = {}
                day = period_of("events", record.recorded_at)
                day_ms = range(day * DAY_MS, (day + 1) * DAY_MS)
            try:
                value, key, start = self._admitted(record)
                name = valid_type(source.topic, record.key, value, self._checker)
            except _WaitsError:
                built.waits_at = record.offset
                break
            except Rejected as refusal:
                built.rejected.append((record, refusal.reason))
                continue
            insert = by_key.get(key)
            if insert is None:
                layout = self._event_layout(key, name)
                insert = inserts.setdefault((layout.part, day), Insert(layout, day))
                by_key[key] = insert
            time = number(max(0, record.recorded_at))
            columns = prefix + number(record.offset) + time + self._index[name]
            insert.rows.append(rows.event_block(columns, value, start))
            insert.places.append((record.offset, 0))
        built.inserts = list(inserts.values())
        return built

    def _build_records(self, source: Source, records: Iterable[Record]) -> Built:
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


def period_of(table: str, recorded_at_ms: int) -> int:
    """The partition of a table that a row goes to: `PARTITION BY` of tables.sql, numbered."""
    days = max(0, recorded_at_ms) // DAY_MS
    if tables.partition_by(table) == "day":
        return days
    date = time.gmtime(days * 86_400)
    return date.tm_year * 12 + date.tm_mon


def _columns(name: str, source: Source, record: Record) -> bytes:
    place = (
        rows.place_prefix(source.topic, source.topic_id, source.partition)
        + number(record.offset)
        + number(max(0, record.recorded_at))
    )
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
