"""The join on a real broker: what it writes, rebalances, restarts, zombies, and Kafka away."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions
from confluent_kafka.schema_registry import SchemaRegistryClient
from trailweave.deploy.local.engines import KafkaEngine
from trailweave.schemas import events, silence
from trailweave.schemas.codec import Encoder, NoSchemas
from trailweave.schemas.errors import Fatal, Retryable
from trailweave.schemas.registry import RegistrySchemas, register_all
from trailweave.schemas.schema_topic import SchemaTopic
from trailweave.schemas.standing import ByFraming, Standing, StandingRule
from trailweave.stream_processors import closers as closers_module
from trailweave.stream_processors import join, transactions
from trailweave.stream_processors.session import ClosingTimes
from trailweave.stream_processors.verdict import OwnConfig, RulesConfig

from tests.integration.join_kafka import (
    DEADLINE_S,
    LANES,
    Feed,
    Place,
    Stored,
    Worker,
    check,
    faults,
    group_is_empty,
    has_all,
    held,
    in_chunks,
    join_settings,
    joining,
    live_chunks,
    make_topics,
    new_trace,
    own,
    read_stored,
    replayed,
    send_sessions,
    until,
    wait_for,
)
from tests.processes import lives
from tests.unit.stream_processors.builders import Made, Trace

PROMPTS, TOOLS = events.event_topics()[:2]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaEngine]:
    with KafkaEngine(tmp_path_factory.mktemp("join") / "kafka") as started:
        make_topics(started.address, LANES)
        yield started


@pytest.fixture
def address(engine: KafkaEngine) -> str:
    return engine.address


@pytest.fixture
def feed(address: str) -> Feed:
    return Feed(address)


def test_sessions_become_chains_with_headers_that_a_recovery_reads(
    address: str, feed: Feed
) -> None:
    whole, late = new_trace(), new_trace()
    with joining(address):
        feed.send(*whole.whole())
        feed.send(late.event("tool_executed", call_id="c"))
        feed.flush()
        traces = [whole.trace_id, late.trace_id]
        stored = wait_for(address, lambda found: has_all(traces, found))

    (chain,), (fragment,) = stored.of(whole.trace_id), stored.of(late.trace_id)
    assert (chain["state"], chain["close_reason"], chain["completeness"]) == (
        ("closed", "counts", "complete")
    )
    assert (fragment["state"], fragment["close_reason"]) == ("fragment", "idle")
    (headers,) = stored.headers_of(whole.trace_id)
    lane = chain["evidence"][0]["partition"]
    assert headers["w"] == b"join"
    assert headers["kind"] == b"chain"
    assert int(headers["n"]) == chain["part"]
    assert headers["session"] == whole.trace_id.encode() + b"\x08acme"
    cut = [int(part) for part in headers["cut"].split(b",")]
    for place in chain["evidence"]:
        assert place["partition"] == lane
        assert place["offset"] < cut[events.event_topics().index(place["topic"])]
    check(address, feed, traces)


def damages(trace: Trace) -> list[tuple[str, bytes, bytes, str]]:
    """(topic, key, value, code) of records that are no events."""
    event = trace.event("prompt_submitted")
    newer = event.value[:2] + b"newer!!!" + event.value[10:]
    return [
        (PROMPTS, event.key, event.value[:-1], "truncated"),
        (PROMPTS, event.key, event.value + event.value, "trailing_bytes"),
        (PROMPTS, b"f" * 32, event.value, "wrong_key"),
        (TOOLS, event.key, event.value, "wrong_topic"),
        (PROMPTS, event.key, b"plain text", "not_framed"),
        (PROMPTS, event.key, b"", "empty"),
        (PROMPTS, event.key, newer, "unknown_schema"),
    ]


def test_what_is_no_event_is_dead_lettered_once_with_place_and_reason(
    address: str, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The rule's own wait is a minute.
    soon = functools.partial(SchemaTopic, rule=StandingRule(wait_ms=100))
    monkeypatch.setattr(join, "SchemaTopic", soon)
    trace = new_trace()
    expected: list[tuple[Place, bytes, bytes, str]] = []
    with joining(address) as worker:
        feed.send(trace.event("session_started"))
        feed.flush()
        for topic, key, value, code in damages(trace):
            before = len(feed.places)
            feed.send_bytes(topic, key, value)
            expected.append((feed.flush()[before], key, value, code))
        places = [place for place, *_ in expected]
        stored = wait_for(address, lambda s: all(s.letter_at(place) for place in places))
        counted = {code: worker.figure("dead_letters_total", code=code) for *_, code in expected}

    for place, key, value, code in expected:
        (letter,) = stored.letter_at(place)
        assert (letter["code"], letter["stage"]) == (code, "join")
        assert (letter["key"], letter["value"]) == (key, value)
        assert letter["reason"]
    assert counted == dict.fromkeys(counted, 1.0)
    check(address, feed, [trace.trace_id])


def test_duplicates_are_counted_and_named_nowhere(address: str, feed: Feed) -> None:
    trace = new_trace()
    made = trace.whole()
    with joining(address):
        feed.send(*made[:-1], *made[:-1], made[-1])
        feed.flush()
        stored = wait_for(address, lambda found: has_all([trace.trace_id], found))

    (chain,) = stored.of(trace.trace_id)
    assert (chain["events"], chain["duplicates"]) == (len(made), len(made) - 1)
    check(address, feed, [trace.trace_id])


def test_workers_share_the_lanes_and_take_over_from_each_other(address: str, feed: Feed) -> None:
    traces = []
    with joining(address, 0) as first:
        traces += send_sessions(feed, 20)
        assert until(lambda: has_all(traces, read_stored(address)))
        second = Worker(join_settings(address, 1))
        try:
            traces += send_sessions(feed, 20)
            assert until(lambda: len(first.lanes()) == len(second.lanes()) == LANES // 2)
            traces += send_sessions(feed, 20)
            assert until(lambda: has_all(traces, read_stored(address)))
            assert second.figure("events_total") > 0
        finally:
            second.stop()
        assert second.error is None
        traces += send_sessions(feed, 20)
        # The second's lanes come back when its session has timed out.
        assert until(lambda: has_all(traces, read_stored(address)))

    check(address, feed, traces)


def test_a_restarted_worker_goes_on_where_it_was(address: str, feed: Feed) -> None:
    open_one = new_trace()
    made = open_one.whole()
    with joining(address):
        feed.send(*made[:2])
        feed.flush()
        others = send_sessions(feed, 5)
        assert until(lambda: has_all(others, read_stored(address)))
    traces = [open_one.trace_id, *others, *send_sessions(feed, 5)]
    feed.send(*made[2:])
    feed.flush()

    def taken(found: Stored) -> int:
        # On a slow machine the first part may have closed before the rest came.
        return sum(chain["events"] for chain in found.of(open_one.trace_id))

    with joining(address):
        stored = wait_for(
            address, lambda found: has_all(traces, found) and taken(found) == len(made)
        )

    assert taken(stored) == len(made)
    check(address, feed, traces)


def test_a_second_process_with_the_same_slot_ends_the_first_with_a_sentence(
    address: str, feed: Feed
) -> None:
    zombie = Worker(join_settings(address))
    traces = send_sessions(feed, 5)
    assert until(lambda: has_all(traces, read_stored(address)))
    with joining(address):
        assert until(lambda: not zombie.running)
        traces += send_sessions(feed, 5)
        assert until(lambda: has_all(traces, read_stored(address)))

    assert isinstance(zombie.error, Fatal)
    assert "another process, at /127.0.0.1, runs as trailweave-join-0" in str(zombie.error)
    check(address, feed, traces)


def test_a_client_that_hears_nothing_is_given_up(
    address: str, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "CONFIRM_S", 0.1)
    settings = join_settings(address)
    worker = join.JoinWorker(settings)
    worker._silence = silence.Silence(settings.kafka, silence_s=0.1)

    def stepped(done: Callable[[], bool]) -> bool:
        with contextlib.suppress(Retryable):
            worker.step()
        return done()

    with contextlib.closing(worker):
        assert until(lambda: stepped(lambda: bool(worker.lanes)))
        before = worker._consumer
        before.pause(before.assignment())
        traces = send_sessions(feed, 5)
        assert until(lambda: stepped(lambda: has_all(traces, read_stored(address))))
        assert worker._consumer is not before

    check(address, feed, traces)


def test_a_worker_waits_while_kafka_is_away(engine: KafkaEngine, feed: Feed) -> None:
    with joining(engine.address) as worker:
        traces = send_sessions(feed, 5)
        assert until(lambda: has_all(traces, read_stored(engine.address)))
        engine.kill()
        spooled = [new_trace() for _ in range(5)]
        for trace in spooled:
            feed.send(*trace.whole())
        engine.start()
        feed.flush()
        traces += [trace.trace_id for trace in spooled]
        stored = wait_for(engine.address, lambda found: has_all(traces, found))
        assert worker.running

    assert has_all(traces, stored)
    check(engine.address, feed, traces)


def children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid}


def test_children_share_the_closings_and_one_that_is_killed_costs_nothing(
    address: str, feed: Feed
) -> None:
    with joining(address, closers=2) as worker:
        traces = send_sessions(feed, 100)
        assert until(lambda: worker.figure("events_total") >= len(feed.places))
        # They are asked for by a batch that is worth it, and take part from the next one on.
        while worker.figure("closers") < 2:
            traces += send_sessions(feed, 100)
        assert len(children()) == 2
        os.kill(min(children()), signal.SIGKILL)
        traces += send_sessions(feed, 300)
        assert until(lambda: worker.figure("closers_lost_total") == 1)
        traces += send_sessions(feed, 300)
        assert until(lambda: has_all(traces, read_stored(address)))
        assert worker.figure("recoveries_total") == 1

    assert children() == set()
    check(address, feed, traces)


@pytest.mark.parametrize("closers", [0, 1])
def test_a_bad_rule_of_the_users_own_stops_no_session(
    address: str, feed: Feed, monkeypatch: pytest.MonkeyPatch, closers: int
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr(closers_module, "EVENTS_MIN", 1)
    rules = RulesConfig(own=OwnConfig("tests.own.bad", deadline_s=0.5))
    with joining(address, rules=rules, closers=closers) as worker:
        made = {how: new_trace() for how in ("endless", "exit", "raise", "production")}
        for how, trace in made.items():
            feed.send(*trace.whole(2, environment=how))
        feed.flush()
        traces = [trace.trace_id for trace in made.values()]
        stored = wait_for(address, lambda found: has_all(traces, found))
        assert until(lambda: worker.figure("own_rules_failed_total") > 0 or closers > 0)
    lacking = {how: set(stored.of(t.trace_id)[0]["not_evaluable"]) for how, t in made.items()}

    assert {"misbehaves", "beside_it"} <= lacking["endless"]
    assert {"misbehaves", "beside_it"} <= lacking["exit"]
    assert "misbehaves" in lacking["raise"]
    assert not {"misbehaves", "beside_it"} & lacking["production"]
    check(address, feed, traces)


def test_confluent_framed_events_become_chains(address: str, feed: Feed) -> None:
    with SchemaRegistryClient.new_client({"url": "mock://join"}) as client:
        encoder = Encoder(register_all(client))
        schemas = ByFraming(NoStandings(), RegistrySchemas(client))
        framed, plain = new_trace(), new_trace()
        with joining(address, schemas=schemas, closers=1):
            for made in framed.whole(30):
                topic = events.event_topics()[made.topic]
                feed.send_bytes(topic, made.key, encoder.encode(made.name, made.record))
            feed.send(*plain.whole())
            feed.flush()
            traces = [framed.trace_id, plain.trace_id]
            stored = wait_for(address, lambda found: has_all(traces, found))

    assert [chain["completeness"] for chain in stored.of(framed.trace_id)] == ["complete"]
    assert [chain["close_reason"] for chain in stored.of(framed.trace_id)] == ["counts"]
    check(address, feed, traces)


def children_of(pid: int) -> set[int]:
    listing = ["ps", "-A", "-o", "pid=,ppid="]
    found = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in found.splitlines()]
    return {child for child, parent in pairs if parent == pid}


def test_the_commands_children_die_with_it(address: str, feed: Feed, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trailweave.deploy.cli", "join", "--closers", "1"]
    with subprocess.Popen(
        command, env={**os.environ, "TRAILWEAVE_KAFKA": address}, cwd=tmp_path
    ) as program:
        traces = []

        def has_children() -> bool:
            traces.extend(send_sessions(feed, 100))
            # One of them is multiprocessing's own.
            return len(children_of(program.pid)) == 2

        started = until(has_children)
        left = children_of(program.pid)
        program.kill()
    ended = until(lambda: not any(map(lives, left)))
    with joining(address):
        assert until(lambda: has_all(traces, read_stored(address)))

    assert started
    assert ended
    check(address, feed, traces)


class NoStandings(NoSchemas):
    """A topic in which nobody has published anything."""

    def standing(self, *_: object) -> Standing:
        return "unknown"


class Unsure(Producer):
    """A broker that never says how a commit came out."""

    asked = 0

    def commit_transaction(self, *_: object) -> None:
        Unsure.asked += 1
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer", retriable=True))


def test_a_commit_whose_outcome_is_not_known_does_not_keep_a_worker_from_stopping(
    address: str, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(transactions, "Producer", Unsure)
        patch.setattr(transactions, "TRANSACTION_TIMEOUT_S", 5)
        worker = Worker(join_settings(address))
        traces = send_sessions(feed, 5)
        assert until(lambda: Unsure.asked > 0)
        worker.stop()
    with joining(address):
        assert until(lambda: has_all(traces, read_stored(address)))

    assert worker.error is None
    check(address, feed, traces)


class Failing(SchemaTopic):
    """A registry that is away for the first questions, and then doesn't know."""

    asked = 0

    def standing(self, *_: object) -> Standing:
        Failing.asked += 1
        if Failing.asked <= 3:
            raise Retryable("couldn't read the schemas")
        return "unknown"


def test_a_registry_that_fails_while_sessions_close_loses_none_of_them(
    address: str, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "SchemaTopic", Failing)
    traces = [new_trace() for _ in range(30)]
    with joining(address):
        for number, trace in enumerate(traces):
            event = trace.event("tool_executed", call_id="c")
            newer = event.value[:2] + b"newer!!!" + event.value[10:]
            feed.send_bytes(TOOLS, event.key, newer if number == 15 else event.value)
        feed.flush()
        ids_of = [trace.trace_id for trace in traces]
        wait_for(address, lambda stored: has_all(ids_of, stored))

    assert Failing.asked > 3
    check(address, feed, ids_of)


def test_a_lane_that_another_worker_has_a_part_of_is_not_joined(tmp_path: Path) -> None:
    with KafkaEngine(tmp_path / "kafka") as engine:
        make_topics(engine.address, 1)
        admin = AdminClient({"bootstrap.servers": engine.address})
        admin.create_partitions([NewPartitions(PROMPTS, 2)])[PROMPTS].result(DEADLINE_S)
        feed = Feed(engine.address)
        feed.send(*Trace().whole())
        feed.flush()
        with joining(engine.address) as worker:
            tried = until(lambda: worker.figure("retries_total") > 1)
        stored = read_stored(engine.address)

    assert tried
    assert stored == Stored()


def sent_to_the_end(
    address: str, feed: Feed, opened: list[tuple[Trace, list[Made]]], begun: int
) -> tuple[list[str], Stored]:
    """The traces, once what was left of each after its first events is sent and they are closed."""
    for _, made in opened:
        feed.send(*made[begun:])
    feed.flush()
    traces = [trace.trace_id for trace, _ in opened]
    return traces, wait_for(address, lambda found: has_all(traces, found))


def test_a_denied_call_that_ran_is_told_before_its_session_ends(address: str, feed: Feed) -> None:
    trace = new_trace()
    denied: dict[str, Any] = {"call_id": "c", "mode": "enforced", "effect": "deny"}
    feed.send(
        trace.event("session_started", expected_sources=["policy"]),
        trace.event("policy_decided", **denied),
        trace.event("tool_executed", call_id="c", tool="shell"),
    )
    feed.flush()
    open_long = ClosingTimes(grace_ms=60_000, idle_ms=60_000)
    with joining(address, times=open_long):
        early = wait_for(address, lambda found: bool(found.revisions_of(trace.trace_id)))
        feed.send(trace.ended({"agent-1": 4}))
        feed.flush()
        stored = wait_for(address, lambda found: has_all([trace.trace_id], found))

    (revision,) = early.revisions_of(trace.trace_id)
    assert early.of(trace.trace_id) == []
    assert (revision["state"], revision["events"]) == ("open", 3)
    assert [finding["rule"] for finding in revision["findings"]] == ["denied_but_executed"]
    (closed,) = stored.of(trace.trace_id)
    states = [
        (finding["rule"], finding["chain_state"])
        for finding in stored.findings
        if finding["trace_id"] == trace.trace_id
    ]
    assert (closed["state"], closed["events"]) == ("closed", 4)
    assert ("denied_but_executed", "open") in states
    assert ("denied_but_executed", "closed") in states
    check(address, feed, [trace.trace_id])


def test_a_long_open_session_moves_to_chunks_and_closes_whole_after_a_restart(
    address: str, feed: Feed
) -> None:
    long_times = ClosingTimes(grace_ms=60_000, idle_ms=60_000)
    opened = [(trace, trace.whole(30)) for trace in (new_trace(), new_trace("other"), new_trace())]
    settings: dict[str, Any] = {"times": long_times, "promote_s": 0.5}
    for _, made in opened:
        feed.send(*made[:60])
    feed.flush()
    with joining(address, **settings):
        assert until(lambda: len(live_chunks(address)) == 3 and replayed(address) == 0)
        assert in_chunks(address) == 180
    assert until(lambda: group_is_empty(address))
    with joining(address, **settings) as worker:
        assert until(lambda: held(worker) == 180)
        traces, stored = sent_to_the_end(address, feed, opened, 60)

    chains = [chain for trace in traces for chain in stored.of(trace)]
    assert [(chain["completeness"], chain["duplicates"]) for chain in chains] == [
        ("complete", 0)
    ] * 3
    assert live_chunks(address) == {}
    assert in_chunks(address) == 0
    check(address, feed, traces)


def test_sessions_over_the_memory_limit_are_left_to_chunks_and_close_whole(
    address: str, feed: Feed
) -> None:
    opened = [(trace, trace.whole(30)) for trace in (new_trace() for _ in range(12))]
    settings: dict[str, Any] = {
        "times": ClosingTimes(grace_ms=60_000, idle_ms=60_000),
        "held_bytes_max": 50_000,
    }

    def is_held(worker: Worker, count: int) -> bool:
        return held(worker) == count and held(worker, "bytes") <= 50_000

    for _, made in opened:
        feed.send(*made[:80])
    feed.flush()
    with joining(address, **settings) as worker:
        assert until(lambda: is_held(worker, 12 * 80))
    # What a new start reads is no more either.
    with joining(address, **settings) as worker:
        assert until(lambda: is_held(worker, 12 * 80))
        traces, stored = sent_to_the_end(address, feed, opened, 80)

    chains = [chain for trace in traces for chain in stored.of(trace)]
    assert [chain["completeness"] for chain in chains] == ["complete"] * len(opened)
    assert live_chunks(address) == {}
    check(address, feed, traces)


def test_the_checker_sees_what_is_doubled_or_left_out(address: str, feed: Feed) -> None:
    trace = new_trace()
    made: list[Made] = trace.whole()
    with joining(address):
        feed.send(*made)
        feed.flush()
        found = wait_for(address, lambda stored: has_all([trace.trace_id], stored))
    good = own(found, [trace.trace_id], feed.places)
    without = {**good.chains[0], "evidence": good.chains[0]["evidence"][1:]}

    assert faults(feed.places, good) == []
    assert faults(feed.places, Stored(good.chains * 2))
    assert faults(feed.places, Stored([without]))
    assert faults(feed.places, Stored())
    assert faults(feed.places[1:], good)
