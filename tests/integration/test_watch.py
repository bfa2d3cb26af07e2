"""`trailweave watch` on real engines: what many sessions show, once, through kills and aborts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition as Partition
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from faust.types import TP
from trailweave.schemas import events
from trailweave.schemas.codec import Encoder
from trailweave.schemas.examples import example
from trailweave.schemas.ids import new_trace_id
from trailweave.stream_processors.detectors.detector import Fact
from trailweave.stream_processors.recovery import reassess_headers
from trailweave.stream_processors.verdict import (
    Circumstances,
    RulesConfig,
    chain_record,
    judge,
    unjudged,
)
from trailweave.stream_processors.watch import (
    FACTS_TOPIC,
    WatchSettings,
    make_app,
    make_topics,
)

from tests.integration.pipeline import DEADLINE_S, Pipeline, engines
from tests.integration.test_cli import wait_until
from tests.unit.stream_processors.builders import Made, Trace, chain

ENCODER = Encoder()
FEED_S = 0.5
#: Some times what a watch waits for as it ends.
STOP_S = 40.0
AT = Circumstances("closed", "counts", part=1, judged_at_ms=1, dead_lettered=0)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with engines(tmp_path_factory.mktemp("watch")) as made:
        made.config.write_text("", "utf-8")
        made.start("load")
        try:
            yield made
        finally:
            made.stop("load")


@contextlib.contextmanager
def watching(pipeline: Pipeline, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`trailweave watch` as a process of its own, which must end by SIGTERM."""
    env = {
        **os.environ,
        "TRAILWEAVE_KAFKA": pipeline.kafka.address,
        "TRAILWEAVE_CONFIG": str(pipeline.config),
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "trailweave.deploy.cli", "watch"], env=env,
            stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) in {0, -signal.SIGKILL}
    except (AssertionError, subprocess.TimeoutExpired) as error:
        raise AssertionError(f"{error}\n{log.read_text()[-2000:]}") from error
    finally:
        process.kill()
        process.wait()


def record(*made: Made, state: str = "closed") -> bytes:
    """What the join writes of events, a session or a part of one."""
    found, config = chain(*made), RulesConfig()
    verdict = judge(found, config) if state == "closed" else unjudged(found)
    return ENCODER.encode("chain", chain_record(found, verdict, AT._replace(state=state), config))


def used(agent: str, credential: str) -> tuple[str, bytes]:
    """A chain in which an agent uses a credential: (trace, chain record)."""
    trace = Trace(new_trace_id())
    made = trace.event("credential_used", credential_id=credential, agent_id=agent, task_id="t")
    return trace.trace_id, record(trace.event("session_started"), made)


def write(
    address: str, *chains: tuple[str, bytes], commit: bool = True, kind: str = "chain"
) -> None:
    """Chains as their writers write them: in a transaction."""
    producer = Producer(
        {"bootstrap.servers": address, "transactional.id": "test", "compression.type": "lz4"}
    )
    producer.init_transactions(DEADLINE_S)
    producer.begin_transaction()
    headers: dict[str, Any] = {**dict(reassess_headers(1, b"s")), "kind": kind.encode()}
    for trace, value in chains:
        producer.produce(events.SESSIONS_TOPIC, value, trace.encode(), headers=headers)
    assert producer.flush(DEADLINE_S) == 0
    if commit:
        producer.commit_transaction(DEADLINE_S)
    else:
        producer.abort_transaction(DEADLINE_S)


def found(pipeline: Pipeline) -> dict[str, Any]:
    """Summaries of shared credentials by credential."""
    rows = pipeline.rows(
        "SELECT subject, summary FROM findings_latest"
        " WHERE rule = 'shared_credential' AND state = 'open'"
    )
    assert len(rows) == len({row["subject"] for row in rows})
    return {row["subject"]: row["summary"] for row in rows}


def test_an_aborted_chain_is_not_watched_and_a_committed_one_is(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    write(pipeline.kafka.address, used("a", "aborted"), used("b", "aborted"), commit=False)
    write(pipeline.kafka.address, used("a", "mixed"))
    write(pipeline.kafka.address, used("b", "mixed"), commit=False)
    with watching(pipeline, tmp_path / "watch.log"):
        write(pipeline.kafka.address, used("a", "shared"), used("b", "shared"))
        wait_until(lambda: "shared" in found(pipeline), DEADLINE_S)

    assert set(found(pipeline)) == {"shared"}
    assert found(pipeline)["shared"].startswith("2 agents used one credential: a, b; latest in ")


def test_a_watch_that_is_killed_under_load_loses_and_doubles_nothing(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    written: list[str] = []
    with ThreadPoolExecutor(1) as pool, feeding(pipeline, pool, written) as stop:
        for _ in range(2):
            with watching(pipeline, tmp_path / "watch.log") as process:
                # More of it is said than before, and some is not, as far as anybody can tell.
                before = end_of(pipeline, FACTS_TOPIC)
                wait_until(partial(grown, pipeline, before + 100), DEADLINE_S)
                process.kill()
        stop.set()
    wanted = set(written)
    with watching(pipeline, tmp_path / "watch.log"):
        wait_until(lambda: wanted <= set(found(pipeline)), DEADLINE_S)

    assert {name for name in found(pipeline) if name.startswith("k")} == wanted
    assert len(wanted) >= 40


def test_what_was_fetched_before_anything_counts_comes_again_when_a_watch_goes_back(
    pipeline: Pipeline,
) -> None:
    settings = WatchSettings({"bootstrap.servers": pipeline.kafka.address}, group="test-back")
    make_topics(settings)
    producer = Producer({"bootstrap.servers": pipeline.kafka.address})
    fact = Fact("of_another_version", "t", "subject", "name", 0, "", None)
    producer.produce(FACTS_TOPIC, json.dumps(fact), json.dumps(fact[:3]), partition=0)
    assert producer.flush(DEADLINE_S) == 0

    first, again = asyncio.run(_read_twice(settings))

    assert first == again


async def _read_twice(settings: WatchSettings) -> tuple[int, int]:
    """The first offset of a partition, twice; the consumer goes back in between."""
    app = make_app(settings)
    app.finalize()
    consumer: Any = app.consumer
    await consumer.start()
    try:
        await consumer._thread.call_thread(_assign, consumer)
        consumer._set_active_tps({TP(FACTS_TOPIC, 0)})
        consumer.resume_flow()
        first = await asyncio.wait_for(_read(consumer), DEADLINE_S)
        await consumer.perform_seek()
        consumer.resume_flow()
        return first, await asyncio.wait_for(_read(consumer), DEADLINE_S)
    finally:
        await consumer.stop()


async def _assign(consumer: Any) -> None:
    consumer._thread._ensure_consumer().assign([Partition(FACTS_TOPIC, 0)])


async def _read(consumer: Any) -> int:
    while True:
        async for _, message in consumer.getmany(timeout=1.0):
            return int(message.offset)


@contextlib.contextmanager
def feeding(
    pipeline: Pipeline, pool: ThreadPoolExecutor, written: list[str]
) -> Iterator[threading.Event]:
    """Chains all the time until the event is set: credentials that two agents share."""
    stop = threading.Event()

    def feed() -> None:
        # No faster than a watch on a busy machine, or what it lags behind only grows.
        for number in itertools.count():
            if stop.wait(FEED_S):
                return
            names = [f"k{number}-{one}" for one in range(20)]
            for agent in ("a", "b"):
                write(pipeline.kafka.address, *(used(agent, name) for name in names))
            written.extend(names)

    fed = pool.submit(feed)
    try:
        yield stop
    finally:
        stop.set()
        fed.result(DEADLINE_S)


def grown(pipeline: Pipeline, size: int) -> bool:
    # Soon after a topic was made not every partition has a leader.
    with contextlib.suppress(KafkaException):
        return end_of(pipeline, FACTS_TOPIC) > size
    return False


def test_agents_of_ones_own_see_closed_chains_and_say_findings(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    trace, open_one = Trace(new_trace_id()), Trace(new_trace_id())
    for one, kind in ((trace, "chain"), (open_one, "open")):
        started = one.event(
            "session_started", agent_id=f"{kind}-clerk", data_class="restricted", sponsor=None
        )
        write(pipeline.kafka.address, (one.trace_id, record(started)), kind=kind)
    sql = "SELECT subject, trace_id FROM findings_latest WHERE rule = 'restricted_unattended'"

    module = "trailweave.stream_processors.own_agents_example"
    pipeline.config.write_text(f'[watch]\nmodule = "{module}"\n', "utf-8")
    with watching(pipeline, tmp_path / "watch.log"):
        wait_until(lambda: bool(pipeline.rows(sql)), DEADLINE_S)
    pipeline.config.write_text("", "utf-8")

    assert pipeline.rows(sql) == [{"subject": "chain-clerk", "trace_id": ""}]


def test_a_module_without_agents_is_told_of(pipeline: Pipeline) -> None:
    for module, why in (("no.such", "couldn't import the agents of no.such: "),
                        ("json", "json: it has no function register(trail)")):  # fmt: skip
        pipeline.config.write_text(f'[watch]\nmodule = "{module}"\n', "utf-8")
        refused = pipeline.run("watch")
        pipeline.config.write_text("", "utf-8")

        assert why in str(refused.exception)


def test_what_does_not_come_is_found_and_taken_back_when_it_comes(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text("[limits]\ntrace_kept_s = 120\nproducer_silent_s = 1\nproducer_settle_s = 1\n")
    stray, late = Trace(new_trace_id()), Trace(new_trace_id())
    beats = Beats(pipeline.kafka.address)
    for trace in (stray, late):
        lone = record(trace.event("credential_used", credential_id="c9"), state="fragment")
        write(pipeline.kafka.address, (trace.trace_id, lone), kind="fragment")
    session = record(late.event("session_started", producer_id="p1", producer_epoch=5))
    beats.send("p1", recorded=2)
    beats.send("p2", recorded=0)

    pipeline.config.write_text(f'[rules]\npath = "{rules}"\n', "utf-8")
    with watching(pipeline, tmp_path / "watch.log"):
        wait_until(lambda: len(standing(pipeline)) == 5, DEADLINE_S)
        at_first = standing(pipeline)
        write(pipeline.kafka.address, (late.trace_id, session))
        beats.send("p1", recorded=1, final=True)
        wait_until(lambda: len(standing(pipeline)) == 2, DEADLINE_S)
    pipeline.config.write_text("", "utf-8")

    assert at_first == {
        ("credential_outside", stray.trace_id),
        ("credential_outside", late.trace_id),
        ("producer_silent", "p1 5"),
        ("producer_silent", "p2 5"),
        ("producer_lacking", "p1 5"),
    }
    assert standing(pipeline) == {
        ("credential_outside", stray.trace_id), ("producer_silent", "p2 5")
    }  # fmt: skip


class Beats:
    """Heartbeats of producers."""

    def __init__(self, address: str) -> None:
        self._producer = Producer({"bootstrap.servers": address})

    def send(self, producer: str, recorded: int, *, final: bool = False) -> None:
        made = {
            **example("producer_heartbeat"), "producer_id": producer, "producer_epoch": 5,
            "interval_s": 0.1, "recorded": recorded, "final": final,
        }  # fmt: skip
        value = ENCODER.encode("producer_heartbeat", made)
        self._producer.produce(events.HEARTBEATS_TOPIC, value, producer)
        assert self._producer.flush(DEADLINE_S) == 0


def standing(pipeline: Pipeline) -> set[tuple[str, str]]:
    """Findings about what did not come: rule and subject."""
    rows = pipeline.rows(
        "SELECT rule, subject FROM findings_latest WHERE state = 'open'"
        " AND rule IN ('credential_outside', 'producer_silent', 'producer_lacking')"
    )
    return {(row["rule"], row["subject"]) for row in rows}


def end_of(pipeline: Pipeline, topic: str) -> int:
    """Records in a topic."""
    consumer = Consumer({"bootstrap.servers": pipeline.kafka.address, "group.id": "test-ends"})
    try:
        known = consumer.list_topics(topic, timeout=DEADLINE_S).topics[topic].partitions
        parts = [TopicPartition(topic, lane) for lane in known]
        return sum(consumer.get_watermark_offsets(part, timeout=DEADLINE_S)[1] for part in parts)
    finally:
        consumer.close()
