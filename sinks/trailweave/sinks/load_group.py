"""The load worker's place in its consumer group: assignments, messages, commits. Edge.

Every exception of the Kafka client becomes `Retryable`, `LostError` or `Fatal` here. Offsets are
only committed synchronously: a commit that the group accepts is also the proof that the partition
is still ours, which is why inserts may start only after one (the lease).
"""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from trailweave.schemas import events
from trailweave.schemas.client_log import client_log
from trailweave.schemas.deadline import LateError, answer_within
from trailweave.schemas.errors import Fatal, Retryable
from trailweave.schemas.group_slot import (
    ANSWER_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    GroupSlot,
    connection_settings,
)
from trailweave.sinks.load_build import Source
from trailweave.sinks.load_plan import resume
from trailweave.sinks.load_ranges import Start

log = logging.getLogger(__name__)

#: Said once in a while, not with every attempt of the client's.
SAY_AWAY_INTERVAL_S: Final = 10.0

#: What load reads: the events, and what the other workers write.
TOPICS: Final = (
    *events.event_topics(),
    events.SESSIONS_TOPIC,
    events.FINDINGS_TOPIC,
    events.HEARTBEATS_TOPIC,
    events.DEAD_LETTERS_TOPIC,
)

#: Somebody else has the partition, or the group is about to say who has it.
_LOST: Final = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError._ASSIGNMENT_LOST,  # noqa: SLF001 - a public code; only its name has an underscore
    KafkaError._STATE,
}
#: Somebody else has our slot, unless it is we ourselves: a client whose session has timed out
#: forgets its member id at once, and a commit without one is refused like a stranger's.
_FENCED: Final = {
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._FENCED,
    KafkaError._FATAL,
}
#: Trying again changes nothing.
_FATAL: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "we may not read the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "we may not use the group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "we may not use the cluster",
    KafkaError.SASL_AUTHENTICATION_FAILED: "our credentials are not accepted",
    KafkaError._AUTHENTICATION: "our credentials are not accepted",
    KafkaError.OFFSET_METADATA_TOO_LARGE: "the broker takes less metadata than an intent needs",
    KafkaError._AUTO_OFFSET_RESET: "records were deleted before they were read, or the topic was"
    " recreated; set the group's offset to go on",
}


class LostError(Retryable):
    """The group no longer counts us in: what is under way must not be committed by us."""


class Group:
    """One member of the group. Not thread-safe; callbacks run inside `read` and `close`."""

    def __init__(
        self,
        kafka: Mapping[str, Any],
        group: str,
        slot: GroupSlot,
        session_timeout_s: float,
        on_revoke: Callable[[], None],
        committed: dict[tuple[str, int], int],
    ) -> None:
        """`slot` and the offsets `committed` so far are the worker's, over all its clients.

        `on_revoke` is called inside `read` and `close`, and must not commit: the client takes no
        call from another thread before that one has ended.
        """
        # What it would log, the consumer logs.
        self._admin = AdminClient({"log_level": 0, **connection_settings(kafka)})
        self._on_revoke = on_revoke
        self._assigned: list[TopicPartition] | None = None
        self._changed = False
        self._unknown_topics: set[str] = set()
        self.cluster_id = ""
        #: Partitions of each topic, whoever reads them.
        self.partitions: dict[str, int] = {}
        self._say_away_at = 0.0
        self._counted_out = False
        #: Whether a call never came back: the client waits for it whatever it is asked.
        self._stuck = False
        self._slot, self._committed = slot, committed
        own = {**kafka, "group.instance.id": slot.instance, "error_cb": self._failed}
        self._consumer = _consumer(own, group, session_timeout_s)
        self._consumer.subscribe(
            list(TOPICS), on_assign=self._note, on_revoke=self._revoked, on_lost=self._lost
        )

    # --- reading ---

    def read(self, count: int, timeout_s: float) -> list[Message]:
        """Messages of the partitions that `begin` was told of, in order per partition.

        Raises `LostError` when the group has counted us out, `Retryable` and `Fatal` as the
        broker's errors demand.
        """
        self._changed = False
        try:
            messages = self._consumer.consume(count, timeout_s)
        except KafkaException as error:
            raise self._problem("couldn't read", error.args[0]) from error
        self._slot.note(self._consumer)
        if self._counted_out:
            # This client would join again, but may never fetch again what it has fetched before.
            raise self._out("couldn't stay in the group", "counted out")
        for message in messages:
            problem = message.error()
            if problem is not None:
                self._react(problem, message.topic() or "")
        if self._changed:
            # They were fetched before the assignment changed; `begin` says where to read again.
            return []
        return [message for message in messages if message.error() is None]

    def begin(self) -> list[Start] | None:
        """Start reading what was assigned since the last call; None if nothing was.

        Raises `Retryable` (call again), `Fatal` when records were deleted unread.
        """
        if self._assigned is None:
            return None
        parts = self._assigned
        try:
            ids = self._topic_ids({part.topic for part in parts})
            committed = self._consumer.committed(parts, timeout=REQUEST_TIMEOUT_S)
            starts = [self._start(part, ids[part.topic]) for part in committed]
            self._consumer.assign(
                [TopicPartition(s.source.topic, s.source.partition, s.offset) for s in starts]
            )
            # librdkafka keeps a pause over an assignment, and whoever gets a partition back that
            # was paused would never read it again.
            self.resume([start.source for start in starts])
        except KafkaException as error:
            raise self._problem("couldn't start reading", error.args[0]) from error
        except FutureTimeoutError:
            raise Retryable("couldn't start reading: no answer about the topics") from None
        self._assigned = None
        return starts

    def _start(self, part: TopicPartition, topic_id: str) -> Start:
        if part.error is not None:
            raise self._problem("couldn't read the committed offset", part.error)
        marks = self._consumer.get_watermark_offsets(part, timeout=REQUEST_TIMEOUT_S)
        if marks is None:
            raise Retryable(f"couldn't learn where {part.topic}/{part.partition} ends in time")
        low, high = marks
        name = f"{part.topic}/{part.partition}"
        committed = part.offset if part.offset >= 0 else None
        known = self._committed.get((part.topic, part.partition), -1)
        if (-1 if committed is None else committed) < known:
            # Nobody can reset offsets while the group has members.
            raise Retryable(
                f"couldn't start reading {name}: the broker has yet to learn what we committed"
            )
        offset, intent = resume(committed, part.metadata, low, high, name)
        return Start(Source(part.topic, topic_id, part.partition), offset, intent)

    def _topic_ids(self, names: set[str]) -> dict[str, str]:
        if not self.cluster_id:
            asked = self._admin.describe_cluster(request_timeout=REQUEST_TIMEOUT_S)
            self.cluster_id = asked.result(ANSWER_TIMEOUT_S).cluster_id
        answers = self._admin.describe_topics(
            TopicCollection(sorted(names)), request_timeout=REQUEST_TIMEOUT_S
        )
        topics = {name: answer.result(ANSWER_TIMEOUT_S) for name, answer in answers.items()}
        self.partitions = {name: len(topic.partitions) for name, topic in topics.items()}
        return {name: _uuid(topic.topic_id) for name, topic in topics.items()}

    def lag(self, source: Source, offset: int) -> int | None:
        """Offsets between `offset` and the partition's end as last fetched; None if unknown."""
        part = TopicPartition(source.topic, source.partition)
        try:
            marks = self._consumer.get_watermark_offsets(part, cached=True)
        except KafkaException:
            return None
        return max(0, marks[1] - offset) if marks and marks[1] >= 0 else None

    def pause(self, sources: list[Source]) -> None:
        """Let nothing more come, while `read` keeps the membership alive."""
        self._consumer.pause([TopicPartition(s.topic, s.partition) for s in sources])

    def resume(self, sources: list[Source]) -> None:
        """The end of `pause`."""
        self._consumer.resume([TopicPartition(s.topic, s.partition) for s in sources])

    # --- committing ---

    def commit(self, source: Source, offset: int, metadata: str) -> None:
        """Commit and know it: when this returns, the group has accepted it from us as its member.

        Raises `LostError` if the group refuses us, or doesn't answer; `Retryable` if nobody can
        say.
        """
        part = TopicPartition(source.topic, source.partition, offset, metadata)
        consumer = self._consumer
        try:
            (answer,) = answer_within(
                REQUEST_TIMEOUT_S,
                lambda: consumer.commit(offsets=[part], asynchronous=False) or [part],
            )
            refusal = answer.error
        except LateError:
            # Applied before a new client has joined in our place, it is found by `begin`; later,
            # it is refused.
            self._stuck = True
            raise LostError(f"couldn't commit {source.name()}: no answer") from None
        except KafkaException as error:
            refusal = error.args[0]
        if refusal is None:
            self._committed[source.topic, source.partition] = offset
            return
        problem = self._problem(f"couldn't commit {source.name()}", refusal)
        if isinstance(problem, (LostError, Fatal)) or not self._stands(source, offset, metadata):
            raise problem
        self._committed[source.topic, source.partition] = offset

    def _stands(self, source: Source, offset: int, metadata: str) -> bool:
        """Whether a commit without an answer was applied."""
        part = TopicPartition(source.topic, source.partition)
        try:
            (found,) = self._consumer.committed([part], timeout=REQUEST_TIMEOUT_S)
        except KafkaException:
            return False
        return found.error is None and (found.offset, found.metadata or "") == (offset, metadata)

    def close(self) -> None:
        """Stop reading. A static member stays in the group until its session times out."""
        if not self._stuck:
            self._consumer.close()

    # --- rebalances: noted here, acted upon in `begin` ---

    def _note(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        # Nothing is read until the committed offsets are known.
        consumer.assign([])
        self._assigned = parts
        self._changed = True

    def _revoked(self, _: Consumer, parts: list[TopicPartition]) -> None:
        log.info("%d partitions are revoked", len(parts))
        self._gone()

    def _lost(self, _: Consumer, parts: list[TopicPartition]) -> None:
        log.warning("%d partitions are lost: the group has counted us out", len(parts))
        self._counted_out = True
        self._gone()

    def _gone(self) -> None:
        self._changed = True
        self._assigned = None
        self._on_revoke()

    # --- refusals ---

    def _failed(self, error: KafkaError) -> None:
        # A client that is fenced says so here alone, and from then on reads nothing in silence.
        if error.fatal():
            self._counted_out = True
        else:
            log.info("the Kafka client says: %s", error.str())

    def _problem(self, failed: str, error: KafkaError) -> Retryable | Fatal:
        if error.code() not in _FENCED:
            return _translated(failed, error)
        return self._out(failed, error.name())

    def _out(self, failed: str, why: str) -> Retryable | Fatal:
        """The group knows us no more; `LostError` once it is sure that nobody else has our slot."""
        self._counted_out = True
        try:
            self._slot.look(f"{failed}: {why}", self._consumer)
        except (Retryable, Fatal) as found:
            return found
        return LostError(f"{failed}: the session has timed out ({why})")

    def _react(self, error: KafkaError, topic: str) -> None:
        if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            if topic not in self._unknown_topics:
                self._unknown_topics.add(topic)
                log.warning("there is no topic %s yet; run `trailweave topics apply`", topic)
            return
        problem = self._problem("couldn't read", error)
        if isinstance(problem, (Fatal, LostError)):
            raise problem
        # The client goes on by itself, and nothing was skipped.
        if time.monotonic() >= self._say_away_at:
            self._say_away_at = time.monotonic() + SAY_AWAY_INTERVAL_S
            log.warning("couldn't reach Kafka: %s; going on when it is back", error.str())


def _consumer(kafka: Mapping[str, Any], group: str, session_timeout_s: float) -> Consumer:
    try:
        return Consumer(
            {
                # Chains and findings wait behind the events that were fetched before them.
                "queued.max.messages.kbytes": 16_384,
                # The default lets a queue that was full run dry for a second.
                "fetch.queue.backoff.ms": 20,
                # Enough for large ranges; and little enough that all partitions, also those that
                # have few records, find a place in each answer of 50 MB.
                "fetch.message.max.bytes": 2_097_152,
                **kafka,
                "group.id": group,
                "partition.assignment.strategy": "range",
                "session.timeout.ms": int(session_timeout_s * 1000),
                "heartbeat.interval.ms": int(session_timeout_s * 1000 / 4),
                "enable.auto.commit": False,
                # Where to begin is decided in `begin`; a reset would skip or repeat in silence.
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "topic.metadata.refresh.interval.ms": 10_000,
            },
            logger=client_log(log),
        )
    except (KafkaException, ValueError, TypeError) as error:
        # The library's text may quote a value, and that may be a secret.
        raise Fatal(
            f"couldn't make a Kafka client of the settings: {type(error).__name__};"
            " check the names and values of the Kafka settings"
        ) from error


def _uuid(topic_id: Any) -> str:
    """Kafka prints its ids in base64; ClickHouse and people have UUIDs in hex."""
    high = topic_id.get_most_significant_bits() & (1 << 64) - 1
    low = topic_id.get_least_significant_bits() & (1 << 64) - 1
    text = f"{high:016x}{low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _translated(failed: str, error: KafkaError) -> Retryable | Fatal:
    if error.code() in _FATAL:
        return Fatal(f"{failed}: {_FATAL[error.code()]} ({error.name()})")
    if error.code() in _LOST:
        return LostError(f"{failed}: {error.name()}")
    return Retryable(f"{failed}: {error.name()}")
