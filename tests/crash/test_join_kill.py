"""The join under load, killed at random moments: nothing lost, nothing doubled.

The join is a process of its own and dies by SIGKILL, so no code of it can prepare for that. What is
stored afterwards is read by a checker that knows nothing of the join (`join_kafka.faults`).
"""

from __future__ import annotations

import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from trailweave.deploy.local.engines import KafkaEngine
from trailweave.schemas import events, ids

from tests.integration.join_kafka import (
    DEADLINE_S,
    Feed,
    Place,
    Stored,
    faults,
    make_topics,
    read_stored,
    until,
)
from tests.unit.stream_processors.builders import Made, Trace

LANES = 2
KILLS = 12
TRACES = 600
SEED = 20_261_121
#: A worker that came back without its old place in the group would wait for as long.
SESSION_TIMEOUT_S = 30

PROGRAM = """
import logging, sys, threading
from trailweave.stream_processors.join import JoinSettings, run
from trailweave.stream_processors.session import ClosingTimes

logging.basicConfig(level=logging.INFO, format="%(message)s")
logging.info("started")
run(
    JoinSettings(
        {"bootstrap.servers": sys.argv[1], "log_level": 0},
        times=ClosingTimes(grace_ms=300, idle_ms=1500, unknown_schema_wait_ms=300),
        linger_s=0.02,
        batch_events_max=40,
        session_timeout_s=int(sys.argv[2]),
    ),
    threading.Event(),
)
"""


@dataclass
class Outcome:
    """What a run of kills left behind."""

    places: list[Place]
    stored: Stored
    #: From a worker's first line to its lanes being back, after each kill.
    recoveries_s: list[float] = field(default_factory=list)
    #: Events that its open sessions held then.
    held: list[int] = field(default_factory=list)


class Process:
    """The join as a process, until it is killed."""

    def __init__(self, address: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(SESSION_TIMEOUT_S)],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append((time.monotonic(), line))

    def at(self, words: str) -> tuple[float, str] | None:
        return next(((at_s, line) for at_s, line in self.lines if words in line), None)

    def back(self) -> tuple[float, int]:
        """Wait for its lanes; how long they took, and how many events they held."""
        assert until(lambda: self.at("are back with") is not None), self.lines[-20:]
        started, back = self.at("started"), self.at("are back with")
        assert started is not None
        assert back is not None
        return back[0] - started[0], int(back[1].split(" with ")[1].split()[0])

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        assert self._process.stderr is not None
        self._process.stderr.close()


def load(chance: random.Random) -> Iterator[tuple[str, bytes, bytes]]:
    """Sessions that overlap, with repeats, damage, gaps, and events after the close."""
    open_ones: list[list[Made]] = []
    for _ in range(TRACES):
        trace = Trace(ids.new_trace_id(), chance.choice(("acme", "globex")))
        made = trace.whole(chance.randint(0, 2), expected_sources=["policy", "agent"])
        if chance.random() < 0.3:
            del made[chance.randrange(len(made))]
        if chance.random() < 0.3:
            made.insert(chance.randrange(len(made)), trace.event("tool_executed", call_id="ghost"))
        if chance.random() < 0.2:
            chance.shuffle(made)
        open_ones.append(made)
        while len(open_ones) > 40:
            yield from sent(open_ones, chance)
    while open_ones:
        yield from sent(open_ones, chance)


def sent(open_ones: list[list[Made]], chance: random.Random) -> Iterator[tuple[str, bytes, bytes]]:
    made = chance.choice(open_ones)
    event = made.pop(0)
    if not made:
        open_ones.remove(made)
    topic = events.event_topics()[event.topic]
    yield topic, event.key, event.value
    match chance.randrange(20):
        case 0:
            yield topic, event.key, event.value
        case 1:
            yield topic, event.key, event.value[: chance.randrange(len(event.value))]
        case 2:
            yield topic, b"another key", event.value


def send_load(address: str, feed: Feed, done: threading.Event) -> None:
    """Without a pause until the kills are over, in bursts that last about as long as they do."""
    chance = random.Random(SEED)
    for number, (topic, key, value) in enumerate(load(chance)):
        feed.send_bytes(topic, key, value)
        if number % 40 == 0 and not done.is_set():
            done.wait(chance.random() * 0.5)
    feed.flush()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """One run: load in a thread, the join killed again and again, then left to finish."""
    with KafkaEngine(tmp_path_factory.mktemp("kill") / "kafka") as engine:
        make_topics(engine.address, LANES)
        yield run_of_kills(engine.address)


def run_of_kills(address: str) -> Outcome:
    chance = random.Random(SEED)
    feed, done = Feed(address), threading.Event()
    found = Outcome(feed.places, Stored())
    feeding = threading.Thread(target=send_load, args=(address, feed, done))
    feeding.start()
    for number in range(KILLS + 1):
        process = Process(address)
        try:
            seconds, held = process.back()
            if number:
                found.recoveries_s.append(seconds)
                found.held.append(held)
            if number == KILLS:
                done.set()
                feeding.join(DEADLINE_S)
                until(lambda: read_stored(address).taken() >= len(feed.places))
            else:
                time.sleep(chance.random() * 0.8)
        finally:
            process.kill()
    return replace(found, stored=read_stored(address))


def test_every_event_is_in_one_chain_or_dead_letter(outcome: Outcome) -> None:
    assert len(outcome.places) > TRACES
    assert faults(outcome.places, outcome.stored) == []


def test_the_kills_came_while_sessions_were_open(outcome: Outcome) -> None:
    assert len(outcome.recoveries_s) == KILLS
    assert sum(held > 0 for held in outcome.held) > KILLS // 2


def test_a_killed_worker_has_its_lanes_back_before_its_session_times_out(
    outcome: Outcome,
) -> None:
    assert statistics.median(outcome.recoveries_s) < SESSION_TIMEOUT_S / 2


def test_findings_are_stored_once(outcome: Outcome) -> None:
    named = sum(len(chain["findings"]) for chain in outcome.stored.chains)

    assert named == len(outcome.stored.findings) > 0


def test_the_checker_sees_a_doubled_record(outcome: Outcome) -> None:
    good = outcome.stored
    doubled = replace(good, chains=[*good.chains, good.chains[7]])

    assert faults(outcome.places, doubled)
    assert faults(outcome.places, replace(good, letters=[*good.letters, good.letters[0]]))
    assert faults(outcome.places, replace(good, findings=[*good.findings, good.findings[0]]))


def test_the_checker_sees_an_omitted_record(outcome: Outcome) -> None:
    good = outcome.stored

    assert faults(outcome.places, replace(good, chains=good.chains[1:]))
    assert faults(outcome.places, replace(good, letters=good.letters[1:]))
    assert faults(outcome.places, replace(good, findings=good.findings[1:]))
