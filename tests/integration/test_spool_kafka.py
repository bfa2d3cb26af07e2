"""Agents killed with SIGKILL: what they had spooled reaches Kafka through the next process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from trailweave.producers.drain import drain
from trailweave.producers.kafka import KafkaTransport
from trailweave.producers.transport import Producer
from trailweave.schemas import events
from trailweave.schemas.codec import Decoder

DEADLINE_S = 60.0
#: Records without end until it is killed; prints its count now and then.
AGENT = """
import sys
from trailweave.producers.kafka import KafkaTransport
from trailweave.producers.limits import KafkaLimits
from trailweave.producers.recorder import Recorder
bootstrap, spool, durable = sys.argv[1:]
limits = KafkaLimits(away_after_s=0.2, durable=durable == "durable")
transport = KafkaTransport({"bootstrap.servers": bootstrap, "log_level": "0"}, spool, limits)
recorder = Recorder(transport, tenant="acme", agent="victim")
with recorder.session("task") as session:
    print(session.trace_id, flush=True)
    while True:
        session.prompt_submitted("x")
        counts = recorder.counts
        if counts.recorded % 500 == 0:
            print(counts.recorded, counts.spooled, flush=True)
"""


def make_topics(bootstrap: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    wanted = {*events.event_topics(), events.HEARTBEATS_TOPIC, events.SCHEMAS_TOPIC}
    missing = sorted(wanted - set(admin.list_topics(timeout=10).topics))
    made = admin.create_topics([NewTopic(t, 4, 1) for t in missing]) if missing else {}
    for future in made.values():
        future.result()


def killed_agent(bootstrap: str, spool: Path, durable: str) -> tuple[str, int, int]:
    """Its trace, and how many events it had recorded and spooled at its last word."""
    with subprocess.Popen(
        [sys.executable, "-c", AGENT, bootstrap, str(spool), durable],
        stdout=subprocess.PIPE, text=True,
    ) as agent:  # fmt: skip
        assert agent.stdout is not None
        trace_id, recorded, spooled = agent.stdout.readline().strip(), 0, 0
        while spooled < 1000:
            recorded, spooled = map(int, agent.stdout.readline().split())
        os.kill(agent.pid, signal.SIGKILL)
    return trace_id, recorded, spooled


def sequences(bootstrap: str, trace_id: str) -> list[int]:
    """Of the trace's events, each event id once."""
    decoder, found = Decoder(), {}
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test"})
    ends: dict[int, int] = {}
    for partition in consumer.list_topics(timeout=10).topics["trailweave.prompts"].partitions:
        place = TopicPartition("trailweave.prompts", partition)
        low, high = consumer.get_watermark_offsets(place, timeout=10)
        if high > low:
            ends[partition] = high
    consumer.assign([TopicPartition("trailweave.prompts", p, 0) for p in ends])
    deadline = time.monotonic() + DEADLINE_S
    while ends and time.monotonic() < deadline:
        batch: list[Any] = consumer.consume(1000, 1.0)
        for message in batch:
            if message.key() == trace_id.encode():
                record = decoder.decode(message.value())[1]
                found[record["event_id"]] = record["trace_seq"]
            if message.offset() + 1 >= ends.get(message.partition(), 1 << 62):
                del ends[message.partition()]
    consumer.close()
    return sorted(found.values())


def test_what_a_killed_agent_had_spooled_is_sent_by_the_next_process(
    kafka: str, tmp_path: Path
) -> None:
    make_topics(kafka)
    trace_id, _, spooled = killed_agent("127.0.0.1:1", tmp_path, "plain")
    transport = KafkaTransport({"bootstrap.servers": kafka}, tmp_path)
    transport.start(Producer("next", "acme"))
    flushed = transport.flush(DEADLINE_S)
    transport.close()
    found = sequences(kafka, trace_id)

    assert flushed
    assert transport.counts.adopted >= spooled
    assert transport.counts.recorded == 0
    assert len(found) == transport.counts.adopted
    assert not list(tmp_path.rglob("*.segment"))


def test_durable_events_survive_the_kill_without_a_gap(kafka: str, tmp_path: Path) -> None:
    make_topics(kafka)
    trace_id, recorded, _ = killed_agent("127.0.0.1:1", tmp_path, "durable")
    drained = drain(tmp_path, {"bootstrap.servers": kafka}, DEADLINE_S)
    found = sequences(kafka, trace_id)

    assert drained.finished
    assert drained.damaged <= 1
    assert len(found) >= recorded
    assert found == list(range(len(found)))


def test_durable_events_reach_a_kafka_that_is_there(kafka: str, tmp_path: Path) -> None:
    from trailweave.producers.limits import KafkaLimits
    from trailweave.producers.recorder import Recorder

    make_topics(kafka)
    transport = KafkaTransport({"bootstrap.servers": kafka}, tmp_path, KafkaLimits(durable=True))
    with (
        Recorder(transport, tenant="acme", agent="durable") as recorder,
        recorder.session("task") as session,
    ):
        for _ in range(1000):
            session.prompt_submitted("x")

    assert transport.counts.delivered == 1002
    assert sequences(kafka, session.trace_id) == list(range(1002))
    assert not list(tmp_path.rglob("*.segment"))
