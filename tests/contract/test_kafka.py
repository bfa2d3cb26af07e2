"""What Trailweave asks of Kafka: the same from the embedded broker and the official image."""

from __future__ import annotations

import time

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

DEADLINE_S = 30.0


def make_topic(address: str, name: str, partitions: int = 1, **config: str) -> None:
    admin = AdminClient({"bootstrap.servers": address})
    settings = {key.replace("_", "."): value for key, value in config.items()}
    made = admin.create_topics([NewTopic(name, partitions, 1, config=settings)])
    made[name].result(DEADLINE_S)


def read(address: str, topic: str, count: int, isolation: str = "read_committed") -> list[bytes]:
    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": topic, "isolation.level": isolation}
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[bytes] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(found) < count and time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            found.append(message.value() or b"")
    consumer.close()
    return found


def test_acknowledged_records_come_back_in_order(either_kafka: str, topic_prefix: str) -> None:
    topic = topic_prefix + "plain"
    make_topic(either_kafka, topic)
    producer = Producer({"bootstrap.servers": either_kafka, "enable.idempotence": True})
    for number in range(1000):
        producer.produce(topic, b"%d" % number, key=b"k")

    assert producer.flush(DEADLINE_S) == 0
    assert read(either_kafka, topic, 1000) == [b"%d" % number for number in range(1000)]


def test_a_transaction_is_all_or_nothing(either_kafka: str, topic_prefix: str) -> None:
    topic = topic_prefix + "transactions"
    make_topic(either_kafka, topic)
    producer = Producer({"bootstrap.servers": either_kafka, "transactional.id": topic})
    producer.init_transactions(DEADLINE_S)
    for value, commit in ((b"kept", True), (b"dropped", False), (b"kept too", True)):
        producer.begin_transaction()
        producer.produce(topic, value)
        if commit:
            producer.commit_transaction(DEADLINE_S)
        else:
            producer.flush(DEADLINE_S)
            producer.abort_transaction(DEADLINE_S)

    assert read(either_kafka, topic, 2) == [b"kept", b"kept too"]


def test_an_offsets_metadata_comes_back(either_kafka: str, topic_prefix: str) -> None:
    topic = topic_prefix + "offsets"
    make_topic(either_kafka, topic)
    settings = {"bootstrap.servers": either_kafka, "group.id": topic}
    consumer = Consumer(settings)
    mark = TopicPartition(topic, 0, 7, "x" * 350)
    consumer.commit(offsets=[mark], asynchronous=False)
    (found,) = consumer.committed([TopicPartition(topic, 0)], timeout=DEADLINE_S)
    consumer.close()

    assert (found.offset, found.metadata) == (7, "x" * 350)


def test_the_broker_sets_the_timestamp_when_the_topic_says_so(
    either_kafka: str, topic_prefix: str
) -> None:
    topic = topic_prefix + "stamped"
    make_topic(either_kafka, topic, message_timestamp_type="LogAppendTime")
    before = time.time() * 1000
    stamps: list[int] = []
    producer = Producer({"bootstrap.servers": either_kafka})
    producer.produce(
        topic, b"x", timestamp=1, on_delivery=lambda _, sent: stamps.append(sent.timestamp()[1])
    )

    assert producer.flush(DEADLINE_S) == 0
    assert stamps[0] >= before - 60_000


def test_a_topic_is_made_by_those_who_say_how_and_by_no_one_else(
    either_kafka: str, topic_prefix: str
) -> None:
    topic = topic_prefix + "never-made"
    producer = Producer({"bootstrap.servers": either_kafka, "message.timeout.ms": 2000})
    errors: list[object] = []
    producer.produce(topic, b"x", on_delivery=lambda error, _: errors.append(error))
    producer.flush(DEADLINE_S)

    assert errors[0] is not None
    assert topic not in AdminClient({"bootstrap.servers": either_kafka}).list_topics().topics


def test_records_of_ten_megabytes_fit(either_kafka: str, topic_prefix: str) -> None:
    topic = topic_prefix + "large"
    make_topic(either_kafka, topic, max_message_bytes="16777216")
    producer = Producer({"bootstrap.servers": either_kafka, "message.max.bytes": 16_000_000})
    producer.produce(topic, bytes(10_000_000))

    assert producer.flush(DEADLINE_S) == 0
    assert [len(value) for value in read(either_kafka, topic, 1)] == [10_000_000]


def test_an_old_producer_of_a_transactional_id_is_fenced(
    either_kafka: str, topic_prefix: str
) -> None:
    topic = topic_prefix + "fenced"
    make_topic(either_kafka, topic)
    settings = {"bootstrap.servers": either_kafka, "transactional.id": topic}
    old, new = Producer(settings), Producer(settings)
    old.init_transactions(DEADLINE_S)
    old.begin_transaction()
    old.produce(topic, b"old")
    new.init_transactions(DEADLINE_S)

    with pytest.raises(KafkaException):
        old.commit_transaction(DEADLINE_S)
