"""What was read of the assigned partitions, and the ranges it is cut into.

Pure: records and the time are handed in, jobs come out. `load` reads and commits; `load_plan` says
what a range is, `load_build` makes its rows.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from trailweave.sinks.load_build import Builder, Record, Source
from trailweave.sinks.load_job import Job, Seen
from trailweave.sinks.load_plan import Range, Target, range_end

log = logging.getLogger(__name__)

#: How often a schema that nobody has published yet is asked for.
SCHEMA_INTERVAL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Start:
    """An assigned partition and where its committed offset says to begin."""

    source: Source
    offset: int
    intent: Range | None


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a range may be, and which load it belongs to."""

    rows_max: int
    bytes_max: int
    epoch: int


@dataclass(slots=True)
class Reading:
    """One assigned partition: what was read of it and is in no range yet."""

    source: Source
    start: int
    intent: Range | None
    #: How long a range waits to fill.
    linger_s: float
    seen: Seen = field(default_factory=Seen)
    records: list[Record] = field(default_factory=list)
    size: int = 0
    #: When the oldest of the records was read.
    since: float = 0.0
    #: A schema is waited for: nothing more is read, and the next try is not before then.
    waiting: bool = False
    not_before: float = 0.0

    def keep(self, record: Record, now: float) -> None:
        """One more record, in order."""
        if not self.records:
            self.since = now
        self.records.append(record)
        self.size += len(record.value or b"")

    def next_offset(self) -> int:
        """The offset that is to be read next, as far as this partition has told."""
        return self.records[-1].offset + 1 if self.records else self.start

    def cut(self, limits: Limits) -> list[Record]:
        """The records of the next range: those of the intent, else as many as the limits allow."""
        if self.intent is not None:
            end = range_end([record.offset for record in self.records], self.intent)
            return [record for record in self.records if end is None or record.offset <= end]
        if self.size <= limits.bytes_max:
            return self.records[: limits.rows_max]
        size, count = 0, 0
        for record in self.records[: limits.rows_max]:
            size += len(record.value or b"")
            if count and size > limits.bytes_max:
                break
            count += 1
        return self.records[:count]

    def due(self, limits: Limits, now: float, *, waits: bool) -> bool:
        """Whether the next range may be made; one that `waits` has time to fill."""
        if not self.records or now < self.not_before:
            return False
        if self.intent is not None:
            return self.records[-1].offset >= self.intent.end
        return (
            not waits
            or now - self.since >= self.linger_s
            or len(self.records) >= limits.rows_max
            or self.size >= limits.bytes_max
        )


class Ranges:
    """All assigned partitions of one worker."""

    def __init__(
        self,
        builder: Builder,
        group: str,
        limits: Limits,
        on_hold: Callable[[Source, bool], None],
    ) -> None:
        self._builder = builder
        self._group = group
        self._limits = limits
        #: Told when a partition begins (True) or ends to wait for a schema.
        self._on_hold = on_hold
        self._cluster_id = ""
        self.readings: dict[tuple[str, int], Reading] = {}

    def take(self, start: Start, cluster_id: str, linger_s: float) -> None:
        """A partition was assigned, whose ranges wait `linger_s` to fill."""
        self._cluster_id = cluster_id
        key = (start.source.topic, start.source.partition)
        self.readings[key] = Reading(start.source, start.offset, start.intent, linger_s)

    def unfinished(self) -> bool:
        """Whether records were read that are in no range, and that could be in one."""
        return any(r.records and r.intent is None and not r.waiting for r in self.readings.values())

    def next(
        self,
        now: float,
        topics: Collection[str] | None = None,
        *,
        waits: bool = True,
        busy: Collection[Source] = (),
    ) -> Job | None:
        """The next range of these topics (None: all) that is due as a job: those of `busy`
        partitions last, of the others the longest overdue first.

        Without `waits` all are due that have a record. Raises `Retryable` when the schema source
        is away, `Fatal` when an intent's end is gone.
        """
        due = [
            reading
            for reading in self.readings.values()
            if (topics is None or reading.source.topic in topics)
            and reading.due(self._limits, now, waits=waits)
        ]
        for reading in sorted(due, key=lambda r: (r.source in busy, r.since + r.linger_s)):
            job = self._build(reading, now)
            if job is not None:
                return job
        return None

    def _build(self, reading: Reading, now: float) -> Job | None:
        """The next range of a partition as a job; None if a schema has to be waited for."""
        records = reading.cut(self._limits)
        source = reading.source
        built = self._builder.build(source, records)
        self._hold(reading, now, held=built.waits_at is not None)
        if built.waits_at is not None:
            records = [record for record in records if record.offset < built.waits_at]
            # A range that was announced can't be shortened: it waits as a whole.
            if reading.intent is not None or not records:
                return None
        rng = reading.intent or Range(reading.start, records[-1].offset, self._limits.epoch)
        target = Target(self._cluster_id, source.topic_id, self._group, source.partition)
        doubt = reading.intent is not None
        job = Job(source, target, rng, records, built, reading.seen, doubt)
        del reading.records[: len(records)]
        reading.size = sum(len(record.value or b"") for record in reading.records)
        reading.since = now
        reading.start = rng.end + 1
        reading.intent = None
        return job

    def _hold(self, reading: Reading, now: float, *, held: bool) -> None:
        reading.not_before = now + SCHEMA_INTERVAL_S if held else 0.0
        if held and not reading.waiting:
            log.warning("%s waits for a schema", reading.source.name())
        if held != reading.waiting:
            self._on_hold(reading.source, held)
        reading.waiting = held
