"""Telling a consumer that can no longer hear from one to which nothing is said, on a real Kafka."""

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from trailweave.schemas import silence
from trailweave.schemas.silence import Silence


@pytest.fixture
def part(kafka: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """A partition with one record at offset 0, and a transaction's marker behind it."""
    monkeypatch.setattr(silence, "CONFIRM_S", 0.0)
    topic = f"{topic_prefix}said"
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result()
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": topic})
    producer.init_transactions()
    producer.begin_transaction()
    producer.produce(topic, b"a word", partition=0)
    producer.commit_transaction()
    return topic, 0


def test_who_misses_a_record_twice_is_deaf(kafka: str, part: tuple[str, int]) -> None:
    deaf = Silence({"bootstrap.servers": kafka}, silence_s=0.0)

    assert [deaf.is_deaf({part: 0}) for _ in range(2)] == [False, True]


def test_who_has_read_everything_is_not(kafka: str, part: tuple[str, int]) -> None:
    idle = Silence({"bootstrap.servers": kafka}, silence_s=0.0)

    assert [idle.is_deaf({part: 1}) for _ in range(3)] == [False] * 3


def test_who_hears_something_in_between_is_not(kafka: str, part: tuple[str, int]) -> None:
    slow = Silence({"bootstrap.servers": kafka}, silence_s=0.0)
    first = slow.is_deaf({part: 0})
    slow.heard()

    assert [first, slow.is_deaf({part: 0})] == [False, False]


def test_nobody_is_asked_before_there_was_a_silence(part: tuple[str, int]) -> None:
    busy = Silence({"no such setting": "asking would raise"})

    assert not busy.is_deaf({part: 0})


def test_while_kafka_is_away_nobody_is_deaf(
    part: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "LOOK_S", 0.5)
    alone = Silence({"bootstrap.servers": "127.0.0.1:1"}, silence_s=0.0)

    assert [alone.is_deaf({part: 0}) for _ in range(2)] == [False, False]
