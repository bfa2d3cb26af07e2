"""The load worker: every record of Kafka into ClickHouse, exactly once. Edge.

Order of effects for a range of one partition, and what a crash between them does:

1. commit the range's start, its end in the metadata (the intent)  crash before: nothing was said
2. insert its rows, each table under a token that the range makes  crash: the intent stays open;
   whoever has the partition next redoes exactly this range, and looks first what is there
3. commit the offset behind its end, without metadata              crash before: as above

Ranges of different partitions are independent; inserts run one at a time in a thread of their own,
while the next range is read and built. `load_plan` decides, `load_build` makes the rows, `load_job`
is the thread's part, `load_group` is Kafka.
"""

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import Message
from trailweave.schemas import events
from trailweave.schemas.errors import Retryable
from trailweave.schemas.schema_topic import SchemaTopic
from trailweave.schemas.standing import WriterStandings
from trailweave.sinks import clickhouse
from trailweave.sinks.load_build import Builder, Record, Source
from trailweave.sinks.load_group import Group, LostError, Start
from trailweave.sinks.load_job import Inserter, Job, Seen
from trailweave.sinks.load_letters import Letters
from trailweave.sinks.load_plan import Range, Target, range_end
from trailweave.sinks.metrics import LoadMetrics
from trailweave.sinks.tables import PROFILES, Profile

log = logging.getLogger(__name__)

#: One look at Kafka takes no longer, so that a finished insert is noticed at once.
POLL_S: Final = 0.05
#: Messages per look: enough to be quick, few enough not to overshoot the limits below by much.
POLL_RECORDS: Final = 5_000
#: Read ahead while an insert runs: the range being inserted, the next one built, one being read.
AHEAD: Final = 2
#: How often a schema that nobody has published yet is asked for.
SCHEMA_INTERVAL_S: Final = 1.0
#: Waits between attempts while Kafka or ClickHouse is away.
BACKOFF_MIN_S: Final = 0.2
BACKOFF_MAX_S: Final = 10.0
#: Metrics of lag cost a call per partition.
LAG_INTERVAL_S: Final = 5.0
#: An orderly stop waits for one insert and so long; supervisors kill after about 30 s.
DRAIN_S: Final = 5.0
#: Without room, polls still have to happen well within `max.poll.interval.ms` (300 s).
FULL_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What a load worker needs; `kafka` is any librdkafka setting, `bootstrap.servers` included."""

    kafka: Mapping[str, Any]
    #: The DSN; its query parameters are options of clickhouse-connect (TLS, timeouts, ...).
    clickhouse: str
    #: ClickHouse settings of every insert, `insert_quorum` for instance.
    clickhouse_settings: Mapping[str, str | int] = field(default_factory=dict)
    group: str = "trailweave-load"
    #: Stable per process: names the static member, so that a restart takes its partitions back.
    slot: int = 0
    profile: Profile = PROFILES["ai_act"]
    #: Whether to create missing tables at the start; off where the user may not.
    create_tables: bool = True
    #: Changed for an intended reload only: ClickHouse then takes rows again that it has seen.
    epoch: int = 0
    #: A range is at most so large: one insert and one part. About 50 MB of rows in memory.
    batch_rows_max: int = 50_000
    batch_bytes_max: int = 32 * 1024 * 1024
    #: Inserts per second into the events of all workers. Each partition waits so long between its
    #: ranges that all of them stay below, but never longer than `linger_max_s`.
    inserts_per_s_max: float = 10.0
    linger_min_s: float = 0.5
    #: The delay until an event can be queried is this, one insert and one commit.
    linger_max_s: float = 2.5
    #: An insert is given up, by the server itself, after so long.
    insert_timeout_s: float = 20.0
    #: Without a sign of life for longer, a worker's partitions go to others. Above the insert
    #: timeout: what is left is the lease within which an insert may start.
    session_timeout_s: float = 45.0


@dataclass(slots=True)
class _Reading:
    """One assigned partition: what was read of it and is in no range yet."""

    source: Source
    start: int
    intent: Range | None
    seen: Seen = field(default_factory=Seen)
    records: list[Record] = field(default_factory=list)
    size: int = 0
    #: When the oldest of the records was read.
    since: float = 0.0
    #: A schema is waited for: nothing more is read, and the next try is not before then.
    waiting: bool = False
    not_before: float = 0.0


class LoadWorker:
    """One process slot of the load. `step` does a little of everything; `run` drives it.

    Not thread-safe; its own insert thread is its own affair.
    """

    def __init__(
        self,
        settings: LoadSettings,
        metrics: LoadMetrics | None = None,
        schemas: WriterStandings | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics or LoadMetrics()
        self._schemas = schemas or SchemaTopic(dict(settings.kafka))
        self._builder = Builder(self._schemas)
        self._store = clickhouse.Store(
            settings.clickhouse, settings.insert_timeout_s, settings.clickhouse_settings
        )
        self._inserter = Inserter(self._store, self.metrics, settings.profile.keep_days)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="insert")
        self._letters = Letters(settings.kafka)
        self._readings: dict[tuple[str, int], _Reading] = {}
        self._job: Job | None = None
        self._running: Future[None] | None = None
        self._next: Job | None = None
        self._retry_at = 0.0
        self._full_since: float | None = None
        self._lag_at = 0.0
        self._ready = not settings.create_tables
        self._group = self._join_group()

    def _join_group(self) -> Group:
        s = self.settings
        return Group(s.kafka, s.group, s.slot, s.session_timeout_s, self._revoke)

    # --- the loop ---

    def step(self) -> int:
        """Read, build, start and finish what can be; returns the number of ranges finished.

        Raises `Retryable` when a service is away (call again), `Fatal` when a person must look.
        """
        if not self._ready:
            self._create_tables()
        try:
            for start in self._group.begin() or ():
                self._take(start)
            self._read()
            return self._advance(draining=False)
        except LostError:
            self._forget()
            # A new consumer: the old one may hold on to an assignment that is no longer its own.
            self._group.close()
            self._group = self._join_group()
            raise

    def drain(self) -> None:
        """Finish what was read: the end of an orderly stop. Raises as `step` does."""
        deadline = time.monotonic() + self.settings.insert_timeout_s + DRAIN_S
        while self._job is not None or self._next is not None or self._unfinished():
            self._advance(draining=True)
            if self._running is not None:
                wait_for([self._running], timeout=POLL_S)
            if time.monotonic() > deadline:
                raise Retryable("couldn't finish what was read in time")

    def close(self) -> None:
        """Stop; what is not finished stays an open intent and is redone by the next worker."""
        if self._running is not None:
            wait_for([self._running], timeout=self.settings.insert_timeout_s + POLL_S)
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._group.close()
        self._letters.close()
        self._store.close()

    def idle(self) -> bool:
        """Whether everything read so far is in ClickHouse."""
        return self._job is None and self._next is None and not self._unfinished()

    def _unfinished(self) -> bool:
        return any(
            r.records and r.intent is None and not r.waiting for r in self._readings.values()
        )

    def _create_tables(self) -> None:
        client = clickhouse.connect(self.settings.clickhouse)
        try:
            clickhouse.apply_tables(client, self.settings.profile)
        finally:
            client.close()
        self._ready = True

    # --- reading ---

    def _take(self, start: Start) -> None:
        key = (start.source.topic, start.source.partition)
        self._readings[key] = _Reading(start.source, start.offset, start.intent)
        if start.intent is not None:
            name = start.source.name()
            log.info("%s has an open intent %d..%d", name, start.offset, start.intent.end)

    def _read(self) -> None:
        if not self._room():
            return
        self._keep(self._group.read(POLL_RECORDS, POLL_S))
        if time.monotonic() >= self._lag_at:
            self._lag_at = time.monotonic() + LAG_INTERVAL_S
            self._show_lag()

    def _keep(self, messages: list[Message]) -> None:
        now = time.monotonic()
        for message in messages:
            reading = self._readings.get((message.topic() or "", message.partition() or 0))
            if reading is None:
                continue
            record = _record(message, reading.source)
            if not reading.records:
                reading.since = now
            reading.records.append(record)
            reading.size += len(record.value or b"")

    def _room(self) -> bool:
        """Whether more may be read; if not, waits a little for the insert that makes room."""
        readings = [reading for reading in self._readings.values() if not reading.waiting]
        rows = sum(len(reading.records) for reading in readings)
        size = sum(reading.size for reading in readings)
        self.metrics.buffered.set(rows)
        settings = self.settings
        full = rows >= AHEAD * settings.batch_rows_max or size >= AHEAD * settings.batch_bytes_max
        # An open intent may be longer than today's limits; it has to be read to its end.
        if not full or any(reading.intent for reading in readings):
            self._full_since = None
            return True
        now = time.monotonic()
        self._full_since = self._full_since or now
        if self._running is None:
            time.sleep(POLL_S)
        else:
            wait_for([self._running], timeout=POLL_S)
        if now - self._full_since >= FULL_WAIT_S:
            # Membership needs polls, and there is no room for what they bring: what was fetched
            # ahead is dropped by the pause, and fetched again.
            self._full_since = now
            sources = [reading.source for reading in readings]
            self._group.pause(sources)
            self._keep(self._group.read(1, 0))
            self._group.resume([r.source for r in self._readings.values() if not r.waiting])
        return False

    def _show_lag(self) -> None:
        for reading in self._readings.values():
            lag = self._group.lag(reading.source, reading.start)
            if lag is not None:
                source = reading.source
                self.metrics.lag.labels(source.topic, str(source.partition)).set(lag)

    # --- ranges ---

    def _advance(self, *, draining: bool) -> int:
        finished = 0
        if self._running is not None and self._running.done():
            self._finish()
            finished = 1
        if self._next is None:
            self._next = self._build_next(draining)
        if self._job is None:
            self._job, self._next = self._next, None
        if self._job is not None and self._running is None and time.monotonic() >= self._retry_at:
            self._start(self._job)
            if self._next is None:
                self._next = self._build_next(draining)
        return finished

    def _build_next(self, draining: bool) -> Job | None:
        now = time.monotonic()
        due = [r for r in self._readings.values() if r.records and self._due(r, now, draining)]
        for reading in sorted(due, key=lambda r: r.since):
            job = self._build(reading, now)
            if job is not None:
                return job
        return None

    def _due(self, reading: _Reading, now: float, draining: bool) -> bool:
        if now < reading.not_before:
            return False
        if reading.intent is not None:
            return reading.records[-1].offset >= reading.intent.end
        settings = self.settings
        return (
            draining
            or now - reading.since >= self._linger_s()
            or len(reading.records) >= settings.batch_rows_max
            or reading.size >= settings.batch_bytes_max
        )

    def _linger_s(self) -> float:
        settings = self.settings
        # Every worker counts the partitions of all, so that all together stay below the rate.
        fair = self._group.event_partitions / settings.inserts_per_s_max
        return min(max(settings.linger_min_s, fair), settings.linger_max_s)

    def _build(self, reading: _Reading, now: float) -> Job | None:
        """The next range of a partition as a job; None if a schema has to be waited for."""
        records = self._cut(reading)
        built = self._builder.build(reading.source, records)
        self._hold(reading, now, held=built.waits_at is not None)
        if built.waits_at is not None:
            records = [record for record in records if record.offset < built.waits_at]
            # A range that was announced can't be shortened: it waits as a whole.
            if reading.intent is not None or not records:
                return None
        last = records[-1].offset
        rng = reading.intent or Range(reading.start, last, self.settings.epoch)
        source = reading.source
        job = Job(
            source,
            Target(self._group.cluster_id, source.topic_id, self.settings.group, source.partition),
            rng,
            built.inserts,
            built.rejected,
            len(records),
            min(record.recorded_at for record in records),
            reading.seen,
            doubt=reading.intent is not None,
        )
        del reading.records[: len(records)]
        reading.size = sum(len(record.value or b"") for record in reading.records)
        reading.since = now
        reading.start = rng.end + 1
        reading.intent = None
        return job

    def _hold(self, reading: _Reading, now: float, *, held: bool) -> None:
        reading.not_before = now + SCHEMA_INTERVAL_S if held else 0.0
        if held and not reading.waiting:
            log.warning("%s waits for a schema", reading.source.name())
            self._group.pause([reading.source])
        elif reading.waiting and not held:
            self._group.resume([reading.source])
        reading.waiting = held

    def _cut(self, reading: _Reading) -> list[Record]:
        if reading.intent is not None:
            offsets = [record.offset for record in reading.records]
            end = range_end(offsets, reading.intent)
            return [record for record in reading.records if end is None or record.offset <= end]
        settings = self.settings
        if reading.size <= settings.batch_bytes_max:
            return reading.records[: settings.batch_rows_max]
        size, count = 0, 0
        for record in reading.records[: settings.batch_rows_max]:
            size += len(record.value or b"")
            if count and size > settings.batch_bytes_max:
                break
            count += 1
        return reading.records[:count]

    # --- one job ---

    def _start(self, job: Job) -> None:
        asked = time.monotonic()
        # Also before every retry: a commit that the group accepts says that the range is still
        # ours, and for how long no other worker can have it.
        self._group.commit(job.source, job.range.start, job.range.metadata())
        settings = self.settings
        job.leased_until = asked + settings.session_timeout_s - settings.insert_timeout_s
        job.attempts += 1
        self._running = self._thread.submit(self._inserter.attempt, job)

    def _finish(self) -> None:
        job, running = self._job, self._running
        assert job is not None
        assert running is not None
        self._running = None
        try:
            running.result()
            self._letters.send(job.source, job.rejected)
            # Behind the rows and the letters: a crash before this repeats, and loses nothing.
            self._group.commit(job.source, job.range.end + 1, "")
        except LostError:
            raise
        except Retryable as error:
            job.doubt = True
            self.metrics.retries.inc()
            wait_s = min(BACKOFF_MIN_S * 2 ** min(job.attempts, 10), BACKOFF_MAX_S)
            self._retry_at = time.monotonic() + wait_s
            log.warning("%s; trying again in %.1f s", error, wait_s)
            return
        self._job = None
        self._retry_at = 0.0
        self._count(job)

    def _count(self, job: Job) -> None:
        self.metrics.ranges.inc()
        for table, rows in job.rows.items():
            self.metrics.rows.labels(table).inc(rows)
        for _, reason in job.rejected:
            self.metrics.rejected.labels(reason.code).inc()

    # --- rebalances ---

    def _revoke(self, ours: bool) -> None:
        """The partitions go. While they are still ours, the range under way is finished."""
        if ours and self._running is not None:
            wait_for([self._running], timeout=self.settings.insert_timeout_s)
            if self._running.done():
                try:
                    self._finish()
                except Retryable as error:
                    log.info("the next owner redoes a range: %s", error)
        self._forget()

    def _forget(self) -> None:
        """Drop what is not committed; an insert under way runs to its end, under its token."""
        if self._running is not None:
            wait_for([self._running], timeout=self.settings.insert_timeout_s)
        self._readings = {}
        self._job = self._next = self._running = None


def _record(message: Message, source: Source) -> Record:
    headers = message.headers() if source.topic == events.SESSIONS_TOPIC else None
    return Record(
        message.offset() or 0, message.timestamp()[1], message.key(), message.value(), headers
    )


def run(
    settings: LoadSettings,
    stop: threading.Event,
    metrics: LoadMetrics | None = None,
    schemas: WriterStandings | None = None,
) -> None:
    """Load until `stop` is set, then drain; waits out services that are away, raises `Fatal`."""
    worker = LoadWorker(settings, metrics, schemas)
    backoff_s = BACKOFF_MIN_S
    try:
        while not stop.is_set():
            try:
                worker.step()
                backoff_s = BACKOFF_MIN_S
            except Retryable as error:
                worker.metrics.retries.inc()
                log.warning("%s; trying again in %.1f s", error, backoff_s)
                stop.wait(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
        try:
            worker.drain()
        except Retryable as error:
            log.warning("stopped with work left, the next start does it: %s", error)
    finally:
        worker.close()
