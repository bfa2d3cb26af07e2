"""Reading what a recovery needs from Kafka: offsets, log bounds, headers, events. Edge.

All reads are read_committed and outside the consumer group. `join` calls this between its batches.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from trailweave.schemas.client_log import client_log
from trailweave.schemas.errors import Fatal, Retryable
from trailweave.stream_processors import chunks
from trailweave.stream_processors.recovery import NUMBER

T = TypeVar("T")

log = logging.getLogger(__name__)

#: A request to the broker that takes longer counts as failed and is tried again.
REQUEST_TIMEOUT_S: Final = 10.0
#: A recovery read without progress for longer gives up: above the time after which the broker
#: itself ends a transaction that holds back the end of a partition.
STALL_S: Final = 60.0
_READ_BATCH: Final = 20_000


class Fetched(Protocol):
    """A message that a consumer returned: it always has a place; `error` says if it is one."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def timestamp(self) -> tuple[int, int]: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> list[tuple[str, bytes]] | None: ...
    def error(self) -> KafkaError | None: ...


def consume(consumer: Consumer, count: int, timeout_s: float) -> list[Fetched]:
    """The next messages, fewer when the time is up; raises `Retryable` or `Fatal`."""
    return translated(
        "read from Kafka",
        lambda: cast("list[Fetched]", consumer.consume(num_messages=count, timeout=timeout_s)),
    )


def reading_consumer(kafka: Mapping[str, Any], **extra: Any) -> Consumer:
    """A consumer without a group of its own: it only reads what it is assigned."""
    return Consumer(
        {
            "queued.max.messages.kbytes": 262_144,
            "fetch.queue.backoff.ms": 20,
            "fetch.message.max.bytes": 8_388_608,
            # The end of a partition is told when a fetch comes back empty: by default after half a
            # second, which a recovery would wait out twice for each of its lanes.
            "fetch.wait.max.ms": 10,
            **kafka,
            "group.id": f"trailweave-recovery-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            **extra,
        },
        logger=client_log(log),
    )


def group_consumer(
    kafka: Mapping[str, Any], group: str, instance: str, session_timeout_s: float
) -> Consumer:
    """A member of the join's group; `instance` is its `group.instance.id`."""
    return Consumer(
        {
            "queued.max.messages.kbytes": 131_072,
            # The default lets a queue that was full run dry for a second.
            "fetch.queue.backoff.ms": 20,
            # Of one partition at a time: a lane's topics then come side by side. With the default,
            # a megabyte, one topic ran ahead and its sessions waited in memory for the others.
            "fetch.message.max.bytes": 131_072,
            **kafka,
            "group.id": group,
            "group.instance.id": instance,
            # Co-partitioned lanes: partition i of every topic goes to the same member.
            "partition.assignment.strategy": "range",
            "session.timeout.ms": int(session_timeout_s * 1000),
            "heartbeat.interval.ms": int(session_timeout_s * 1000 / 4),
            # Above the transaction timeout: who is thrown out can't commit any more.
            "max.poll.interval.ms": 300_000,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        },
        logger=client_log(log),
    )


def translated(what: str, call: Callable[[], T]) -> T:
    """The call's answer; Kafka's exceptions become ours."""
    try:
        return call()
    except KafkaException as error:
        raise kafka_error(what, error.args[0]) from error


class FencedError(Retryable):
    """Our client is of no more use: our session has timed out, or our transaction; or another
    process has our slot; or it no longer gets anything."""


def kafka_error(what: str, error: KafkaError) -> Retryable | Fatal:
    """Ours for theirs: fatal ones stop the process, all others are tried again."""
    text = f"couldn't {what}: {error.str()} ({error.name()})"
    if error.code() in _FENCING or (error.code() == KafkaError._FATAL and "fenced" in error.str()):
        return FencedError(text)
    if error.fatal() or error.code() in _FATAL_CODES:
        return Fatal(text)
    return Retryable(text)


_FENCING: Final = {KafkaError._FENCED, KafkaError.FENCED_INSTANCE_ID}
_FATAL_CODES: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._AUTHENTICATION,
    # What a client's own fatal error is called in a message; `fatal()` is not set there.
    KafkaError._FATAL,
}


def raise_if_fenced(what: str, error: KafkaError) -> None:
    """Raise `FencedError` if that is what the error says."""
    problem = kafka_error(what, error)
    if isinstance(problem, FencedError):
        raise problem


def watermarks(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """Log start and high watermark, as the broker says now."""
    low, high = translated(
        f"ask the bounds of {topic}[{partition}]",
        lambda: consumer.get_watermark_offsets(
            TopicPartition(topic, partition), timeout=REQUEST_TIMEOUT_S, cached=False
        ),
    )
    return low, high


def committed(
    consumer: Consumer, topics: Sequence[str], partition: int
) -> list[tuple[str, int, str | None]]:
    """(topic, offset or -1, metadata) of one lane, waiting while a transaction settles them.

    For ever, if the broker has lost the end of that transaction, as Kafka does when a partition has
    no leader at that moment.
    """
    answer = translated(
        f"read the committed offsets of lane {partition}",
        lambda: consumer.committed(
            [TopicPartition(topic, partition) for topic in topics], timeout=REQUEST_TIMEOUT_S
        ),
    )
    found = {part.topic: part for part in answer}
    for part in answer:
        if part.error is not None:
            raise kafka_error(f"read the committed offset of {part.topic}", part.error)
    return [(t, found[t].offset, getattr(found[t], "metadata", None)) for t in topics]


def read_range(
    consumer: Consumer, ranges: Mapping[tuple[str, int], tuple[int, int]]
) -> Iterator[Fetched]:
    """Every committed record of each (topic, partition) from `start` up to, not including, `end`.

    A partition is done at an offset at or above its end, or when the broker says that its end, at
    or above ours, is reached: markers of transactions lie between records and are never delivered.
    """
    open_ends = {part: end for part, (start, end) in ranges.items() if start < end}
    consumer.assign([TopicPartition(t, p, ranges[t, p][0]) for t, p in open_ends])
    moved_at = time.monotonic()
    while open_ends:
        # Short, for a batch that stays below its size is handed over only when the time is up.
        messages = consume(consumer, _READ_BATCH, 0.02)
        if messages:
            moved_at = time.monotonic()
        elif time.monotonic() - moved_at > STALL_S:
            raise Retryable(f"couldn't read {sorted(open_ends)} to their ends: nothing more comes")
        for message in messages:
            part = (message.topic(), message.partition())
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise kafka_error(f"read {part[0]}[{part[1]}]", error)
            end = open_ends.get(part)
            if end is None:
                continue
            if message.offset() >= end:
                del open_ends[part]
            elif error is None:
                yield message
                if message.offset() == end - 1:
                    del open_ends[part]
    consumer.unassign()


def read_headers(
    consumer: Consumer, topic: str, partition: int, start: int, end: int
) -> list[dict[str, bytes]]:
    """The headers of every committed record in a range; bodies are not looked at."""
    low, _ = watermarks(consumer, topic, partition)
    found = read_range(consumer, {(topic, partition): (max(start, low), end)})
    return [dict(message.headers() or ()) for message in found]


def read_keys(consumer: Consumer, topic: str, partition: int) -> dict[bytes, int]:
    """The offset of the last committed record of each key, those that were deleted left out."""
    # The high watermark, not the last stable offset: what a transaction that is being settled
    # holds back must be waited for.
    low, high = watermarks(consumer, topic, partition)
    found: dict[bytes, int] = {}
    for message in read_range(consumer, {(topic, partition): (low, high)}):
        key = message.key() or b""
        found.pop(key, None)
        if message.value() is not None:
            found[key] = message.offset()
    return found


def events_in_chunks(consumer: Consumer, topic: str, partition: int, number: int) -> int:
    """Events in the chunks that were alive after the lane's transaction of this number."""
    low, high = watermarks(consumer, topic, partition)
    alive: dict[bytes, int] = {}
    for message in read_range(consumer, {(topic, partition): (low, high)}):
        written = int(dict(message.headers() or ())[NUMBER])
        key, value = message.key() or b"", message.value()
        if written <= number:
            alive[key] = 0 if value is None else len(chunks.read(value)["events"])
    return sum(alive.values())


#: Records between two wanted ones that are rather read over than sought past.
_READ_OVER_MAX: Final = 500


def read_at(
    consumer: Consumer, topic: str, partition: int, offsets: Iterable[int]
) -> Iterator[Fetched]:
    """The committed records at these offsets, as far as they are there, in order."""
    wanted, runs = sorted(set(offsets)), list[list[int]]()
    for offset in wanted:
        if runs and offset - runs[-1][-1] <= _READ_OVER_MAX:
            runs[-1].append(offset)
        else:
            runs.append([offset])
    for run in runs:
        found = read_range(consumer, {(topic, partition): (run[0], run[-1] + 1)})
        here = set(run)
        yield from (message for message in found if message.offset() in here)
