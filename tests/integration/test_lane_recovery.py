"""What a worker makes of what a broker tells of its lanes, and what that means for the others."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from trailweave.deploy.local.engines import KafkaEngine
from trailweave.schemas import events
from trailweave.schemas.errors import Fatal, Retryable
from trailweave.stream_processors import lane_reader, lane_recovery
from trailweave.stream_processors.lane_recovery import LaneRecovery
from trailweave.stream_processors.lanes import Lane

from tests.integration.join_kafka import (
    DEADLINE_S,
    LANES,
    Feed,
    Worker,
    check,
    committed,
    group_is_empty,
    has_all,
    join_settings,
    joining,
    make_topics,
    read_stored,
    send_sessions,
    until,
)

TOOLS = events.event_topics()[1]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with KafkaEngine(tmp_path_factory.mktemp("join") / "kafka") as started:
        make_topics(started.address, LANES)
        yield started.address


@pytest.fixture
def feed(address: str) -> Feed:
    return Feed(address)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets that can't be right are a person's to mend sooner."""
    monkeypatch.setattr(lane_recovery, "PATIENCE_S", 1.0)


def test_what_a_broker_that_comes_back_says_of_offsets_is_not_believed(
    address: str, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joining(address):
        traces = send_sessions(feed, 5)
        assert until(lambda: has_all(traces, read_stored(address)))
    assert until(lambda: group_is_empty(address))
    asked: Counter[int] = Counter()
    truth = lane_reader.committed

    def coming_back(consumer: Any, topics: Sequence[str], lane: int) -> list[Any]:
        asked[lane] += 1
        found = truth(consumer, topics, lane)
        if asked[lane] > 1:
            return found
        nothing: list[Any] = [(topic, -1, None) for topic, *_ in found]
        older: list[Any] = [(topic, 0, "v1;0;0;0") for topic, *_ in found]
        return [nothing, [*found[:1], *nothing[1:]], older][lane % 3]

    monkeypatch.setattr(lane_reader, "committed", coming_back)
    with joining(address):
        traces += send_sessions(feed, 5)
        assert until(lambda: has_all(traces, read_stored(address)))

    assert max(asked.values()) > 1
    check(address, feed, traces)


def test_a_worker_that_cannot_take_over_its_lanes_keeps_no_other_from_its_own(
    address: str, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, refused = set[threading.Thread](), threading.Event()
    truth = LaneRecovery.lanes

    def lanes(recovery: LaneRecovery, *arguments: Any) -> dict[int, Lane]:
        if threading.current_thread() in free:
            return truth(recovery, *arguments)
        refused.set()
        raise Retryable("not now")

    monkeypatch.setattr(LaneRecovery, "lanes", lanes)
    with joining(address, 0) as first:
        assert refused.wait(DEADLINE_S)
        with joining(address, 1) as second:
            free.add(second._thread)
            assert until(lambda: len(second.lanes()) == LANES // 2)
            assert not first.lanes()
            free.add(first._thread)
            traces = send_sessions(feed, 20)
            assert until(lambda: has_all(traces, read_stored(address)))

    check(address, feed, traces)


@pytest.mark.usefixtures("impatient")
def test_a_worker_stops_when_somebody_changed_one_topics_offset(address: str, feed: Feed) -> None:
    with joining(address):
        traces = send_sessions(feed, 5)
        assert until(lambda: has_all(traces, read_stored(address)))
    assert until(lambda: group_is_empty(address))
    before = committed(address)
    reset = next(part for part in before if part.topic == TOOLS and part.offset > 0)
    committed(address, [TopicPartition(TOOLS, reset.partition, 0)])
    worker = Worker(join_settings(address))
    stopped = until(lambda: not worker.running)
    worker.stop()
    assert until(lambda: group_is_empty(address))
    committed(address, before)

    assert stopped
    assert isinstance(worker.error, Fatal)
    assert f"lane {reset.partition}" in str(worker.error)
    assert "restore the group's offsets" in str(worker.error)


@pytest.mark.usefixtures("impatient")
def test_a_new_group_on_old_chains_stops_the_worker(address: str, feed: Feed) -> None:
    with joining(address):
        traces = send_sessions(feed, 5)
        assert until(lambda: has_all(traces, read_stored(address)))
    worker = Worker(join_settings(address, group="another"))
    stopped = until(lambda: not worker.running)
    worker.stop()

    assert stopped
    assert isinstance(worker.error, Fatal)
    assert "the group another has no committed offsets" in str(worker.error)
