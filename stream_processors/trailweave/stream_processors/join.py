"""The join worker: batches of raw events in, one Kafka transaction per batch out. Edge.

Order of effects in a step, and what a crash between them does:

1. fold a batch into memory                 crash: nothing was said; the next start reads it again
2. end the batch: each lane's `Turn`, and the sessions that close with it
3. commit the batch before and fold the next one while children close those sessions: while the
   worker waits for the broker it folds, then closes its own share; without work for children or
   a full batch behind it, go on at once
4. produce the records of the batch         crash: the transaction is aborted by the next start
5. send the offsets of *all* lanes with it  (also when nothing moved: it fences a zombie)
6. commit                                   crash: `init_transactions` of the next start settles it
7. forget what was committed                in memory only; then 2 for the next batch

What a transaction says is its turn's: a batch folded ahead of a commit is neither in its offsets
nor in its records, and one that is never committed is read again. So every input offset stands in
exactly one committed record. After any doubt (an error once the commit began, an abort, a
rebalance) memory is dropped and rebuilt from what is committed: a memory that might be ahead of
Kafka is worth nothing. `recovery` and `lane_reader` do the rebuilding.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import (
    Consumer,
    KafkaError,
    TopicPartition,
)
from trailweave.schemas import events
from trailweave.schemas.codec import Decoder, Encoder
from trailweave.schemas.errors import Fatal, Rejected, Retryable
from trailweave.schemas.garbage import rare_collections
from trailweave.schemas.group_slot import GroupSlot
from trailweave.schemas.schema_topic import SchemaTopic
from trailweave.schemas.silence import Silence
from trailweave.schemas.standing import StandingRule, WriterStandings
from trailweave.stream_processors import lane_reader
from trailweave.stream_processors.chain import Source, event_decoder
from trailweave.stream_processors.chunks import (
    TURN_BYTES_MAX,
    Chunk,
    largest,
    promote,
    promoted,
)
from trailweave.stream_processors.closers import Closers, Due
from trailweave.stream_processors.closing import Sealed, close, seal
from trailweave.stream_processors.confirm import Confirmer
from trailweave.stream_processors.lane_recovery import LaneRecovery
from trailweave.stream_processors.lanes import FOLD_READ, Lane, Turn
from trailweave.stream_processors.memory import Memory
from trailweave.stream_processors.metrics import JoinMetrics
from trailweave.stream_processors.open_revisions import revision, to_look_at
from trailweave.stream_processors.own_rules import own_rules
from trailweave.stream_processors.session import ClosingTimes, Session
from trailweave.stream_processors.transactions import Transactions, Work
from trailweave.stream_processors.verdict import RulesConfig

log = logging.getLogger(__name__)

#: Waits between tries while Kafka is away.
BACKOFF_MIN_S: Final = 0.2
BACKOFF_MAX_S: Final = 10.0
#: How often a schema that nobody has published yet is asked for.
SCHEMA_INTERVAL_S: Final = 1.0
#: While children close a batch, or more is due, what has come is taken, and no more waited for.
TAKE_S: Final = 0.01
#: Messages folded before looking again whether the broker has answered: half a millisecond.
_FOLD_MESSAGES: Final = 250
#: Errors of the connection: librdkafka goes on by itself, and nothing was skipped.
_PASSING: Final = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
}


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """What a join worker needs; `kafka` is any librdkafka setting, `bootstrap.servers` included."""

    kafka: Mapping[str, Any]
    group: str = "trailweave-join"
    #: Stable per process: names the static member and the transactional id, so that a restarted
    #: worker has its partitions back at once and settles its own last transaction.
    slot: int = 0
    times: ClosingTimes = field(default_factory=ClosingTimes)
    rules: RulesConfig = field(default_factory=RulesConfig)
    #: Larger batches cost memory, smaller ones commits (10 to 20 ms each).
    batch_events_max: int = 30_000
    #: What a session has held for longer goes to chunks: a recovery replays about so much input.
    promote_s: float = 60.0
    #: A session is looked at before its close so often at the most.
    look_every_s: float = 2.0
    #: Bytes of events that open sessions may hold in memory, about; above it the largest are left
    #: to chunks until they close, and partitions that are ahead of the others wait.
    held_bytes_max: int = 512 * 1024 * 1024
    #: A batch waits no longer for more events: part of the delay to the chain.
    linger_s: float = 0.25
    #: Without a sign of life for longer, a worker's lanes go to others.
    session_timeout_s: float = 10.0
    #: Child processes that share the closing of sessions; 0: none. They import the main module
    #: anew, as `multiprocessing` does: a program of one's own needs its `__main__` guard.
    closers: int = 0


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch that is folded and whose sessions are being closed."""

    turns: list[tuple[Lane, Turn]]
    chunks: list[tuple[Lane, Session, Chunk]]
    #: Sessions that leave memory to their chunks once these are committed.
    leaving: list[tuple[Lane, Session]]
    revisions: list[tuple[Lane, Turn, Sealed]]
    #: The member that read it.
    generation: Any


class JoinWorker:
    """One process slot of the join: the lanes that the group assigns to it.

    `step` does one batch. Not thread-safe; `run` drives it. `stop` being set, a commit whose
    outcome can't be known is not waited for without end.
    """

    def __init__(
        self,
        settings: JoinSettings,
        metrics: JoinMetrics | None = None,
        schemas: WriterStandings | None = None,
        *,
        stop: threading.Event | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.metrics = metrics or JoinMetrics()
        self.lanes: dict[int, Lane] = {}
        self._now_s = now_s
        self._stop = stop or threading.Event()
        self._topics = events.event_topics()
        self._topic_index = {topic: index for index, topic in enumerate(self._topics)}
        #: Ours to close, when none are given.
        self._schema_topic: SchemaTopic | None = None
        if schemas is None:
            wait = StandingRule(settings.times.unknown_schema_wait_ms)
            schemas = self._schema_topic = SchemaTopic(settings.kafka, rule=wait)
        self._schemas = schemas
        self._decoder = event_decoder(self._schemas)
        self._fold_decoder = Decoder(FOLD_READ, self._schemas)
        self._encoder = Encoder()
        self._sources: dict[int, Source] = {}
        self._closers = Closers(settings.closers, settings.rules, self.metrics.closers_lost.inc)
        # Now, for they take about as long as the group takes to hand out lanes.
        self._closers.start()
        self._ending = contextlib.ExitStack()
        self._own = self._ending.enter_context(
            own_rules(settings.rules, self.metrics.own_rules_failed.inc)
        )
        self._assigned: set[int] | None = None
        #: Partitions that were not assigned though others of their lanes were.
        self._torn = ""
        self._rebalanced = False
        self._ask_schemas_at = 0.0
        #: The batch before this one, while children close its sessions.
        self._batch: _Batch | None = None
        #: The one before that, closed, and what is to be committed of it.
        self._closed: tuple[_Batch, Work | None] | None = None
        self._transactions: Transactions | None = None
        self._memory = Memory(settings.kafka, settings.held_bytes_max)
        self._recovery = LaneRecovery(
            settings.kafka, settings.group, settings.times, self._fold_decoder
        )
        instance = f"{settings.group}-{settings.slot}"
        self._slot = GroupSlot(settings.kafka, settings.group, instance, settings.session_timeout_s)
        #: Why Kafka refuses us, until it is known whether another process has our slot.
        self._fenced = ""
        self._silence = Silence(settings.kafka)
        self._consumer = self._subscribed()
        self._confirmer = Confirmer(dict(settings.kafka), self._topics)

    def _subscribed(self) -> Consumer:
        s = self.settings
        consumer = lane_reader.group_consumer(
            s.kafka, s.group, self._slot.instance, s.session_timeout_s
        )
        consumer.subscribe(list(self._topics), on_assign=self._on_assign, on_revoke=self._on_revoke)
        return consumer

    # --- rebalances: only noted in the callbacks, handled between batches ---

    def _on_assign(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        # Nothing is read before the rebuild says from where: read from the group's offsets, a lane
        # without any would answer with an error that arrives after the rebuild.
        consumer.assign([])
        lanes = {part.partition for part in parts}
        here = {(part.topic, part.partition) for part in parts}
        torn = sorted(f"{t}[{i}]" for t in self._topics for i in lanes if (t, i) not in here)
        # A lane of which another worker has a part would be joined twice.
        self._torn = ", ".join(torn)
        self._assigned = None if torn else lanes
        self._rebalanced = True

    def _on_revoke(self, _: Consumer, parts: list[TopicPartition]) -> None:
        # No transaction is open here: a step ends its own before it asks for messages again.
        log.info("lanes %s are revoked", sorted({part.partition for part in parts}))
        self.lanes = {}
        self._batch = self._closed = None
        self._assigned = None
        self._torn = ""
        self._rebalanced = True
        metrics = self.metrics
        for gauge in (metrics.open_sessions, metrics.held_events, metrics.held_bytes):
            gauge.clear()  # or another worker's lanes would be reported here for ever
        self.metrics.clock_lag_s.clear()

    # --- one batch ---

    @property
    def settled(self) -> bool:
        """Whether everything folded is committed or in open sessions."""
        return self._batch is None and self._closed is None

    def step(self) -> int:
        """Fold what has come, close what is due, commit; returns the number of events folded.

        What children close is committed by the step after the next: while they are at it, the next
        one folds its own batch, and commits the one before.
        Raises `Retryable` when Kafka is away (call again), `Fatal` when a person must look.
        """
        try:
            if self._fenced:
                self._join_again()
            return self._step()
        except lane_reader.FencedError as error:
            self._fenced = str(error)
            self._drop_memory()
            raise

    def _join_again(self) -> None:
        """With a new client, for a fenced one is of no more use; unless another has our slot.

        Not before that is known: a rebuild would fence the other one in its turn, and so on.
        """
        self._slot.look(self._fenced, self._consumer)
        self._fenced = ""
        self._consumer.close()
        self._assigned, self._rebalanced = None, True
        self._consumer = self._subscribed()

    def _step(self) -> int:
        if self._rebalanced and self._assigned is not None:
            try:
                self._rebuild()
            except Retryable:
                self._stay_in_the_group()
                raise
        # Taken before the messages: with a later one, a worker that lost its lanes in between
        # could commit under the new generation's name.
        generation = self._consumer.consumer_group_metadata()
        messages = lane_reader.consume(
            self._consumer,
            self.settings.batch_events_max,
            self.settings.linger_s if self.settled and not self._memory.behind else TAKE_S,
        )
        self._slot.note(self._consumer)
        if self._torn:
            raise Retryable(
                f"couldn't take over lanes: {self._torn} did not come with them; give all event "
                "topics the same number of partitions (`trailweave topics check`)"
            )
        if self._rebalanced:
            for error in filter(None, (message.error() for message in messages)):
                # It comes once, together with the revocation.
                lane_reader.raise_if_fenced("read events", error)
            return 0  # of whichever assignment they are: the rebuild reads them again
        self._listen(messages)
        try:
            folded = self._fold_and_commit(messages)
            self._confirmer.poll(self.lanes, self._now_s())
            self._learn()
            last = self._batch
            work = self._transaction(last) if last is not None else None
            busy = len(messages) >= self.settings.batch_events_max
            self._batch = self._begin(generation, busy=busy)
            self._closed = (last, work) if last is not None else None
            if not busy and not self._closers.busy:
                self.settle()
        except Retryable:
            # Sessions may be closed by now whose records are lost with the list of them.
            self._drop_memory()
            raise
        self._gauge()
        return folded

    def _fold_and_commit(self, messages: list[lane_reader.Fetched]) -> int:
        """Fold the messages; while the broker takes the batch that is closed, if there is one."""
        folding, folded = self._folding(messages), 0

        def meanwhile() -> bool:
            nonlocal folded
            part = next(folding, None)
            if part is None:
                # Of the batch that is being closed, what children were not given.
                return self._closers.close_one(self._close_here)
            folded += part
            return True

        self._commit_closed(meanwhile)
        folded += sum(folding)
        self.metrics.events.inc(folded)
        return folded

    def _listen(self, messages: list[lane_reader.Fetched]) -> None:
        """Give up a client that gets nothing of what is there."""
        if messages or self._memory.waits:
            self._silence.heard()
            return
        positions = {
            (topic, lane.index): position
            for lane in self.lanes.values()
            for topic, position in zip(self._topics, lane.positions, strict=True)
        }
        if self._silence.is_deaf(positions):
            raise lane_reader.FencedError("couldn't read events: others get them, this client not")

    def _stay_in_the_group(self) -> None:
        """Poll although there is nothing to join yet: a rebalance that others need waits for it.

        What is read here is of no lane and is read again after the rebuild.
        """
        messages = lane_reader.consume(self._consumer, self.settings.batch_events_max, 0.0)
        for error in filter(None, (message.error() for message in messages)):
            lane_reader.raise_if_fenced("read events", error)

    def settle(self) -> None:
        """Commit what is closed, and the batch whose sessions children still close, if any."""
        self._commit_closed(lambda: self._closers.close_one(self._close_here))
        if self._batch is not None:
            last, self._batch = self._batch, None
            self._closed = last, self._transaction(last)
            self._commit_closed(lambda: False)

    def _commit_closed(self, meanwhile: Callable[[], bool]) -> None:
        if self._closed is not None:
            (batch, work), self._closed = self._closed, None
            if work is not None:
                self._commit(work, meanwhile)
            self._let_go(batch)

    def _let_go(self, batch: _Batch) -> None:
        """After its commit: what it has put into chunks may leave memory."""
        for lane, session in batch.leaving:
            lane.leave(session)
        self._memory.balance(self._consumer, self.lanes.values())

    def _begin(self, generation: Any, *, busy: bool) -> _Batch:
        """End the batch: its sessions are with the children, or wait for `_transaction`."""
        turns = [(lane, lane.turn()) for lane in self.lanes.values()]
        self._closers.begin(self._take_due(turns), self._close_here)
        after_ms = int(self.settings.promote_s * 1000)
        chunks = [
            (lane, session, chunk)
            for lane, turn in turns
            for session, chunk in promote(lane, turn, after_ms, TURN_BYTES_MAX // len(turns))
        ]
        excess = self._memory.excess(self.lanes.values())
        if self._batch is not None:
            # The last batch's are gone once it is committed.
            excess -= sum(s.size for _, s in self._batch.leaving if not s.closed)
        leaving = []
        for lane, turn, session in largest(turns, excess):
            leaving.append((lane, session))
            chunks += [(lane, session, chunk) for chunk in promoted(lane, session, turn)]
        return _Batch(turns, chunks, leaving, self._revisions(turns, busy=busy), generation)

    def _revisions(
        self, turns: list[tuple[Lane, Turn]], *, busy: bool
    ) -> list[tuple[Lane, Turn, Sealed]]:
        """Of sessions that stay open, what there is to say of them now."""
        every_ms, found = int(self.settings.look_every_s * 1000), []
        for lane, turn, session in to_look_at(turns, every_ms, busy=busy):
            with contextlib.suppress(_TooEarlyError):
                said = revision(session, turn, self._source(lane.index), self.settings.rules)
                if said is not None:
                    found.append((lane, turn, seal(said, self._encoder)))
        return found

    def _take_due(self, turns: list[tuple[Lane, Turn]]) -> list[Due]:
        try:
            return self._memory.take_due(turns)
        except Fatal:
            # Chunks are gone. If they went with a session that somebody else has closed, this
            # worker lost its lanes and has yet to hear of it.
            since = self._recovery.committed_since
            if any(since(self._consumer, lane) for lane in self.lanes.values()):
                raise Retryable("another worker has committed for these lanes") from None
            raise

    def _transaction(self, batch: _Batch) -> Work | None:
        """What the batch's transaction carries; None if there is nothing to say."""
        closings = self._closers.finish(self._close_here)
        told = closings or batch.chunks or batch.revisions
        if not told and not any(turn.moved for _, turn in batch.turns):
            return None
        # Before the next sessions close or go to chunks: this transaction has to hold their lows.
        offsets = [
            TopicPartition(topic, lane.index, position, metadata.text())
            for lane, turn in batch.turns
            for topic, position, metadata in zip(
                self._topics, turn.positions, lane.prepare(turn), strict=True
            )
        ]
        return Work(batch.turns, closings, batch.revisions, batch.chunks, offsets, batch.generation)

    def _folding(self, messages: list[lane_reader.Fetched]) -> Iterator[int]:
        """Folds some at a time; how many those were."""
        lanes, index = self.lanes, self._topic_index
        for at in range(0, len(messages), _FOLD_MESSAGES):
            folded = 0
            for message in messages[at : at + _FOLD_MESSAGES]:
                error = message.error()
                topic, partition = message.topic(), message.partition()
                if error is not None:
                    self._read_error(error, message)
                    continue
                lane, number, offset = lanes[partition], index[topic], message.offset()
                if offset < lane.positions[number]:
                    continue  # delivered again after a seek of librdkafka's own
                lane.fold(number, offset, message.timestamp()[1], message.key(), message.value())
                folded += 1
            yield folded

    def _read_error(self, error: KafkaError, message: lane_reader.Fetched) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            self._confirmer.at_end(message.topic(), message.partition(), message.offset())
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise Fatal(
                f"{message.topic()}[{message.partition()}]: the offset to read from is gone: "
                f"{error.str()}; retention removed events before they were joined"
            )
        elif error.code() in _PASSING and not error.fatal():
            log.warning("Kafka is away: %s", error.str())
        else:
            # What the batch holds behind this message is not folded any more.
            self._drop_memory()
            raise lane_reader.kafka_error("read events", error)

    def _learn(self) -> None:
        """Ask once more for schemas that nobody had published when their events came."""
        if time.monotonic() < self._ask_schemas_at:
            return
        self._ask_schemas_at = time.monotonic() + SCHEMA_INTERVAL_S
        for lane in self.lanes.values():
            for key in list(lane.unknown):
                try:
                    if self._fold_decoder.knows(key):
                        lane.learned(key)
                except Rejected as error:
                    log.warning("events of schema %s will be dead-lettered: %s", key.hex(), error)

    def _close_here(self, due: Due) -> Sealed | None:
        source = self._source(due.lane.index)
        try:
            rules = self.settings.rules
            closing = close(due.session, due.reason, due.turn, source, rules, self._own)
        except _TooEarlyError:
            return None  # it stays open, and is looked at again
        return None if closing is None else seal(closing, self._encoder)

    def _source(self, lane: int) -> Source:
        if lane not in self._sources:
            self._sources[lane] = Source(self._topics, lane, self._decoder, self._admits)
        return self._sources[lane]

    def _admits(self, key: bytes, recorded_ms: int) -> bool:
        """Whether an event's schema counts as published; load asks the same."""
        standing = self._schemas.standing(key, recorded_ms, int(self._now_s() * 1000))
        if standing == "wait":
            raise _TooEarlyError
        return standing == "known"

    # --- the transaction ---

    def _commit(self, work: Work, meanwhile: Callable[[], bool]) -> None:
        assert self._transactions is not None
        began = time.monotonic()
        try:
            delivered = self._transactions.commit(work, meanwhile)
        except Retryable:
            self._drop_memory()
            raise
        self.metrics.committed(work, time.monotonic() - began)
        for lane, turn in work.turns:
            lane.committed(turn, delivered.sessions_end.get(lane.index, 0))
            self._recovery.committed(lane.index, turn.number)
        for _, session, (key, _) in work.chunks:
            session.chunks[key] = delivered.chunks.get(key, -1)

    # --- memory: dropped after any doubt, rebuilt from what is committed ---

    def _drop_memory(self) -> None:
        self.lanes = {}
        self._batch = self._closed = None
        self._transactions = None
        self._rebalanced = True

    def _rebuild(self) -> None:
        """A new producer epoch, then every assigned lane as its last commit left it."""
        assigned = sorted(self._assigned or ())
        self.metrics.recoveries.inc()
        self.lanes = {}
        self._batch = self._closed = None
        settings = self.settings
        self._transactions = Transactions(settings.kafka, settings.group, settings.slot, self._stop)
        began = time.monotonic()
        # A share of the limit: how the others' sessions are, nobody knows yet.
        lanes = self._recovery.lanes(self._consumer, assigned, self._memory.share(len(assigned)))
        self._rebalanced = False
        self._confirmer.reset()
        parts = [
            TopicPartition(topic, lane.index, position)
            for lane in lanes.values()
            for topic, position in zip(self._topics, lane.positions, strict=True)
        ]
        self._consumer.assign(parts)
        self._memory.assigned(self._consumer, parts)
        self.lanes = lanes
        held = sum(lane.held_events for lane in lanes.values())
        log.info(
            "lanes %s are back with %d events in open sessions after %.1f s",
            assigned,
            held,
            time.monotonic() - began,
        )

    # --- figures and the end ---

    def _gauge(self) -> None:
        self.metrics.closers.set(self._closers.ready)
        for lane in self.lanes.values():
            label = str(lane.index)
            self.metrics.open_sessions.labels(label).set(len(lane.sessions))
            self.metrics.held_events.labels(label).set(lane.held_events)
            self.metrics.held_bytes.labels(label).set(lane.held_bytes)
            clock = lane.clock_ms()
            if clock >= 0:
                self.metrics.clock_lag_s.labels(label).set(self._now_s() - clock / 1000)

    def close(self) -> None:
        """Leave cleanly: everything folded is committed or will be read again."""
        self._closers.stop()
        self._ending.close()
        self._confirmer.close()
        self._memory.close()
        if self._schema_topic is not None:
            self._schema_topic.close()
        self._consumer.close()


class _TooEarlyError(Exception):
    """A session holds an event whose schema may still be published."""


def run(
    settings: JoinSettings,
    stop: threading.Event,
    metrics: JoinMetrics | None = None,
    schemas: WriterStandings | None = None,
) -> None:
    """Join until `stop` is set; waits out a Kafka that is away, raises `Fatal`."""
    worker = JoinWorker(settings, metrics, schemas, stop=stop)
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
        with contextlib.suppress(Retryable):  # it will be read again
            worker.settle()
