"""What should not happen, from a producer to ClickHouse: damage, forgery, size, and outages.

Each gives a clear message and loses nothing that was accepted. Elsewhere: every way in which the
join alone refuses bytes (`test_join_kafka`), what load does with them (`test_load`), the spool on a
disk that is full (`unit/producers/test_spool`, `test_kafka`), and the Recorder alone while Kafka is
away (`test_recorder_kafka`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from trailweave.producers.kafka import KafkaTransport
from trailweave.producers.limits import KafkaLimits
from trailweave.producers.recorder import Recorder
from trailweave.producers.transport import Counts, EventTooLarge
from trailweave.schemas import events
from trailweave.schemas.codec import EVENT_BYTES_MAX
from trailweave.schemas.ids import new_trace_id
from trailweave.schemas.topics import load_topics

from tests.integration.join_kafka import Feed, Place
from tests.integration.pipeline import DEADLINE_S, Pipeline, engines
from tests.integration.test_cli import wait_until
from tests.unit.stream_processors.builders import Made, Trace

PROMPTS, TOOLS = events.event_topics()[:2]
MESSAGE_BYTES_MAX: Final = next(t for t in load_topics() if t.name == PROMPTS).message_bytes_max
GRACE_S: Final = 1.0
IDLE_S: Final = 2.0
#: An event of an agent that goes on working while something is away.
EVERY_S: Final = 0.02

outages = pytest.mark.parametrize(
    "away_s", [3.0, pytest.param(60.0, marks=pytest.mark.soak)], ids=["seconds", "a minute"]
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with engines(tmp_path_factory.mktemp("bad-input")) as started:
        yield started


# --- bytes that are no event -----------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """A record that must be refused, between the events of a session that must not suffer."""

    code: str
    #: Words of the sentence that says why.
    words: str
    topic: str
    key: bytes
    value: bytes
    #: The session whose dead letter it is; None: its key is another one's than its own.
    of: str | None
    #: Who refuses it: load where the join does not read.
    stage: str = "join"


def bad_records(whole: list[Made], other: str) -> list[Bad]:
    """Each made from an event of a session, and sent in addition to it."""
    event = whole[0]
    key, value, own = event.key, event.value, event.key.decode()
    newer = value[:2] + b"newer!!!" + value[10:]
    # As large as Kafka takes: the dead letter that holds it is larger.
    largest = value + b"x" * (MESSAGE_BYTES_MAX - len(value) - 200)
    return [
        Bad("truncated", "end", PROMPTS, key, value[:-3], own),
        Bad("unknown_schema", "schema", PROMPTS, key, newer, own),
        Bad("trailing_bytes", "bytes", PROMPTS, key, value + value[10:], own),
        Bad("wrong_topic", "topic", TOOLS, key, value, own),
        Bad("wrong_key", "key", PROMPTS, b"f" * 32, value, None),
        # Under another session's key, to get into that session's chain.
        Bad("wrong_key", "key", PROMPTS, other.encode(), value, None),
        Bad("trailing_bytes", "bytes", PROMPTS, key, largest, own),
        Bad("not_framed", "framing", events.HEARTBEATS_TOPIC, b"k", b"nonsense", None, "load"),
    ]


@dataclass(frozen=True)
class Refused:
    """What became of the bad records, and of the sessions around them."""

    pipeline: Pipeline
    sent: dict[Place, Bad]
    #: Good events by trace.
    good: dict[str, list[Made]]
    account: dict[str, Any]


@pytest.fixture(scope="module")
def refused(pipeline: Pipeline) -> Refused:
    good = {trace.trace_id: trace.whole(2) for trace in (Trace(new_trace_id()) for _ in range(2))}
    first, other = good
    feed, sent = Feed(pipeline.kafka.address, **{"message.max.bytes": 2 * EVENT_BYTES_MAX}), {}
    for made in good.values():
        feed.send(*made[:-1])
    for bad in bad_records(good[first], other):
        before = len(feed.flush())
        feed.send_bytes(bad.topic, bad.key, bad.value)
        sent[feed.flush()[before]] = bad
    for made in good.values():
        feed.send(made[-1])
    records = sum(topic in events.event_topics() for topic, *_ in feed.flush())
    with pipeline.working(GRACE_S, IDLE_S):
        account = pipeline.settle(records)
    return Refused(pipeline, sent, good, account)


def test_each_bad_record_is_one_dead_letter_with_its_bytes_and_a_reason(refused: Refused) -> None:
    letters = {
        (row["topic"], row["partition"], row["offset"]): row
        for row in refused.pipeline.asked("dead_letters", topic="", stage="", code="", limit=1000)
    }

    assert {place: (row["stage"], row["code"]) for place, row in letters.items()} == {
        place: (bad.stage, bad.code) for place, bad in refused.sent.items()
    }
    assert {place: row["bytes"] for place, row in letters.items()} == {
        place: len(bad.value) for place, bad in refused.sent.items()
    }
    assert all(bad.words in letters[place]["reason"] for place, bad in refused.sent.items())


def test_a_bad_record_can_be_looked_at(refused: Refused) -> None:
    for (topic, partition, offset), bad in refused.sent.items():
        shown = refused.pipeline.run("dead-letters", "show", f"{topic}/{partition}@{offset}")

        assert shown.exit_code == 0
        assert f"refused by {bad.stage}: {bad.code}" in shown.output
        assert f"{len(bad.value)} bytes" in shown.output


def test_no_bad_record_is_a_row_and_no_good_one_is_missing(refused: Refused) -> None:
    rows = refused.pipeline.rows("SELECT trace_id, event_id, event_type FROM events")

    assert {tuple(row.values()) for row in rows} == {
        (trace, made.record["event_id"], made.name)
        for trace, whole in refused.good.items()
        for made in whole
    }
    assert len(rows) == sum(map(len, refused.good.values()))


def test_no_bad_record_gets_into_a_chain(refused: Refused) -> None:
    chains = refused.pipeline.rows("SELECT * FROM chains WHERE events > 0")
    own = [bad.of for bad in refused.sent.values()]

    assert {chain["trace_id"]: chain["events"] for chain in chains} == {
        trace: len(whole) for trace, whole in refused.good.items()
    }
    assert {chain["trace_id"]: chain["dead_lettered"] for chain in chains} == {
        trace: own.count(trace) for trace in refused.good
    }
    assert len(chains) == len(refused.good)


def test_the_account_counts_bad_records_as_dead_lettered(refused: Refused) -> None:
    stages = refused.account["stages"]
    joined = [line["dead_lettered"] for line in stages if line["stage"] == "join"]
    (beats,) = [line for line in stages if line["of"] == events.HEARTBEATS_TOPIC]

    assert sum(joined) == sum(bad.stage == "join" for bad in refused.sent.values())
    assert beats["dead_lettered"] == 1


# --- size ------------------------------------------------------------------------------------


def test_an_event_over_the_limit_is_the_callers_error_and_one_at_it_arrives(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    start = counted(pipeline)
    transport = KafkaTransport({"bootstrap.servers": pipeline.kafka.address}, tmp_path)
    with (
        pipeline.working(GRACE_S, IDLE_S),
        Recorder(transport, tenant="acme", agent="large", capture="full") as recorder,
    ):
        with recorder.session("task", exhaustive=True) as session:
            with pytest.raises(EventTooLarge, match=f"the limit is {EVENT_BYTES_MAX};.*content"):
                session.prompt_submitted("x" * EVENT_BYTES_MAX)
            session.prompt_submitted("x" * (EVENT_BYTES_MAX - 1_000))
        assert recorder.flush(DEADLINE_S)
        pipeline.settle(start + 3)
    (chain,) = chains_of(pipeline, session.trace_id)
    (row,) = pipeline.rows(
        "SELECT max(length(record)) AS bytes FROM events WHERE trace_id = {trace:String}",
        trace=session.trace_id,
    )

    assert transport.counts == Counts(recorded=3, delivered=3)
    assert (chain["events"], chain["completeness"]) == (3, "complete")
    assert EVENT_BYTES_MAX - 1_000 < row["bytes"] <= EVENT_BYTES_MAX


def test_kafka_itself_takes_little_more_than_the_limit() -> None:
    for topic in load_topics():
        if topic.name in events.event_topics():
            assert EVENT_BYTES_MAX < topic.message_bytes_max < 1.1 * EVENT_BYTES_MAX


# --- outages ---------------------------------------------------------------------------------


def counted(pipeline: Pipeline) -> int:
    """Events in the event topics, each once however often it was sent."""
    done = pipeline.run("account", "--json")
    assert done.stdout, done.exception
    document = json.loads(done.stdout)
    joined = [line for line in document["stages"] if line["stage"] == "join"]
    return sum(line["in"] - line["duplicates"] for line in joined)


def chains_of(pipeline: Pipeline, trace: str) -> list[dict[str, Any]]:
    return pipeline.rows("SELECT * FROM chains WHERE trace_id = {trace:String}", trace=trace)


def chain_is_there(pipeline: Pipeline, trace: str) -> Callable[[], bool]:
    return lambda: bool(chains_of(pipeline, trace))


class Agent:
    """Works without a pause, in sessions of some seconds; `stop` ends it in order."""

    def __init__(self, pipeline: Pipeline, spool: Path) -> None:
        config = {"bootstrap.servers": pipeline.kafka.address, "log_level": "0"}
        self.transport = KafkaTransport(config, spool, KafkaLimits(away_after_s=0.5))
        self.recorder = Recorder(self.transport, tenant="acme", agent="worker")
        self.traces: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            with self.recorder.session("task", exhaustive=True) as session:
                for _ in range(20):
                    session.prompt_submitted("go on")
                    self._stop.wait(EVERY_S)
            self.traces.append(session.trace_id)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)
        assert self.recorder.flush(DEADLINE_S), self.transport.counts
        self.recorder.close()


def whole_and_complete(pipeline: Pipeline, agent: Agent) -> None:
    """Every session that the agent had is one complete chain, and its sum is right."""
    rows = pipeline.rows("SELECT trace_id, completeness FROM chains WHERE has(agents, 'worker')")
    found = {
        row["trace_id"]: row["completeness"] for row in rows if row["trace_id"] in agent.traces
    }
    counts = agent.transport.counts

    assert found == dict.fromkeys(agent.traces, "complete")
    assert counts == Counts(recorded=counts.recorded, delivered=counts.recorded)


@outages
def test_kafka_may_be_away(pipeline: Pipeline, tmp_path: Path, away_s: float) -> None:
    start = counted(pipeline)
    with pipeline.working(), pipeline.supervised():
        agent = Agent(pipeline, tmp_path)
        wait_until(lambda: len(agent.traces) > 0, DEADLINE_S)
        wait_until(chain_is_there(pipeline, agent.traces[0]), DEADLINE_S)
        pipeline.kafka.stop()
        gone = time.monotonic()
        asked = pipeline.run("ingest", "otlp", str(pipeline.config))
        wait_until(lambda: agent.transport.delayed, DEADLINE_S)
        wait_until(lambda: time.monotonic() - gone > away_s, away_s + DEADLINE_S)
        spooled = agent.transport.counts.spooled
        pipeline.kafka.start()
        agent.stop()
        account = pipeline.settle(start + agent.transport.counts.recorded, distinct=True)
        said = {name: pipeline.console(name) for name in ("join", "load")}
    (producers,) = [line for line in account["stages"] if line["stage"] == "producers"]

    whole_and_complete(pipeline, agent)
    assert spooled > 0
    assert producers["in"] == producers["out"] >= agent.transport.counts.recorded
    assert "no Kafka answers" in str(asked.exception)
    assert "start `trailweave up`, or set TRAILWEAVE_KAFKA" in str(asked.exception)
    for console in said.values():
        # The client's own line comes with a poll, unless a batch was under way: then its error.
        refused = f"{pipeline.kafka.address} failed: Connection refused"
        assert refused in console.replace("ipv4#", "") or "; trying again in" in console


@outages
def test_clickhouse_may_be_away(pipeline: Pipeline, tmp_path: Path, away_s: float) -> None:
    start = counted(pipeline)
    with pipeline.working(), pipeline.supervised() as supervisor:
        agent = Agent(pipeline, tmp_path)
        wait_until(lambda: len(agent.traces) > 0, DEADLINE_S)
        wait_until(chain_is_there(pipeline, agent.traces[0]), DEADLINE_S)
        pipeline.clickhouse.stop()
        gone = time.monotonic()
        asked = pipeline.run("sessions", "list")
        wait_until(lambda: "trying again" in pipeline.console("load"), DEADLINE_S)
        wait_until(lambda: time.monotonic() - gone > away_s, away_s + DEADLINE_S)
        pipeline.clickhouse.start()
        agent.stop()
        pipeline.settle(start + agent.transport.counts.recorded, distinct=True)
        said = pipeline.console("load")
        restarts = supervisor.restarts

    whole_and_complete(pipeline, agent)
    assert "couldn't reach ClickHouse" in str(asked.exception)
    assert "start `trailweave up`, or set TRAILWEAVE_CLICKHOUSE" in str(asked.exception)
    assert "couldn't" in said
    assert restarts == {"join": 0, "load": 0}
