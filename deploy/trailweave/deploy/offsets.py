"""What Kafka knows of topics and groups, for `account` and `status`: ids, bounds, commits."""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trailweave.deploy.clients import consumer
from trailweave.deploy.settings import Settings
from trailweave.schemas.errors import Retryable

if TYPE_CHECKING:
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

REQUEST_TIMEOUT_S: Final = 30.0
COORDINATOR_POLL_S: Final = 0.1
READ_BATCH: Final = 50_000
READ_POLL_S: Final = 0.1
READ_TIMEOUT_S: Final = 30.0

#: Topic and partition.
Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Committed:
    """Where a group stands in one partition, and what it noted there."""

    offset: int
    metadata: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """The log of one partition: `end` is the first offset that no committed reader sees yet."""

    start: int
    end: int


def topic_ids(client: "AdminClient", topics: Iterable[str]) -> dict[str, tuple[uuid.UUID, int]]:
    """Id and number of partitions of each topic that exists."""
    from confluent_kafka import TopicCollection

    known = client.list_topics(timeout=REQUEST_TIMEOUT_S).topics
    names = [topic for topic in topics if topic in known]
    if not names:
        return {}
    asked = client.describe_topics(TopicCollection(names), request_timeout=REQUEST_TIMEOUT_S)
    found = {}
    for name, answer in asked.items():
        description = answer.result()
        found[name] = (_uuid(description.topic_id), len(description.partitions))
    return found


def _uuid(given: object) -> uuid.UUID:
    high = given.get_most_significant_bits() % 2**64  # type: ignore[attr-defined]
    low = given.get_least_significant_bits() % 2**64  # type: ignore[attr-defined]
    return uuid.UUID(int=high << 64 | low)


def committed(settings: Settings, group: str, places: Iterable[Place]) -> dict[Place, Committed]:
    """The offsets that a group has committed; waits for those of a transaction under way."""
    from confluent_kafka import TopicPartition

    wanted = [TopicPartition(*place) for place in places]
    if not wanted:
        return {}
    # Not the admin client's `list_consumer_group_offsets`: when the group's coordinator is not
    # known yet, as just after the first start, librdkafka ends the process there (its issue 5040).
    reader = consumer(settings, group)
    try:
        parts = _when_coordinated(lambda: reader.committed(wanted, timeout=REQUEST_TIMEOUT_S))
    finally:
        reader.close()
    return {
        (part.topic, part.partition): Committed(part.offset, part.metadata or "")
        for part in parts
        if part.error is None and part.offset >= 0
    }


def _when_coordinated(ask: Callable[[], list["TopicPartition"]]) -> list["TopicPartition"]:
    """The answer of a group's coordinator, asked again while Kafka is still choosing one."""
    from confluent_kafka import KafkaError, KafkaException

    choosing = (
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    )
    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in choosing or time.monotonic() > deadline:
                raise
        time.sleep(COORDINATOR_POLL_S)


def bounds(client: "AdminClient", places: Iterable[Place]) -> dict[Place, Bounds]:
    """Start and end of each partition; the end as a reader of committed data sees it."""
    from confluent_kafka import IsolationLevel, TopicPartition
    from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

    wanted = [TopicPartition(topic, partition) for topic, partition in places]
    if not wanted:
        return {}
    answers = [
        client.list_offsets(
            dict.fromkeys(wanted, spec),
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=REQUEST_TIMEOUT_S,
        )
        for spec in (OffsetSpec.earliest(), OffsetSpec.latest())  # type: ignore[no-untyped-call]
    ]
    starts, ends = (
        {(part.topic, part.partition): answer.result().offset for part, answer in asked.items()}
        for asked in answers
    )
    return {place: Bounds(starts[place], ends[place]) for place in starts}


def count_records(
    settings: Settings,
    ranges: Mapping[Place, Bounds],
    told: Callable[[int], None] | None = None,
) -> dict[Place, int]:
    """How many records lie in each range, by reading them: offsets have gaps, records count.

    Raises `Retryable` when Kafka doesn't hand out the end of a range in time.
    """
    from confluent_kafka import TopicPartition

    counts = dict.fromkeys(ranges, 0)
    waiting = {place for place, range_ in ranges.items() if range_.start < range_.end}
    reader = consumer(
        settings, "trailweave-account", **{"enable.partition.eof": "true", "check.crcs": "false"}
    )
    try:
        reader.assign([TopicPartition(*place, ranges[place].start) for place in waiting])
        quiet_since = time.monotonic()
        while waiting:
            # A call waits for a whole batch or for its timeout; near the end there is no batch.
            messages = reader.consume(READ_BATCH, READ_POLL_S)
            if messages:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > READ_TIMEOUT_S:
                place = min(waiting)
                raise Retryable(
                    f"couldn't read {place[0]}/{place[1]} up to {ranges[place].end}: Kafka sent"
                    " nothing; try again"
                )
            for message in messages:
                place = (message.topic() or "", message.partition() or 0)
                at_end, offset = message.error() is not None, message.offset() or 0
                if not at_end and offset < ranges[place].end:
                    counts[place] += 1
                if at_end or offset >= ranges[place].end - 1:
                    waiting.discard(place)
            if told is not None:
                told(sum(counts.values()))
    finally:
        reader.close()
    return counts
