"""One Kafka transaction per batch: its records, the offsets of all lanes, the commit. Edge.

What a failure leaves behind is settled by the `init_transactions` of the next producer, which
fences this one: nothing here is tried twice but a commit whose outcome is not known.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition
from trailweave.schemas import events
from trailweave.schemas.client_log import client_log
from trailweave.schemas.codec import Encoder
from trailweave.schemas.deadline import LateError, answer_within
from trailweave.schemas.errors import Retryable
from trailweave.stream_processors import lane_reader, recovery
from trailweave.stream_processors.chunks import Chunk
from trailweave.stream_processors.closers import Due
from trailweave.stream_processors.closing import Sealed, dead_letter
from trailweave.stream_processors.lanes import Lane, Refused, Turn
from trailweave.stream_processors.session import Session

log = logging.getLogger(__name__)

#: Above the longest commit; the broker ends a transaction that a dead worker left open after it.
TRANSACTION_TIMEOUT_S: Final = 20
#: How often a commit whose outcome is not known looks whether the worker is to stop.
COMMIT_POLL_S: Final = 1.0
#: A group coordinator that answers does so in milliseconds; the transaction outlives this.
OFFSETS_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Work:
    """What a batch says, ready to be committed."""

    turns: Sequence[tuple[Lane, Turn]]
    closings: Sequence[tuple[Due, Sealed]]
    #: Open revisions of sessions that stay.
    revisions: Sequence[tuple[Lane, Turn, Sealed]]
    #: With their lanes and sessions.
    chunks: Sequence[tuple[Lane, Session, Chunk]]
    #: Of every topic of every lane, moved or not: they fence a zombie.
    offsets: list[TopicPartition]
    #: The member of the group that read the batch.
    generation: Any


@dataclass(frozen=True, slots=True)
class Delivered:
    """Where records came to lie, as far as delivery reports told."""

    #: Ends of the lanes' sessions partitions.
    sessions_end: dict[int, int] = field(default_factory=dict)
    #: Offsets of chunks by their keys.
    chunks: dict[bytes, int] = field(default_factory=dict)


class Transactions:
    """One producer epoch. Of no more use after the first error."""

    def __init__(
        self, kafka: Mapping[str, Any], group: str, slot: int, stop: threading.Event
    ) -> None:
        """Take over the slot's transactional id; raises `Retryable` and `Fatal`."""
        self._stop = stop
        self._topics = events.event_topics()
        self._encoder = Encoder()
        self._delivered = Delivered()
        self._producer = Producer(
            {
                "linger.ms": 5,
                "compression.type": "lz4",
                "queue.buffering.max.messages": 1_000_000,
                **kafka,
                "message.max.bytes": 2_500_000,
                "transactional.id": f"{group}-{slot}",
                "transaction.timeout.ms": TRANSACTION_TIMEOUT_S * 1000,
                "acks": "all",
                "enable.idempotence": True,
            },
            logger=client_log(log),
        )
        lane_reader.translated(
            "take over the transactional id",
            lambda: self._producer.init_transactions(TRANSACTION_TIMEOUT_S),
        )

    def commit(self, work: Work, meanwhile: Callable[[], bool] = lambda: False) -> Delivered:
        """Where the records are.

        While the broker takes the offsets, `meanwhile` is called as long as it says that it has
        more to do; it must not touch what the transaction says.

        Raises `Retryable`: whether the transaction was committed is then not known; of these,
        `FencedError` when we may not be the ones to try again.
        """
        self._delivered = Delivered()
        committing = False
        try:
            self._producer.begin_transaction()
            for due, closing in work.closings:
                self._produce_closing(due, closing)
            for lane, turn, revision in work.revisions:
                self._produce_chain(lane, turn, revision)
            for lane, _, (key, chunk) in work.chunks:
                self._produce(
                    events.OPEN_SESSIONS_TOPIC,
                    partition=lane.index,
                    key=key,
                    value=self._encoder.encode("session_chunk", chunk),
                    headers=recovery.chunk_headers(chunk["number"]),
                    on_delivery=self._on_chunk,
                )
            for lane, turn in work.turns:
                for refused in turn.refused:
                    self._produce_dead_letter(lane, refused, None)
            self._send_offsets(work, meanwhile)
            committing = True
            self._commit_until_sure()
        except (KafkaException, BufferError) as error:
            reason = error.args[0]
            if not isinstance(reason, KafkaError):
                raise Retryable(f"couldn't produce: {error}") from error
            if not committing and not reason.fatal():
                self._abort()
            lane_reader.raise_if_fenced("commit a batch", reason)
            raise Retryable(f"couldn't commit a batch: {reason.str()}") from error
        return self._delivered

    def _send_offsets(self, work: Work, meanwhile: Callable[[], bool]) -> None:
        offsets, generation = work.offsets, work.generation
        try:
            answer_within(
                OFFSETS_TIMEOUT_S,
                lambda: self._producer.send_offsets_to_transaction(
                    offsets, generation, OFFSETS_TIMEOUT_S
                ),
                meanwhile,
            )
        except LateError:
            # The next producer fences this one: what it may still send does not count.
            raise Retryable(
                "couldn't commit a batch: no group coordinator took the offsets within"
                f" {OFFSETS_TIMEOUT_S:.0f} s"
            ) from None

    def _commit_until_sure(self) -> None:
        """A retriable timeout says nothing about the outcome: the same commit is asked again.

        Not for ever once the worker is to stop: the next start's `init_transactions` settles it.
        """
        began = time.monotonic()
        while True:
            try:
                self._producer.commit_transaction(COMMIT_POLL_S)
                return
            except KafkaException as error:
                late = time.monotonic() - began > TRANSACTION_TIMEOUT_S
                if not error.args[0].retriable() or (late and self._stop.is_set()):
                    raise

    def _abort(self) -> None:
        try:
            self._producer.abort_transaction(TRANSACTION_TIMEOUT_S)
        except KafkaException as error:
            # The next `init_transactions` settles it.
            log.warning("couldn't abort a transaction: %s", error.args[0].str())

    def _produce(self, topic: str, **record: Any) -> None:
        """Queue one record; a full queue is waited for, never dropped."""
        while True:
            try:
                self._producer.produce(topic, **record)
                return
            except BufferError:
                self._producer.poll(0.1)

    def _produce_chain(self, lane: Lane, turn: Turn, sealed: Sealed) -> None:
        key, partition = sealed.trace_id.encode(), lane.index
        self._produce(
            events.SESSIONS_TOPIC,
            partition=partition,
            key=key,
            value=sealed.chain,
            headers=recovery.session_headers(
                sealed.kind, turn.number, sealed.session, turn.positions
            ),
            on_delivery=self._on_session,
        )
        for _, finding in sealed.findings:
            self._produce(events.FINDINGS_TOPIC, partition=partition, key=key, value=finding)

    def _produce_closing(self, due: Due, closing: Sealed) -> None:
        self._produce_chain(due.lane, due.turn, closing)
        for refused in closing.refused:
            self._produce_dead_letter(due.lane, refused, closing)
        for chunk_key in due.session.chunks:
            self._produce(
                events.OPEN_SESSIONS_TOPIC,
                partition=due.lane.index,
                key=chunk_key,
                value=None,
                headers=recovery.chunk_headers(due.turn.number),
            )

    def _on_session(self, error: KafkaError | None, message: Message) -> None:
        lane, offset = message.partition(), message.offset()
        if error is None and lane is not None and offset is not None:
            ends = self._delivered.sessions_end
            ends[lane] = max(ends.get(lane, 0), offset + 1)

    def _on_chunk(self, error: KafkaError | None, message: Message) -> None:
        key, offset = message.key(), message.offset()
        if error is None and isinstance(key, bytes) and offset is not None:
            self._delivered.chunks[key] = offset

    def _produce_dead_letter(self, lane: Lane, refused: Refused, closing: Sealed | None) -> None:
        topic = self._topics[refused.topic]
        record = dead_letter(topic, lane.index, refused, closing)
        self._produce(
            events.DEAD_LETTERS_TOPIC,
            key=f"{topic}|{lane.index}|{refused.offset}".encode(),
            value=self._encoder.encode("dead_letter", record),
        )
