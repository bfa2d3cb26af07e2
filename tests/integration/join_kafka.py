"""What the tests of the join on real Kafka share: topics, workers in threads, and a checker.

The checker reads only what was stored, as any outsider would: the event topics, and the sessions,
findings and dead letters that were committed. It shares no state with the join.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from trailweave.schemas import events, ids
from trailweave.schemas.codec import Decoder
from trailweave.schemas.standing import WriterStandings
from trailweave.schemas.topics import load_topics
from trailweave.stream_processors import lane_reader
from trailweave.stream_processors.join import JoinSettings, run
from trailweave.stream_processors.lanes import Metadata
from trailweave.stream_processors.metrics import JoinMetrics
from trailweave.stream_processors.session import ClosingTimes

from tests.unit.stream_processors.builders import Made, Trace

DEADLINE_S: Final = 40.0
LANES: Final = 4
#: The least that a broker allows by default.
SESSION_TIMEOUT_S: Final = 6.0
TIMES: Final = ClosingTimes(grace_ms=1_000, idle_ms=2_500, unknown_schema_wait_ms=1_000)

Place = tuple[str, int, int]


def until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> bool:
    end = time.monotonic() + deadline_s
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return met


def make_topics(address: str, lanes: int) -> None:
    admin = AdminClient({"bootstrap.servers": address})
    wanted = [
        NewTopic(topic.name, topic.partitions, 1, config=dict(topic.config))
        for topic in load_topics(lanes)
    ]
    for made in admin.create_topics(wanted).values():
        made.result(DEADLINE_S)


def join_settings(address: str, slot: int = 0, **settings: Any) -> JoinSettings:
    return JoinSettings(
        {"bootstrap.servers": address},
        slot=slot,
        **{"times": TIMES, "session_timeout_s": SESSION_TIMEOUT_S, "linger_s": 0.1, **settings},
    )


@dataclass
class Worker:
    """`join.run` in a thread, as a process would run it."""

    settings: JoinSettings
    metrics: JoinMetrics = field(default_factory=JoinMetrics)
    schemas: WriterStandings | None = None
    error: BaseException | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            run(self.settings, self.stopping, self.metrics, self.schemas)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def figure(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"trailweave_join_{name}", labels) or 0.0

    def lanes(self) -> set[str]:
        """The lanes that it reports of."""
        return {
            sample.labels["lane"]
            for metric in self.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == "trailweave_join_held_events"
        }

    def stop(self) -> None:
        self.stopping.set()
        self._thread.join(DEADLINE_S)
        assert not self.running, "the worker didn't stop"


@contextlib.contextmanager
def joining(
    address: str, slot: int = 0, schemas: WriterStandings | None = None, **settings: Any
) -> Iterator[Worker]:
    """A worker that must still be well when the test is through with it."""
    worker = Worker(join_settings(address, slot, **settings), schemas=schemas)
    try:
        yield worker
    finally:
        worker.stop()
    assert worker.error is None, worker.error


class Feed:
    """Sends events as producers do, and remembers where the broker put each."""

    def __init__(self, address: str, **settings: Any) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": address,
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 5,
                **settings,
            }
        )
        self.places: list[Place] = []

    def send(self, *made: Made) -> None:
        for event in made:
            self.send_bytes(events.event_topics()[event.topic], event.key, event.value)

    def send_bytes(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        def delivered(error: KafkaError | None, message: Any) -> None:
            assert error is None, error
            self.places.append((message.topic(), message.partition(), message.offset()))

        self._producer.produce(topic, value, key, on_delivery=delivered)
        self._producer.poll(0)

    def flush(self) -> list[Place]:
        """All places so far, once the broker has everything."""
        assert self._producer.flush(DEADLINE_S) == 0
        return self.places


def send_sessions(feed: Feed, count: int) -> list[str]:
    found = []
    for _ in range(count):
        trace = new_trace()
        feed.send(*trace.whole(2))
        found.append(trace.trace_id)
    feed.flush()
    return found


@dataclass(frozen=True)
class Stored:
    """What is committed in the topics that the join writes."""

    #: Records that take their events for good, with their headers.
    chains: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, bytes]] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)
    letters: list[dict[str, Any]] = field(default_factory=list)
    #: Records of sessions that were still open.
    revisions: list[dict[str, Any]] = field(default_factory=list)

    def of(self, trace_id: str) -> list[dict[str, Any]]:
        return [chain for chain in self.chains if chain["trace_id"] == trace_id]

    def revisions_of(self, trace_id: str) -> list[dict[str, Any]]:
        return [said for said in self.revisions if said["trace_id"] == trace_id]

    def headers_of(self, trace_id: str) -> list[dict[str, bytes]]:
        key = trace_id.encode()
        return [found for found in self.headers if found["session"].startswith(key)]

    def letter_at(self, place: Place) -> list[dict[str, Any]]:
        return [x for x in self.letters if (x["topic"], x["partition"], x["offset"]) == place]

    def taken(self) -> int:
        """Input offsets that are accounted for, duplicates by their count."""
        events_and_repeats: int = sum(c["events"] + c["duplicates"] for c in self.chains)
        return events_and_repeats + len(self.letters)


def read_all(address: str, topics: list[str], isolation: str = "read_committed") -> Iterator[Any]:
    """Every record of the topics up to the ends that the broker names now."""
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "checker",
            "isolation.level": isolation,
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    try:
        described = consumer.list_topics(timeout=DEADLINE_S).topics
        parts = [(topic, p) for topic in topics for p in described[topic].partitions]
        ends = {}
        for topic, partition in parts:
            _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), DEADLINE_S)
            ends[topic, partition] = end
        consumer.assign([TopicPartition(topic, partition, 0) for topic, partition in parts])
        left = {part for part, end in ends.items() if end}
        deadline = time.monotonic() + DEADLINE_S
        while left:
            assert time.monotonic() < deadline, f"couldn't read {left} to their ends"
            message: Any
            for message in consumer.consume(10_000, 0.2):
                part = (message.topic(), message.partition())
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF and message.offset() >= ends[part]:
                    left.discard(part)
    finally:
        consumer.close()


def read_stored(address: str) -> Stored:
    stored, decoder = Stored(), Decoder()
    topics = [events.SESSIONS_TOPIC, events.FINDINGS_TOPIC, events.DEAD_LETTERS_TOPIC]
    for message in read_all(address, topics):
        name, record = decoder.decode(message.value())
        if name == "chain" and record["state"] == "open":
            stored.revisions.append(record)
        elif name == "chain":
            stored.chains.append(record)
            stored.headers.append(dict(message.headers()))
        elif name == "finding":
            stored.findings.append(record)
        else:
            stored.letters.append(record)
    return stored


def wait_for(address: str, condition: Callable[[Stored], bool]) -> Stored:
    """What is stored once it meets a condition, or at the deadline."""
    found = Stored()

    def met() -> bool:
        nonlocal found
        found = read_stored(address)
        return condition(found)

    until(met)
    return found


def faults(sent: list[Place], stored: Stored) -> list[str]:
    """Where what is stored does not account for what was sent, exactly once each.

    A chain names the places of its events and counts its duplicates. So per place no more than one
    naming, and what nobody names must be as many as the duplicates that are counted.
    """
    named = Counter(
        (place["topic"], place["partition"], place["offset"])
        for chain in stored.chains
        for place in chain["evidence"]
    )
    named.update((x["topic"], x["partition"], x["offset"]) for x in stored.letters)
    found = [f"{place} was taken {times} times" for place, times in named.items() if times > 1]
    found += [f"{place} was never sent" for place in sorted(named.keys() - set(sent))]
    unnamed = sorted(set(sent) - named.keys())
    duplicates = sum(chain["duplicates"] for chain in stored.chains)
    if len(unnamed) != duplicates:
        found.append(f"{len(unnamed)} unnamed, {duplicates} duplicates: {unnamed[:5]}")
    for chain in stored.chains:
        if chain["events"] != len(chain["evidence"]):
            found.append(f"{chain['trace_id']} counts {chain['events']} events")
    letters = Counter(
        (x["tenant"], x["trace_id"]) for x in stored.letters if x["trace_id"] is not None
    )
    counted: Counter[tuple[str, str]] = Counter()
    for chain in stored.chains:
        if chain["dead_lettered"]:
            counted[chain["tenant"], chain["trace_id"]] += chain["dead_lettered"]
    if letters != counted:
        found.append(f"dead letters of sessions: {letters} stored, {counted} counted")
    return found + finding_faults(stored)


def finding_faults(stored: Stored) -> list[str]:
    """Each finding is stored as often as chains name it: twice if its trace closed twice."""
    records = stored.chains + stored.revisions
    named = Counter(f["finding_id"] for chain in records for f in chain["findings"])
    written = Counter(finding["finding_id"] for finding in stored.findings)
    differ = sorted((named - written) + (written - named))
    return [f"findings {differ[:5]} differ"] if differ else []


def committed(address: str, change: list[TopicPartition] | None = None) -> list[TopicPartition]:
    """The join's committed offsets, after a change that a person makes."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "trailweave-join"})
    try:
        if change is not None:
            consumer.commit(offsets=change, asynchronous=False)
        every = [TopicPartition(t, p) for t in events.event_topics() for p in range(LANES)]
        return [part for part in consumer.committed(every, DEADLINE_S) if part.offset >= 0]
    finally:
        consumer.close()


def live_chunks(address: str) -> dict[bytes, bytes]:
    """What a compaction of the topic leaves."""
    found: dict[bytes, bytes] = {}
    for message in read_all(address, [events.OPEN_SESSIONS_TOPIC]):
        if message.value() is None:
            found.pop(message.key(), None)
        else:
            found[message.key()] = message.value()
    return found


def replayed(address: str) -> int:
    """Offsets that the next start would read again."""
    found = 0
    for part in committed(address):
        meta = Metadata.parse(str(getattr(part, "metadata", "")))
        assert meta is not None
        found += part.offset - meta.low
    return found


def in_chunks(address: str) -> int:
    """Events that are in chunks after each lane's last transaction."""
    numbers = {}
    for part in committed(address):
        meta = Metadata.parse(str(getattr(part, "metadata", "")))
        assert meta is not None
        numbers[part.partition] = meta.number
    reader = lane_reader.reading_consumer({"bootstrap.servers": address})
    try:
        return sum(
            lane_reader.events_in_chunks(reader, events.OPEN_SESSIONS_TOPIC, lane, number)
            for lane, number in numbers.items()
        )
    finally:
        reader.close()


def held(worker: Worker, what: str = "events") -> float:
    return sum(worker.figure(f"held_{what}", lane=lane) for lane in worker.lanes())


def new_trace(tenant: str = "acme") -> Trace:
    """A trace of its own; its event ids must not repeat those of other traces."""
    return Trace(ids.new_trace_id(), tenant)


def has_all(traces: list[str], stored: Stored) -> bool:
    return {chain["trace_id"] for chain in stored.chains} >= set(traces)


def own(stored: Stored, traces: list[str], places: list[Place]) -> Stored:
    """Only what this test sent: the topics are shared with the tests before."""
    sent = set(places)
    chains = [chain for chain in stored.chains if chain["trace_id"] in traces]
    return Stored(
        chains,
        [],
        [finding for finding in stored.findings if finding["trace_id"] in traces],
        [x for x in stored.letters if (x["topic"], x["partition"], x["offset"]) in sent],
        [revision for revision in stored.revisions if revision["trace_id"] in traces],
    )


def check(address: str, feed: Feed, traces: list[str]) -> None:
    stored = own(read_stored(address), traces, feed.places)
    assert faults(feed.places, stored) == []


def group_is_empty(address: str) -> bool:
    admin = AdminClient({"bootstrap.servers": address})
    described = admin.describe_consumer_groups(["trailweave-join"])["trailweave-join"]
    return not described.result(DEADLINE_S).members
