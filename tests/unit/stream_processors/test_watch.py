"""What `watch` does around Faust: the order of effects, and that nothing waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import UserDict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import faust
import pytest
from trailweave.schemas import events
from trailweave.stream_processors import watch
from trailweave.stream_processors.detectors.detector import Fact
from trailweave.stream_processors.seen import key_of
from trailweave.stream_processors.watch import WatchSettings, make_app

CHANGELOG = "trailweave-watch-facts-changelog"
S = 1_000_000


def test_offsets_count_only_when_findings_and_then_the_changelog_are_in_kafka() -> None:
    asyncio.run(_judged_step_by_step())


async def _judged_step_by_step() -> None:
    kafka = Kafka()
    judging = asyncio.create_task(kafka.agents.judge(Stream(kafka, used("a"), used("b"))))

    await kafka.asked_for(1)
    assert kafka.topics() == [events.FINDINGS_TOPIC]
    kafka.acknowledge()

    await kafka.asked_for(2)
    assert kafka.topics() == [events.FINDINGS_TOPIC, CHANGELOG]
    assert not kafka.table
    assert not kafka.acked
    kafka.acknowledge()

    await judging
    assert list(kafka.table) == [key_of(used("a"))]
    assert len(kafka.acked) == 2


def test_facts_from_before_a_rebalance_are_left_to_who_has_them_now() -> None:
    async def judge() -> Kafka:
        kafka = Kafka()
        stream = Stream(kafka, used("a"), used("b"))
        kafka.consumer_generation_id += 1
        await kafka.agents.judge(stream)
        return kafka

    kafka = asyncio.run(judge())

    assert not kafka.topics()
    assert not kafka.table
    assert not kafka.acked


def test_a_rebalance_while_a_finding_is_said_keeps_the_changelog_as_it_is() -> None:
    async def judge() -> Kafka:
        kafka = Kafka()
        judging = asyncio.create_task(kafka.agents.judge(Stream(kafka, used("a"), used("b"))))
        await kafka.asked_for(1)
        kafka.consumer_generation_id += 1
        kafka.acknowledge()
        await judging
        return kafka

    kafka = asyncio.run(judge())

    assert kafka.topics() == [events.FINDINGS_TOPIC]
    assert not kafka.table
    assert not kafka.acked


def test_nothing_flows_while_the_consumer_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    flowed = []

    async def seek(consumer: Any) -> None:
        flowed.append(consumer.flow_active)

    monkeypatch.setattr(faust.transport.consumer.Consumer, "perform_seek", seek)

    async def back() -> None:
        with made_consumer() as consumer:
            consumer.resume_flow()
            await consumer.perform_seek()

    asyncio.run(back())

    assert flowed == [False]


def test_a_record_that_another_agent_will_never_see_keeps_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "WAIT_S", 0.0)
    committed = []

    async def commit() -> None:
        committed.append(True)

    async def end() -> None:
        half_done = faust.types.Message("t", 0, 1, 0.0, 0, None, b"", b"", None)
        with made_consumer() as consumer:
            consumer.track_message(half_done)
            consumer.commit_and_end_transactions = commit
            await consumer.wait_empty()

    asyncio.run(end())

    assert committed == [True]


def test_a_start_makes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    asyncio.run(make_app(WatchSettings({"bootstrap.servers": "127.0.0.1:1"})).on_first_start())

    assert list(tmp_path.iterdir()) == []


def used(agent: str) -> Fact:
    """An agent used the one credential that all use."""
    return Fact("shared_credential", "t", "c", f"{agent}|", S, f"trace-{agent}", agent)


@contextlib.contextmanager
def made_consumer() -> Iterator[Any]:
    """A consumer that is not started."""
    consumer: Any = make_app(WatchSettings({"bootstrap.servers": "127.0.0.1:1"})).consumer
    try:
        yield consumer
    finally:
        consumer._thread.thread_loop.close()


class Table(UserDict[bytes, bytes]):
    """A table in memory, as Faust has it."""

    changelog_topic = SimpleNamespace(get_topic_name=lambda: CHANGELOG)


class Kafka:
    """Stands for Faust and Kafka, which acknowledges what is sent when the test says so."""

    def __init__(self) -> None:
        self.consumer_generation_id = 1
        self.table = Table()
        self.acked: list[Any] = []
        self._sent: list[tuple[str, asyncio.Future[None]]] = []
        self.agents = watch._Agents(cast("Any", self), WatchSettings({}))

    def topic(self, *_: Any, **__: Any) -> None:
        """What `judge` sends to it names by itself."""

    def Table(self, *_: Any, **__: Any) -> Table:  # noqa: N802 - Faust's name
        return self.table

    async def maybe_start_producer(self) -> Kafka:
        return self

    async def send(self, topic: str, *_: Any) -> asyncio.Future[None]:
        self._sent.append((topic, asyncio.get_running_loop().create_future()))
        return self._sent[-1][1]

    async def asked_for(self, records: int) -> None:
        """Wait until so many have been sent."""
        while len(self._sent) < records:
            await asyncio.sleep(0)

    def acknowledge(self) -> None:
        for _, answer in self._sent:
            if not answer.done():
                answer.set_result(None)

    def topics(self) -> list[str]:
        return [topic for topic, _ in self._sent]


class Stream:
    """A stream of one batch of facts, which came in the generation that is now."""

    def __init__(self, kafka: Kafka, *facts: Fact) -> None:
        self._kafka = kafka
        message = SimpleNamespace(generation_id=kafka.consumer_generation_id, partition=0)
        self._batch = [
            SimpleNamespace(key=key_of(fact), value=json.dumps(fact), message=message)
            for fact in facts
        ]

    async def noack_take(self, *_: Any, **__: Any) -> AsyncIterator[list[Any]]:
        yield self._batch

    async def ack(self, event: Any) -> None:
        self._kafka.acked.append(event)
