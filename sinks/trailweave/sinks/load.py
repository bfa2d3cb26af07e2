"""The load worker: every record of Kafka into ClickHouse, exactly once. Edge.

Order of effects for a range of one partition, and what a crash between them does:

1. commit the range's start, its end in the metadata (the intent)  crash before: nothing was said
2. insert its rows, each table under a token that the range makes  crash: the intent stays open;
   whoever has the partition next redoes exactly this range, and looks first what is there
3. commit the offset behind its end, without metadata              crash before: as above

Ranges of different partitions are independent; some are inserted at once, each in a thread of its
own (`load_line`), while the next one is read and built. Of one partition a range begins when the
one before it has ended. `load_plan` decides, `load_ranges` cuts what was read, `load_build` makes
the rows, `load_job` has the order of effects, `load_insert` is the threads' part, `load_group` is
Kafka. `test_load_model.py` drives all of them but this file, its lines and Kafka.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import Message
from trailweave.schemas import events
from trailweave.schemas.errors import Fatal, Retryable
from trailweave.schemas.garbage import rare_collections
from trailweave.schemas.group_slot import GroupSlot
from trailweave.schemas.schema_topic import SchemaTopic
from trailweave.schemas.silence import Silence
from trailweave.schemas.standing import WriterStandings
from trailweave.sinks import clickhouse
from trailweave.sinks.load_build import RECORD_OF, Builder, Record, Source
from trailweave.sinks.load_group import Group, LostError
from trailweave.sinks.load_job import Job, announce, finish
from trailweave.sinks.load_letters import Letters
from trailweave.sinks.load_line import Line, wait_for_all, wait_for_one
from trailweave.sinks.load_ranges import Limits, Ranges, Start
from trailweave.sinks.metrics import LoadMetrics
from trailweave.sinks.tables import PROFILES, Profile

log = logging.getLogger(__name__)

#: One look at Kafka takes no longer, so that a finished insert is noticed at once.
POLL_S: Final = 0.05
#: Messages per look: enough to be quick, few enough not to overshoot the limits below by much.
POLL_RECORDS: Final = 5_000
#: Read ahead while inserts run, in ranges of the largest size.
AHEAD: Final = 2
#: Topics whose ranges have lines of their own: chains and findings, which are few, wait for no
#: events, which are many.
KINDS: Final = (frozenset(events.event_topics()), frozenset(RECORD_OF))
#: Of the inserts per second into events, how many each other table may get: at low rates most of
#: what a load costs is inserts, whose cost hardly depends on how few rows they have.
OTHER_TABLES_SHARE: Final = 0.8
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
    #: Inserts of events under way at a time: ClickHouse reads each in one thread, and Kafka is
    #: waited for before and behind it. Beside them there is one of everything else.
    inserts_at_once: int = 2
    #: Inserts per second into events, of all workers; other tables get fewer. Each partition waits
    #: so long between its ranges that all of them stay below, but no longer than `linger_max_s`.
    inserts_per_s_max: float = 10.0
    linger_min_s: float = 0.5
    #: The delay until an event can be queried is this, one insert and one commit.
    linger_max_s: float = 2.5
    #: An insert is given up, by the server itself, after so long.
    insert_timeout_s: float = 20.0
    #: Without a sign of life for longer, a worker's partitions go to others. Above the insert
    #: timeout: what is left is the lease within which an insert may start.
    session_timeout_s: float = 45.0

    def __post_init__(self) -> None:
        if self.inserts_at_once < 1 or self.inserts_per_s_max <= 0:
            raise Fatal(
                "couldn't load without inserts: load.inserts_at_once must be at least 1, and"
                " load.inserts_per_s_max above 0"
            )


class LoadWorker:
    """One process slot of the load. `step` does a little of everything; `run` drives it.

    Not thread-safe; its insert threads are its own affair.
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
        of_events, of_others = KINDS
        self._lines = [self._line(of_events) for _ in range(settings.inserts_at_once)]
        self._lines.append(self._line(of_others))
        self._letters = Letters(settings.kafka)
        limits = Limits(settings.batch_rows_max, settings.batch_bytes_max, settings.epoch)
        self._ranges = Ranges(Builder(self._schemas), settings.group, limits, self._hold)
        #: Ranges that no line has begun, one of a kind: as one insert ends, the next can begin.
        self._built: list[Job] = []
        #: Since when nothing more can be read.
        self._full_since: float | None = None
        self._lag_at = 0.0
        self._ready = not settings.create_tables
        instance = f"{settings.group}-{settings.slot}"
        self._slot = GroupSlot(settings.kafka, settings.group, instance, settings.session_timeout_s)
        self._committed: dict[tuple[str, int], int] = {}
        self._silence = Silence(settings.kafka)
        self._group = self._join_group()

    def _line(self, topics: frozenset[str]) -> Line:
        s = self.settings
        store = clickhouse.Store(s.clickhouse, s.insert_timeout_s, s.clickhouse_settings)
        return Line(topics, store, self.metrics, s.profile.keep_days)

    def _join_group(self) -> Group:
        s = self.settings
        return Group(
            s.kafka, s.group, self._slot, s.session_timeout_s, self._forget, self._committed
        )

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
        while not self.idle():
            self._advance(draining=True)
            wait_for_one(self._lines, POLL_S)
            if time.monotonic() > deadline:
                raise Retryable("couldn't finish what was read in time")

    def close(self) -> None:
        """Stop; what is not finished stays an open intent and is redone by the next worker."""
        wait_for_all(self._lines, self.settings.insert_timeout_s + POLL_S)
        for line in self._lines:
            line.close()
        self._group.close()
        self._letters.close()

    def idle(self) -> bool:
        """Whether everything read so far is in ClickHouse."""
        return not (self._jobs() or self._ranges.unfinished())

    def _jobs(self) -> list[Job]:
        return [line.job for line in self._lines if line.job is not None] + self._built

    def _create_tables(self) -> None:
        client = clickhouse.connect(self.settings.clickhouse)
        try:
            clickhouse.apply_tables(client, self.settings.profile)
        finally:
            client.close()
        self._ready = True

    # --- reading ---

    def _take(self, start: Start) -> None:
        linger_s = self._linger_s(start.source.topic)
        self._ranges.take(start, self._group.cluster_id, linger_s)
        if start.intent is not None:
            name = start.source.name()
            log.info("%s has an open intent %d..%d", name, start.offset, start.intent.end)

    def _read(self) -> None:
        if not self._room():
            self._silence.heard()
            return
        messages = self._group.read(POLL_RECORDS, POLL_S)
        self._keep(messages)
        self._listen(messages)
        if time.monotonic() >= self._lag_at:
            self._lag_at = time.monotonic() + LAG_INTERVAL_S
            self._show_lag()

    def _listen(self, messages: list[Message]) -> None:
        """Give up a client that gets nothing of what is there."""
        readings = self._ranges.readings.items()
        if messages:
            self._silence.heard()
        elif self._silence.is_deaf(
            {part: r.next_offset() for part, r in readings if not r.waiting}
        ):
            raise LostError("couldn't read: others get records that this client doesn't")

    def _keep(self, messages: list[Message]) -> None:
        now = time.monotonic()
        for message in messages:
            key = (message.topic() or "", message.partition() or 0)
            reading = self._ranges.readings.get(key)
            if reading is not None:
                reading.keep(_record(message, reading.source), now)

    def _room(self) -> bool:
        """Whether more may be read; if not, waits a little for an insert that makes room."""
        readings = [reading for reading in self._ranges.readings.values() if not reading.waiting]
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
        if any(line.running for line in self._lines):
            wait_for_one(self._lines, POLL_S)
        else:
            time.sleep(POLL_S)
        if now - self._full_since >= FULL_WAIT_S:
            # Membership needs polls, and there is no room for what they bring: what was fetched
            # ahead is dropped by the pause, and fetched again.
            self._full_since = now
            sources = [reading.source for reading in readings]
            self._group.pause(sources)
            self._keep(self._group.read(1, 0))
            self._group.resume([r.source for r in self._ranges.readings.values() if not r.waiting])
        return False

    def _show_lag(self) -> None:
        for reading in self._ranges.readings.values():
            lag = self._group.lag(reading.source, reading.start)
            if lag is not None:
                source = reading.source
                self.metrics.lag.labels(source.topic, str(source.partition)).set(lag)

    # --- ranges ---

    def _advance(self, *, draining: bool) -> int:
        finished = 0
        while True:
            for line in self._lines:
                if line.running is not None and line.running.done():
                    self._finish(line)
                    finished += 1
            for line in self._lines:
                if line.job is None:
                    line.job = self._take_built(line.topics)
                if line.job is not None and not line.running and time.monotonic() >= line.retry_at:
                    self._start(line, line.job)
            # Whatever a line could begin with is made now, and one range more of each kind.
            if not self._build(draining):
                return finished

    def _take_built(self, topics: frozenset[str]) -> Job | None:
        busy = self._busy()
        for job in self._built:
            if job.source.topic in topics and job.source not in busy:
                self._built.remove(job)
                return job
        return None

    def _busy(self) -> set[Source]:
        """Partitions of which a range has begun and not ended."""
        return {line.job.source for line in self._lines if line.job is not None}

    def _build(self, draining: bool) -> bool:
        """Make a range of each kind of which none is made; whether there was one."""
        # Once nothing more can be read, no range fills any further.
        waits = not draining and self._full_since is None
        before = len(self._built)
        for topics in KINDS:
            if not any(job.source.topic in topics for job in self._built):
                job = self._ranges.next(time.monotonic(), topics, waits=waits, busy=self._busy())
                self._built += [job] if job is not None else []
        return len(self._built) > before

    def _hold(self, source: Source, held: bool) -> None:
        (self._group.pause if held else self._group.resume)([source])

    def _linger_s(self, topic: str) -> float:
        settings, every = self.settings, events.event_topics()
        # All event topics go into one table. Every worker counts the partitions of all, so that
        # all together stay below the rate.
        if topic in every:
            feeding, rate = every, settings.inserts_per_s_max
        else:
            feeding, rate = (topic,), settings.inserts_per_s_max * OTHER_TABLES_SHARE
        fair = sum(self._group.partitions.get(name, 0) for name in feeding) / rate
        return min(max(settings.linger_min_s, fair), settings.linger_max_s)

    # --- one job ---

    def _start(self, line: Line, job: Job) -> None:
        lease_s = self.settings.session_timeout_s - self.settings.insert_timeout_s
        announce(job, self._group, time.monotonic(), lease_s)
        line.attempt(job)

    def _finish(self, line: Line) -> None:
        job, running = line.job, line.running
        assert job is not None
        assert running is not None
        line.running = None
        try:
            running.result()
            finish(job, self._letters, self._group)
        except LostError:
            raise
        except Retryable as error:
            job.doubt = True
            self.metrics.retries.inc()
            wait_s = min(BACKOFF_MIN_S * 2 ** min(job.attempts, 10), BACKOFF_MAX_S)
            line.retry_at = time.monotonic() + wait_s
            log.warning("%s; trying again in %.1f s", error, wait_s)
            return
        line.forget()
        self._count(job)

    def _count(self, job: Job) -> None:
        self.metrics.ranges.inc()
        for table, rows in job.rows.items():
            self.metrics.rows.labels(table).inc(rows)
        if job.refused:
            why = next(iter(job.refused.values())).detail
            name = f"{job.source.name()} {job.range.start}..{job.range.end}"
            log.warning("%d rows of %s are dead-lettered: %s", len(job.refused), name, why)
        for reason in (*(reason for _, reason in job.built.rejected), *job.refused.values()):
            self.metrics.rejected.labels(reason.code).inc()

    # --- rebalances ---

    def _forget(self) -> None:
        """Drop what is not committed, once no insert of it is under way.

        A range that was inserted and not committed is redone by the next owner, from its intent:
        the same rows under the same token, of which ClickHouse drops the second.
        """
        for line in self._lines:
            line.give_up()
        wait_for_all(self._lines, self.settings.insert_timeout_s)
        for line in self._lines:
            line.forget()
        self._ranges.readings = {}
        self._built = []


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
    with contextlib.closing(worker), rare_collections():
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
