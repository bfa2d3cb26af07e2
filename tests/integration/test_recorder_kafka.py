"""The Recorder on a real Kafka: delivery, outages, and what it costs the caller."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from trailweave.deploy.local.engines import KafkaEngine
from trailweave.producers.kafka import KafkaTransport
from trailweave.producers.limits import KafkaLimits
from trailweave.producers.recorder import Recorder
from trailweave.producers.transport import Counts
from trailweave.schemas import events
from trailweave.schemas.codec import Decoder
from trailweave.schemas.hashing import TenantKey

TOPICS = (*events.event_topics(), events.HEARTBEATS_TOPIC, events.SCHEMAS_TOPIC)
DEADLINE_S = 60.0
#: Far above the few ten microseconds seen, so that a busy machine fails nobody.
COST_US_MAX = 150.0


def make_topics(bootstrap: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    missing = set(TOPICS) - set(admin.list_topics(timeout=10).topics)
    made = admin.create_topics([NewTopic(t, 4, 1) for t in sorted(missing)]) if missing else {}
    for future in made.values():
        future.result()


def read(bootstrap: str, topics: tuple[str, ...]) -> list[Any]:
    """Every record of the topics, to their present ends."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test"})
    found = consumer.list_topics(timeout=10).topics
    ends: dict[tuple[str, int], tuple[int, int]] = {}
    for topic in topics:
        for partition in found[topic].partitions:
            place = TopicPartition(topic, partition)
            low, high = consumer.get_watermark_offsets(place, timeout=10)
            if high > low:
                ends[topic, partition] = (low, high)
    consumer.assign([TopicPartition(t, p, low) for (t, p), (low, _) in ends.items()])
    messages: list[Any] = []
    deadline = time.monotonic() + DEADLINE_S
    while ends and time.monotonic() < deadline:
        batch: list[Any] = consumer.consume(1000, 1.0)
        messages += batch
        for message in batch:
            at = message.topic(), message.partition()
            if at in ends and message.offset() + 1 >= ends[at][1]:
                del ends[at]
    consumer.close()
    assert not ends, "the topics did not end"
    return messages


def sequences(bootstrap: str, producer_id: str) -> list[int]:
    """The sequence numbers of the producer's events, each event id once."""
    decoder, found = Decoder(), {}
    for message in read(bootstrap, events.event_topics()):
        record = decoder.decode(message.value())[1]
        if record["producer_id"] == producer_id:
            found[record["event_id"]] = record["trace_seq"]
    return sorted(found.values())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def test_a_session_arrives_in_one_partition_with_heartbeats_and_schemas(
    kafka: str, tmp_path: Path
) -> None:
    make_topics(kafka)
    transport = KafkaTransport({"bootstrap.servers": kafka}, tmp_path)
    with Recorder(transport, tenant="acme", agent="arrival") as recorder:
        with recorder.session("task") as session, session.tool_call("pay") as call:
            call.result = 1
        flushed = recorder.flush(DEADLINE_S)
    decoder = Decoder()
    mine = [m for m in read(kafka, events.event_topics()) if m.key() == session.trace_id.encode()]
    beats = [
        decoder.decode(message.value())[1]
        for message in read(kafka, (events.HEARTBEATS_TOPIC,))
        if message.key() == recorder.producer_id.encode()
    ]
    schemas = {message.key() for message in read(kafka, (events.SCHEMAS_TOPIC,))}

    assert flushed
    assert len(mine) == 4
    assert len({message.partition() for message in mine}) == 1
    assert transport.counts == Counts(recorded=4, delivered=4)
    assert [beat["heartbeat_seq"] for beat in beats] == list(range(len(beats)))
    assert (beats[-1]["final"], beats[-1]["recorded"], beats[-1]["delivered"]) == (True, 4, 4)
    assert schemas >= {kind.fingerprint for kind in events.event_types().values()}
    assert not list(tmp_path.rglob("*.segment"))


@pytest.mark.parametrize("outage", ["stopped", "killed"])
def test_nothing_is_lost_while_kafka_is_away(tmp_path: Path, outage: str) -> None:
    with KafkaEngine(tmp_path / "kafka") as engine:
        make_topics(engine.address)
        config = {"bootstrap.servers": engine.address, "log_level": "0"}
        # A client that finds nobody for long is made anew.
        limits = KafkaLimits(away_after_s=0.5, renew_after_s=2.0)
        transport = KafkaTransport(config, tmp_path / "spool", limits)
        with Recorder(transport, tenant="acme", agent="clerk") as recorder:
            first = transport._client
            with recorder.session("task") as session:
                for _ in range(200):
                    session.prompt_submitted("before")
                if outage == "stopped":
                    os.kill(engine.pid, signal.SIGSTOP)
                else:
                    engine.kill()
                for _ in range(200):
                    session.prompt_submitted("during")
                wait_until(lambda: transport.delayed and recorder.counts.spooled >= 200)
                wait_until(lambda: transport._client is not first)
                for _ in range(200):
                    session.prompt_submitted("while it is known")
                if outage == "stopped":
                    os.kill(engine.pid, signal.SIGCONT)
                else:
                    engine.start()
            delivered = recorder.flush(DEADLINE_S)
            counts = recorder.counts

        assert delivered
        assert counts == Counts(recorded=602, delivered=602)
        assert sequences(engine.address, recorder.producer_id) == list(range(602))
        assert not list((tmp_path / "spool").rglob("*.segment"))


def test_what_kafka_refuses_for_good_is_kept_and_can_be_sent_later(
    kafka: str, tmp_path: Path, topic_prefix: str
) -> None:
    from trailweave.producers.drain import drain
    from trailweave.producers.transport import Producer

    topic = f"{topic_prefix}small"
    admin = AdminClient({"bootstrap.servers": kafka})
    small = NewTopic(topic, 1, 1, config={"max.message.bytes": "1000"})
    admin.create_topics([small])[topic].result()
    transport = KafkaTransport({"bootstrap.servers": kafka}, tmp_path)
    transport.start(Producer("refused", "acme"))
    transport.send(topic, b"k", os.urandom(5000))
    # In the same batch, which Kafka refuses as a whole.
    transport.send(topic, b"k", b"small")
    transport.flush(DEADLINE_S)
    transport.close()
    counts = transport.counts
    admin.delete_topics([topic])[topic].result()
    wait_until(lambda: topic not in admin.list_topics(timeout=10).topics)
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result()
    untold = drain(tmp_path, {"bootstrap.servers": kafka}, DEADLINE_S)
    told = drain(tmp_path, {"bootstrap.servers": kafka}, DEADLINE_S, failed=True)

    assert counts == Counts(recorded=2, delivered=1, failed=1)
    assert (untold.sent, told.sent, told.finished) == (0, 1, True)
    assert [len(message.value()) for message in read(kafka, (topic,))] == [5000]


def test_recording_costs_the_caller_some_ten_microseconds(kafka: str, tmp_path: Path) -> None:
    make_topics(kafka)
    arguments = {"query": "select * from customers where region = 4", "limit": 10}
    transport = KafkaTransport({"bootstrap.servers": kafka}, tmp_path)
    costs = []
    key = TenantKey("k1", b"a key for tests")
    with (
        Recorder(transport, tenant="acme", agent="cost", key=key) as recorder,
        recorder.session("task") as session,
    ):
        for _ in range(5):
            began = time.thread_time()
            for _ in range(1000):
                session.tool_requested("query", arguments, server="crm", action="read")
            costs.append((time.thread_time() - began) * 1000)

    assert min(costs) < COST_US_MAX, f"{min(costs):.1f} us an event"


def test_many_threads_lose_and_repeat_nothing(kafka: str, tmp_path: Path) -> None:
    make_topics(kafka)
    limits = KafkaLimits(memory_events_max=100)
    transport = KafkaTransport({"bootstrap.servers": kafka}, tmp_path, limits)
    with Recorder(transport, tenant="acme", agent="threads") as recorder:
        with recorder.session("task") as session:

            def work() -> None:
                for _ in range(500):
                    session.prompt_submitted("x")

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert recorder.flush(DEADLINE_S)

    assert transport.counts == Counts(recorded=2002, delivered=2002)
    assert sequences(kafka, recorder.producer_id) == list(range(2002))
