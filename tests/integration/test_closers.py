"""Closings shared out to child processes: the same records, whatever becomes of the children."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trailweave.deploy.fleet.arrival import Sent
from trailweave.deploy.fleet.fleet import Fleet
from trailweave.schemas.codec import Encoder
from trailweave.schemas.errors import Retryable
from trailweave.stream_processors import closers
from trailweave.stream_processors.chain import Source
from trailweave.stream_processors.closers import Closers, Due
from trailweave.stream_processors.closing import Sealed, close, seal
from trailweave.stream_processors.lanes import Lane
from trailweave.stream_processors.verdict import RulesConfig

from tests.processes import lives
from tests.unit.stream_processors.builders import (
    DECODER,
    FOLD_DECODER,
    START_US,
    TIMES,
    TOPICS,
    Made,
    Trace,
    confirm,
    feed,
    no_other_schemas,
)

CONFIG = RulesConfig(expected_sources=frozenset({"policy"}), digest="sha256:of-its-own")
DEADLINE_S = 20.0
LANES = 2


@functools.cache
def fleet() -> list[Sent]:
    return [sent for sent in Fleet(40, 3, START_US, 0.3) if sent.topic in TOPICS]


def fleet_lanes() -> list[Lane]:
    """Lanes with a whole fleet in them: anomalies, duplicates, and bytes that are no events."""
    lanes = [Lane(n, [0] * len(TOPICS), TIMES, FOLD_DECODER, number=n + 6) for n in range(LANES)]
    for sent in fleet():
        topic, held = TOPICS.index(sent.topic), lanes[sum(sent.key) % LANES]
        held.fold(topic, held.positions[topic], 5, sent.key, sent.value)
    for held in lanes:
        confirm(held, 9_000)
    return lanes


def due(lanes: list[Lane]) -> list[Due]:
    """What is due, closed in its lanes."""
    found = []
    for held in lanes:
        turn = held.turn()
        for session, reason in held.due():
            held.close(session)
            found.append(Due(held, turn, session, reason))
    return found


class Worker:
    """Closes in this process, as a worker does, and counts how often."""

    def __init__(self) -> None:
        self.closed = 0
        self.encoder = Encoder()

    def here(self, item: Due) -> Sealed | None:
        self.closed += 1
        source = Source(TOPICS, item.lane.index, DECODER, no_other_schemas)
        closing = close(item.session, item.reason, item.turn, source, CONFIG)
        return None if closing is None else seal(closing, self.encoder)


def closed(pool: Closers, lanes: list[Lane], here: Callable[[Due], Sealed | None]) -> list[Sealed]:
    pool.begin(due(lanes), here)
    return [sealed for _, sealed in pool.finish(here)]


def warm(pool: Closers, count: int) -> None:
    """Let all children start."""
    pool.start()
    wait_for(pool, lambda: pool.ready == count)


def wait_for(pool: Closers, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        pool.begin([], Worker().here)
        time.sleep(0.01)


def pids() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid}


@pytest.fixture(scope="module")
def alone() -> list[Sealed]:
    """What a worker without children makes of the fleet."""
    return closed(Closers(0, CONFIG), fleet_lanes(), Worker().here)


@pytest.fixture(scope="module")
def shared_pool() -> Iterator[Closers]:
    pool = Closers(2, CONFIG)
    warm(pool, 2)
    yield pool
    pool.stop()


@pytest.fixture
def pool(shared_pool: Closers) -> Closers:
    """Two children that are ready."""
    if shared_pool.ready < 2:
        warm(shared_pool, 2)
    return shared_pool


def test_a_fleet_holds_what_the_other_tests_need(alone: list[Sealed]) -> None:
    assert {sealed.kind for sealed in alone} == {"chain", "fragment"}
    assert any(sealed.refused for sealed in alone)
    assert any(sealed.findings for sealed in alone)
    assert any(sealed.duplicates for sealed in alone)


def test_children_make_the_same_records_in_the_same_order(
    pool: Closers, alone: list[Sealed]
) -> None:
    worker = Worker()
    shared = closed(pool, fleet_lanes(), worker.here)

    assert shared == alone
    assert 0 < worker.closed < len(alone) / 2


def test_the_worker_closes_its_own_share_while_it_waits_for_something_else(
    pool: Closers, alone: list[Sealed]
) -> None:
    worker = Worker()
    pool.begin(due(fleet_lanes()), worker.here)
    while pool.close_one(worker.here):
        pass
    own = worker.closed

    assert 0 < own < len(alone)
    assert [sealed for _, sealed in pool.finish(worker.here)] == alone
    assert not pool.close_one(worker.here)


def test_a_share_goes_to_a_child_in_parts_of_any_size(
    pool: Closers, alone: list[Sealed], monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (1, 2, 3, len(alone)):
        monkeypatch.setattr(closers, "_PART_SESSIONS", size)

        assert closed(pool, fleet_lanes(), Worker().here) == alone


def test_a_small_batch_is_closed_by_the_worker_itself(pool: Closers) -> None:
    held, worker = Lane(0, [0] * len(TOPICS), TIMES, FOLD_DECODER), Worker()
    feed(held, *Trace().whole())

    assert len(closed(pool, [held], worker.here)) == 1
    assert worker.closed == 1


def large(name: str, **fields: Any) -> list[Made]:
    """A session that is worth a child."""
    trace = Trace()
    start = trace.event("session_started")
    return [start, *(trace.event(name, call_id=f"c{n}", **fields) for n in range(400))]


def test_a_session_of_unknown_schemas_is_closed_by_the_worker_itself(pool: Closers) -> None:
    made = large("tool_executed")
    newer = [e.value[:2] + b"newer!!!" + e.value[10:] for e in made[-1:]]
    held, worker = Lane(0, [0] * len(TOPICS), TIMES, FOLD_DECODER), Worker()
    feed(held, *made)
    feed(held, made[-1], value=newer[0])
    confirm(held, 9_000)
    (sealed,) = closed(pool, [held], worker.here)

    assert worker.closed == 1
    assert [refused.reason.code for refused in sealed.refused] == ["unknown_schema"]


def test_a_child_hands_back_what_only_looks_like_a_built_in_schema() -> None:
    event = Trace().event("tool_executed", call_id="c")
    # Confluent framing whose id and first bytes are no more than the end of a fingerprint.
    forged = b"\x00" + event.value[1:]
    job = closers.Job(
        "idle",
        event.key + b"\x08acme",
        [forged],
        array("q", [0]).tobytes(),
        array("q", [1]).tobytes(),
        9_000,
        1,
        0,
    )

    assert closers.Desk(CONFIG).answer(job) == "elsewhere"


def test_a_session_that_is_not_whole_stays_and_closes_at_its_deadline(pool: Closers) -> None:
    made = large("tool_executed", producer_id="stranger")
    held = Lane(0, [0] * len(TOPICS), TIMES, FOLD_DECODER)
    trace = Trace(number=900, sequences={("agent-1", 1): 1})
    feed(held, *made, trace.ended({"agent-1": 3}))

    assert closed(pool, [held], Worker().here) == []
    confirm(held, 9_000)
    assert [sealed.close_reason for sealed in closed(pool, [held], Worker().here)] == ["grace"]


def test_while_children_close_sessions_their_lanes_take_more(pool: Closers) -> None:
    lanes = fleet_lanes()
    pool.begin(due(lanes), Worker().here)
    feed(lanes[0], Trace().event("session_started"), at_ms=9_000)

    assert pool.busy
    first = pool.finish(Worker().here)
    assert not pool.busy
    assert {item.turn.number for item, _ in first} == {7, 8}
    # As many events as were promised, and not distinct: that one closes with the next turn.
    assert len(closed(pool, lanes, Worker().here)) == 1
    assert [held.held_events for held in lanes] == [1, 0]


def test_what_was_begun_and_never_finished_is_dropped(pool: Closers, alone: list[Sealed]) -> None:
    before = pids()
    pool.begin(due(fleet_lanes()), Worker().here)

    assert closed(pool, fleet_lanes(), Worker().here) == alone
    assert pids() == before


def test_a_killed_childs_share_is_closed_and_another_child_comes(
    pool: Closers, alone: list[Sealed]
) -> None:
    victim = min(pids())
    worker = Worker()

    def here(item: Due) -> Sealed | None:
        # The shares were sent before.
        if worker.closed == 0:
            os.kill(victim, signal.SIGKILL)
        return worker.here(item)

    shared = closed(pool, fleet_lanes(), here)
    warm(pool, 2)

    assert shared == alone
    assert victim not in pids()
    assert len(pids()) == 2


def test_a_child_that_ends_between_batches_is_reaped_and_counted() -> None:
    lost: list[None] = []
    pool = Closers(1, CONFIG, lambda: lost.append(None))
    before = pids()
    warm(pool, 1)
    (child,) = pids() - before
    os.kill(child, signal.SIGKILL)
    wait_for(pool, lambda: pool.ready == 0)

    assert lost == [None]
    assert not lives(child)
    pool.stop()


def test_children_do_not_heed_what_the_terminal_sends_to_all(
    pool: Closers, alone: list[Sealed]
) -> None:
    before = pids()
    for pid in before:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)

    assert closed(pool, fleet_lanes(), Worker().here) == alone
    assert pids() == before


def test_an_error_of_the_worker_leaves_no_answer_behind(pool: Closers, alone: list[Sealed]) -> None:
    def away(_: Due) -> Sealed | None:
        raise Retryable("couldn't ask")

    with pytest.raises(Retryable):
        closed(pool, fleet_lanes(), away)
    warm(pool, 2)

    assert closed(pool, fleet_lanes(), Worker().here) == alone


def test_stopping_leaves_no_process() -> None:
    pool = Closers(1, CONFIG)
    before = pids()
    warm(pool, 1)
    children = pids() - before
    pool.stop()

    assert len(children) == 1
    assert all(not lives(pid) for pid in children)


PROGRAM = """
    import sys, time
    from tests.integration import test_closers as t

    def main():
        pool = t.Closers(1, t.CONFIG)
        t.warm(pool, 1)
        print(*t.pids(), flush=True)
        sys.stdin.read()

    if __name__ == "__main__":
        main()
"""


def test_a_program_that_forgets_to_stop_its_children_still_ends(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM), "utf-8")
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environ,
        text=True,
    ) as program:
        assert program.stdout is not None
        (child,) = map(int, program.stdout.readline().split())
        assert lives(child)
        program.communicate(timeout=DEADLINE_S)

    assert program.returncode == 0
    assert not lives(child)
