"""The registry of writer schemas on a real Kafka."""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported, not declared
    AdminClient,
    ConfigResource,
    NewTopic,
)
from trailweave.schemas import events
from trailweave.schemas.codec import SINGLE_OBJECT, Decoder, Encoder
from trailweave.schemas.errors import Retryable
from trailweave.schemas.examples import example
from trailweave.schemas.schema_topic import SchemaTopic, publish
from trailweave.schemas.standing import CLOCK_SLACK_MS, StandingRule
from trailweave.schemas.topics import load_topics

TIMEOUT_S = 20.0
RULE = StandingRule(wait_ms=2_000)
TOOL = events.event_types()["tool_requested"]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def topic(kafka: str, topic_prefix: str) -> str:
    """A schemas topic of this test's own, set up as `topics.yaml` says."""
    name = topic_prefix + events.SCHEMAS_TOPIC
    _create(kafka, name)
    return name


def _create(kafka: str, name: str) -> None:
    planned = next(t for t in load_topics() if t.name == events.SCHEMAS_TOPIC)
    admin = AdminClient({"bootstrap.servers": kafka})
    new = NewTopic(name, num_partitions=1, replication_factor=1, config=dict(planned.config))
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            admin.create_topics([new])[name].result(TIMEOUT_S)
        except KafkaException:
            # A deleted topic's name is free a moment later.
            if time.monotonic() > deadline:
                raise
        else:
            break
    # The controller has it; the broker says so a moment later, on a busy machine.
    while name not in admin.list_topics(timeout=TIMEOUT_S).topics:
        assert time.monotonic() < deadline


@pytest.fixture
def producer(kafka: str) -> Producer:
    """Any producer's."""
    return Producer({"bootstrap.servers": kafka, "enable.idempotence": True})


@pytest.fixture
def schemas(kafka: str, topic: str) -> Iterator[SchemaTopic]:
    """A worker's view of the topic."""
    source = SchemaTopic({"bootstrap.servers": kafka}, rule=RULE, topic=topic)
    yield source
    source.close()


def _newer() -> events.RecordType:
    """tool_requested as a later version may have it."""
    more = {"name": "colour", "type": ["null", "string"], "default": None, "doc": "-"}
    schema = {**TOOL.schema, "fields": [*TOOL.schema["fields"], more]}
    return events.record_type("tool_requested", "", schema)


def _put(producer: Producer, topic: str, key: bytes, value: bytes) -> None:
    producer.produce(topic, key=key, value=value)
    assert producer.flush(TIMEOUT_S) == 0


def test_an_event_of_a_newer_version_is_read_once_its_schema_is_published(
    producer: Producer, topic: str, schemas: SchemaTopic
) -> None:
    newer = _newer()
    decoder = Decoder(schemas=schemas)
    body = Encoder().encode("tool_requested", example("tool_requested"))[10:]
    value = SINGLE_OBJECT + newer.fingerprint + body + b"\x00"
    assert not decoder.knows(newer.fingerprint)

    assert publish(producer, [newer], timeout_s=TIMEOUT_S, topic=topic) == 1
    deadline = time.monotonic() + TIMEOUT_S
    while not decoder.knows(newer.fingerprint) and time.monotonic() < deadline:
        pass

    assert decoder.decode(value) == decoder.decode(SINGLE_OBJECT + TOOL.fingerprint + body)


def test_a_schema_is_waited_for_and_then_unknown_however_late_it_comes(
    producer: Producer, topic: str, schemas: SchemaTopic
) -> None:
    newer = _newer()
    now = _now_ms()
    long_ago = now - 100_000
    assert schemas.standing(TOOL.fingerprint, long_ago, now) == "known"
    assert schemas.standing(newer.fingerprint, now, now) == "wait"
    assert schemas.standing(newer.fingerprint, long_ago, now) == "unknown"

    publish(producer, [newer], timeout_s=TIMEOUT_S, topic=topic)
    later = _now_ms() + RULE.wait_ms + CLOCK_SLACK_MS + 1
    late = SchemaTopic(schemas._config, rule=RULE, topic=topic)

    # Whoever reads after the publication answers as whoever read before it.
    assert late.standing(newer.fingerprint, long_ago, later) == "unknown"
    assert late.standing(newer.fingerprint, now, later) == "known"
    assert schemas.standing(newer.fingerprint, long_ago, later) == "unknown"
    assert schemas.standing(newer.fingerprint, now, later) == "known"
    late.close()


def test_repeated_publications_change_nothing(
    producer: Producer, topic: str, schemas: SchemaTopic
) -> None:
    newer = _newer()
    publish(producer, [newer], timeout_s=TIMEOUT_S, topic=topic)
    recorded = _now_ms()
    for _ in range(3):
        publish(producer, timeout_s=TIMEOUT_S, topic=topic)
        publish(producer, [newer], timeout_s=TIMEOUT_S, topic=topic)

    assert schemas.schema_of(newer.fingerprint) == newer.schema
    assert schemas.standing(newer.fingerprint, recorded, _now_ms()) == "known"


def test_what_lies_about_itself_is_ignored_with_a_warning(
    producer: Producer, topic: str, schemas: SchemaTopic, caplog: pytest.LogCaptureFixture
) -> None:
    newer = _newer()
    _put(producer, topic, newer.fingerprint, b'{"type": "record", "name": "other"}')
    _put(producer, topic, newer.fingerprint, b"not JSON")
    publish(producer, [newer], timeout_s=TIMEOUT_S, topic=topic)

    with caplog.at_level(logging.WARNING):
        assert schemas.schema_of(newer.fingerprint) == newer.schema
    assert [record.message.split(":")[0] for record in caplog.records] == [
        f"ignored the schema at {topic}/0/0",
        f"ignored the schema at {topic}/0/1",
    ]


def test_many_questions_cost_one_reading(topic: str, schemas: SchemaTopic) -> None:
    schemas.schema_of(b"12345678")
    start = time.monotonic()
    for _ in range(1_000):
        schemas.schema_of(b"12345678")

    assert time.monotonic() - start < 0.5


def test_a_transaction_left_open_hides_no_schema(
    kafka: str, producer: Producer, topic: str, schemas: SchemaTopic
) -> None:
    newer = _newer()
    hanging = Producer({"bootstrap.servers": kafka, "transactional.id": topic})
    hanging.init_transactions(TIMEOUT_S)
    hanging.begin_transaction()
    hanging.produce(topic, key=b"x", value=b"y")
    hanging.flush(TIMEOUT_S)
    publish(producer, [newer], timeout_s=TIMEOUT_S, topic=topic)

    assert schemas.schema_of(newer.fingerprint) == newer.schema
    hanging.abort_transaction(TIMEOUT_S)


def test_a_transactions_marker_at_the_end_is_no_reason_to_wait(
    kafka: str, topic: str, schemas: SchemaTopic
) -> None:
    aborting = Producer({"bootstrap.servers": kafka, "transactional.id": topic})
    aborting.init_transactions(TIMEOUT_S)
    aborting.begin_transaction()
    aborting.produce(topic, key=b"x", value=b"y")
    aborting.flush(TIMEOUT_S)
    aborting.abort_transaction(TIMEOUT_S)

    assert schemas.schema_of(_newer().fingerprint) is None


def test_a_topic_that_was_made_anew_is_read_anew(
    kafka: str, producer: Producer, topic: str, schemas: SchemaTopic
) -> None:
    newer = _newer()
    publish(producer, timeout_s=TIMEOUT_S, topic=topic)
    assert schemas.schema_of(newer.fingerprint) is None
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.delete_topics([topic])[topic].result(TIMEOUT_S)
    _create(kafka, topic)
    publish(Producer({"bootstrap.servers": kafka}), [newer], timeout_s=TIMEOUT_S, topic=topic)

    found = None
    deadline = time.monotonic() + TIMEOUT_S
    while found is None and time.monotonic() < deadline:
        with contextlib.suppress(Retryable):
            found = schemas.schema_of(newer.fingerprint)

    assert found == newer.schema


def test_a_kafka_that_is_away_is_tried_again() -> None:
    away: dict[str, Any] = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
    source = SchemaTopic(away, timeout_s=0.5)

    with pytest.raises(Retryable, match="couldn't read"):
        source.schema_of(b"12345678")
    with pytest.raises(Retryable, match="couldn't publish"):
        publish(Producer(away), timeout_s=0.3)


def test_a_topic_that_is_missing_is_tried_again(kafka: str, topic_prefix: str) -> None:
    source = SchemaTopic({"bootstrap.servers": kafka}, topic=topic_prefix + "missing")

    with pytest.raises(Retryable, match="missing"):
        source.standing(b"12345678", 0, _now_ms())
    source.close()


def test_every_planned_topic_can_be_created_as_it_is_written(kafka: str, topic_prefix: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})
    plans = {topic_prefix + topic.name: topic for topic in load_topics(partitions=2)}
    new = [NewTopic(n, t.partitions, 1, config=dict(t.config)) for n, t in plans.items()]
    for future in admin.create_topics(new).values():
        future.result(TIMEOUT_S)

    for name, topic in plans.items():
        found = described(admin, name)
        assert {key: found[key] for key in topic.config} == dict(topic.config)
    admin.delete_topics(list(plans))


def described(admin: AdminClient, topic: str) -> dict[str, Any]:
    """A topic's configuration, once the broker that is asked has heard of the topic."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        (future,) = admin.describe_configs(
            [ConfigResource(ConfigResource.Type.TOPIC, topic)]
        ).values()
        try:
            return {name: entry.value for name, entry in future.result(TIMEOUT_S).items()}
        except KafkaException:
            if time.monotonic() > deadline:
                raise
