"""Sample files through a real Kafka: what was read is what lies in the topics, once."""

import contextlib
import json
import math
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from trailweave.producers.adapters.record import Context
from trailweave.producers.identity import Identity
from trailweave.producers.ingest import Report, ingest
from trailweave.producers.kafka import KafkaTransport
from trailweave.producers.transport import Producer
from trailweave.schemas import events
from trailweave.schemas.codec import Decoder, event_checker
from trailweave.schemas.hashing import TenantKey
from trailweave.schemas.validity import validity

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"
SAMPLES = Path(__file__).parents[1] / "unit/producers/adapters/expected_samples.json"
FORMATS = ("otlp", "opa", "vault", "mcp")
TOPICS = (*events.event_topics(), events.DEAD_LETTERS_TOPIC)
DEADLINE_S = 60.0

pytestmark = pytest.mark.skipif(
    not VECTORS.is_dir(), reason="the sample files beside the repository are not there"
)


def make_topics(bootstrap: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    wanted = {*TOPICS, events.HEARTBEATS_TOPIC, events.SCHEMAS_TOPIC}
    missing = sorted(wanted - set(admin.list_topics(timeout=10).topics))
    made = admin.create_topics([NewTopic(t, 4, 1) for t in missing]) if missing else {}
    for future in made.values():
        with contextlib.suppress(KafkaException):  # another test made it just now
            future.result()


def records(bootstrap: str) -> list[Any]:
    """Every record of the topics, to their present ends."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "ingest-test"})
    found = consumer.list_topics(timeout=10).topics
    starts: list[TopicPartition] = []
    ends: dict[tuple[str | None, int | None], int] = {}
    for topic in TOPICS:
        for partition in found[topic].partitions:
            place = TopicPartition(topic, partition)
            low, high = consumer.get_watermark_offsets(place, timeout=10)
            if high > low:
                starts.append(TopicPartition(topic, partition, low))
                ends[topic, partition] = high
    consumer.assign(starts)
    messages: list[Any] = []
    deadline = time.monotonic() + DEADLINE_S
    while ends and time.monotonic() < deadline:
        for message in consumer.consume(1000, 1.0):
            messages.append(message)
            where = message.topic(), message.partition()
            if (message.offset() or 0) + 1 >= ends.get(where, math.inf):
                del ends[where]
    consumer.close()
    assert not ends, "the topics did not end"
    return messages


def ingest_all(bootstrap: str, spool: Path, tenant: str) -> list[Report]:
    """Every sample of every format, as `trailweave ingest` sends it."""
    samples = json.loads(SAMPLES.read_text("utf-8"))
    transport = KafkaTransport({"bootstrap.servers": bootstrap}, spool)
    transport.start(Producer("ingest", tenant))
    reports = []
    for name in FORMATS:
        paths = [VECTORS / each["file"] for each in samples if each["format"] == name]
        who = Identity("service_account", name)
        context = Context(tenant, name, who, TenantKey("k1", b"made-up key"), capture="full")
        reports.append(ingest(paths, name, context, transport.send))
    assert transport.flush(DEADLINE_S)
    transport.close()
    return reports


def test_what_was_read_lies_in_the_topics_and_reading_again_adds_only_the_same_bytes(
    kafka: str, tmp_path: Path
) -> None:
    make_topics(kafka)
    tenant = f"ingest-{uuid.uuid4().hex[:12]}"
    first = ingest_all(kafka, tmp_path / "first", tenant)
    ingest_all(kafka, tmp_path / "second", tenant)
    decoder, checker = Decoder(), event_checker()
    copies: dict[str, list[bytes]] = {}
    letters: list[dict[str, Any]] = []
    for message in records(kafka):
        if message.topic() == events.DEAD_LETTERS_TOPIC:
            letters.append(decoder.decode(message.value())[1])
            continue
        _, head = validity(message.topic(), message.key(), message.value(), checker)
        if head.tenant == tenant:
            copies.setdefault(head.event_id, []).append(message.value())
    places = [(each["topic"], each["offset"]) for each in letters if each["tenant"] == tenant]

    assert sum(report.events.total() for report in first) * 2 == sum(map(len, copies.values()))
    assert {len(set(each)) for each in copies.values()} == {1}
    assert len(places) == 2 * sum(report.malformed for report in first)
    assert len(set(places)) == len(places) / 2
