"""The built-in registry of writer schemas: a compacted topic, key = fingerprint, value = schema.

Every producer publishes what it writes, once per start; compaction keeps one. Workers read the
topic when they meet a fingerprint that they don't know. `standing` holds the rule; this is the
Kafka edge. One thread at a time.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from trailweave.schemas import events
from trailweave.schemas.errors import Fatal, Rejected, Retryable
from trailweave.schemas.standing import Standing, StandingRule, verified_schema

log = logging.getLogger(__name__)

#: Reading the topic to its end, a connection included; a day of producers' starts takes a second.
READ_TIMEOUT_S: Final = 15.0
#: An unknown fingerprint in every event must not mean a round trip to the broker for each.
REREAD_INTERVAL_S: Final = 1.0
_BATCH: Final = 500

_REFUSED: Final = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)


def schema_messages(types: Iterable[events.RecordType] | None = None) -> list[tuple[bytes, bytes]]:
    """Key and value to publish for each type (None: all that this version writes)."""
    kinds = events.all_types() if types is None else types
    return [
        (kind.fingerprint, json.dumps(kind.schema, separators=(",", ":")).encode())
        for kind in kinds
    ]


def publish(
    producer: Any,
    types: Iterable[events.RecordType] | None = None,
    *,
    timeout_s: float = 0.0,
    topic: str = events.SCHEMAS_TOPIC,
) -> int:
    """Publish the schemas of `types` (None: all) through a Kafka producer; how many.

    Without a timeout they are only queued, and leave with the producer's next polls. With one, this
    blocks until the broker has them all. Raises `Retryable` if it can't queue or deliver them.
    """
    messages = schema_messages(types)
    failed: list[str] = []

    def delivered(error: KafkaError | None, _message: object) -> None:
        if error is not None:
            failed.append(error.name())
            log.warning("couldn't publish a schema: %s", error.name())

    try:
        for key, value in messages:
            producer.produce(topic, key=key, value=value, on_delivery=delivered)
    except (BufferError, KafkaException) as error:
        raise Retryable(f"couldn't queue the schemas for {topic}: {type(error).__name__}") from None
    if timeout_s > 0 and (producer.flush(timeout_s) or failed):
        why = failed[0] if failed else f"no answer within {timeout_s:g} s"
        raise Retryable(f"couldn't publish the schemas to {topic}: {why}")
    return len(messages)


@dataclass(frozen=True, slots=True)
class _Published:
    schema: events.Json
    #: Broker time of the first publication in the topic; later ones repeat it.
    first_ms: int


class SchemaTopic:
    """Schemas of other versions, read from the topic on demand; see `standing.WriterStandings`.

    `config` is a Kafka client's; group settings in it are of no effect. A call blocks for
    `timeout_s` at most and raises `Retryable` if Kafka doesn't answer, `Fatal` if it refuses us.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        rule: StandingRule | None = None,
        timeout_s: float = READ_TIMEOUT_S,
        topic: str = events.SCHEMAS_TOPIC,
    ) -> None:
        self._config = dict(config)
        self._rule = rule or StandingRule()
        self._timeout_s = timeout_s
        self._topic = topic
        self._consumer: Consumer | None = None
        self._position = 0
        self._published: dict[bytes, _Published] = {}
        self._builtin = frozenset(kind.fingerprint for kind in events.all_types())
        #: Wall clock before the last reading that came to the end, and when it was by our counter.
        self._read_at_ms: int | None = None
        self._read_at_s: float | None = None

    def schema_of(self, key: bytes) -> events.Json | None:
        """The schema behind a fingerprint, or None while nobody has published one."""
        if key not in self._published and self._stale():
            self._read(None)
        found = self._published.get(key)
        return None if found is None else found.schema

    def standing(self, key: bytes, recorded_at_ms: int, now_ms: int) -> Standing:
        """Whether the schema counts for an event that was recorded at a time; `now_ms` is wall
        clock. See `standing.WriterStandings`."""
        if key in self._builtin:
            return "known"
        found = self._standing(key, recorded_at_ms)
        if found == "wait" and (self._stale() or self._rule.settled(recorded_at_ms, now_ms)):
            self._read(now_ms)
            found = self._standing(key, recorded_at_ms)
        return found

    def close(self) -> None:
        """Leave Kafka; what was read stays known."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _standing(self, key: bytes, recorded_at_ms: int) -> Standing:
        found = self._published.get(key)
        first_ms = None if found is None else found.first_ms
        return self._rule.standing(first_ms, recorded_at_ms, self._read_at_ms)

    def _stale(self) -> bool:
        return self._read_at_s is None or time.monotonic() - self._read_at_s >= REREAD_INTERVAL_S

    def _read(self, now_ms: int | None) -> None:
        """Read on to the end that the broker names now."""
        deadline = time.monotonic() + self._timeout_s
        # The clock is read before the end is asked for: what is published in between counts later.
        before_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        try:
            if self._consumer is None:
                self._consumer = self._open()
            end = self._end(self._consumer, deadline)
            while self._position < end:
                self._take(self._consumer, deadline)
        except KafkaException as error:
            # A consumer that failed may have lost its place; the next call starts a new one.
            self.close()
            raise self._translated(error.args[0]) from None
        self._read_at_ms = max(before_ms, self._read_at_ms or 0)
        self._read_at_s = time.monotonic()

    def _open(self) -> Consumer:
        ignored = ("group.instance.id", "group.protocol", "client.id")
        config = {key: value for key, value in self._config.items() if key not in ignored}
        consumer = Consumer(
            {
                # Its errors are raised; polled too rarely to hand on lines of its own.
                "log_level": 0,
                **config,
                # librdkafka asks for a group's name; nobody joins it and nothing is committed.
                "group.id": "trailweave-schemas",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "allow.auto.create.topics": False,
                # Publishing is no transaction, and one left open by anybody must not hide schemas
                # until it times out: what counts is when the broker took them.
                "isolation.level": "read_uncommitted",
            }
        )
        self._position = 0
        consumer.assign([TopicPartition(self._topic, 0, OFFSET_BEGINNING)])
        return consumer

    def _end(self, consumer: Consumer, deadline: float) -> int:
        left_s = max(0.1, deadline - time.monotonic())
        low, high = consumer.get_watermark_offsets(TopicPartition(self._topic, 0), left_s)
        if high < self._position:
            self.close()
            raise Retryable(f"{self._topic} is shorter than it was: reading it from its start")
        # Compaction leaves gaps; below the low mark there is nothing to wait for.
        self._position = max(self._position, low)
        return int(high)

    def _take(self, consumer: Consumer, deadline: float) -> None:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise Retryable(f"couldn't read {self._topic} to its end in {self._timeout_s:g} s")
        for message in consumer.consume(_BATCH, min(left_s, 0.2)):
            error = message.error()
            offset = message.offset() or 0
            if error is None:
                self._add(message)
                self._position = max(self._position, offset + 1)
            elif error.code() == KafkaError._PARTITION_EOF:
                # Only this tells of an end without a message: a transaction's marker, for one.
                self._position = max(self._position, offset)
            else:
                raise KafkaException(error)

    def _add(self, message: Message) -> None:
        key, value = message.key(), message.value()
        if not isinstance(key, bytes) or not isinstance(value, bytes):
            return
        if key in self._published or key in self._builtin:
            # The first one counts, for its time and its schema: repeats change nothing.
            return
        try:
            self._published[key] = _Published(verified_schema(key, value), message.timestamp()[1])
        except Rejected as error:
            where = f"{self._topic}/0/{message.offset()}"
            log.warning("ignored the schema at %s: %s", where, error.reason.detail)

    def _translated(self, error: KafkaError) -> Fatal | Retryable:
        message = f"couldn't read {self._topic}: {error.name()}"
        if error.code() in _REFUSED:
            return Fatal(f"{message}; allow this principal to read the topic")
        return Retryable(message)
