"""Memory pressure: which partitions wait, how much is given back, what comes back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from trailweave.schemas.events import OPEN_SESSIONS_TOPIC
from trailweave.stream_processors import chunks, lane_reader
from trailweave.stream_processors.lanes import Lane
from trailweave.stream_processors.memory import Memory

from tests.unit.stream_processors.builders import ENCODER, TOPICS, Trace, feed, lane

LIMIT = 1_000


class Partitions:
    """A consumer, as far as partitions wait or go on."""

    def __init__(self) -> None:
        self.waiting: set[str] = set()

    def pause(self, parts: list[TopicPartition]) -> None:
        self.waiting |= {part.topic for part in parts}

    def resume(self, parts: list[TopicPartition]) -> None:
        self.waiting -= {part.topic for part in parts}


def memory() -> Memory:
    return Memory({}, LIMIT)


def full(size: int, *newest_ms: int) -> Lane:
    """A lane whose sessions hold so much, with the newest times of its topics."""
    held = lane()
    held.newest_ms = list(newest_ms)
    held.held_bytes = size
    return held


def balanced(pressure: Memory, parts: Any, *lanes: Lane) -> set[str]:
    pressure.balance(parts, lanes)
    return set(parts.waiting)


def test_above_the_limit_only_what_moves_the_clock_is_read() -> None:
    waiting = balanced(memory(), Partitions(), full(1_001, 50, 20, 20, 30, 90))

    assert waiting == {TOPICS[0], TOPICS[3], TOPICS[4]}


def test_a_topic_of_which_nothing_is_known_is_waited_for() -> None:
    assert balanced(memory(), Partitions(), full(1_001, 50, -1, 50, 50, 50)) == {
        TOPICS[0], TOPICS[2], TOPICS[3], TOPICS[4],
    }  # fmt: skip


def test_topics_at_the_same_time_do_not_wait_for_each_other() -> None:
    assert balanced(memory(), Partitions(), full(2_000, 50, 50, 50, 50, 50)) == set()


def test_up_to_the_limit_nothing_waits() -> None:
    assert balanced(memory(), Partitions(), full(1_000, 50, 20, 20, 30, 90)) == set()


def test_who_waits_goes_on_when_the_others_have_caught_up_or_memory_is_free() -> None:
    pressure, parts = memory(), Partitions()
    first = balanced(pressure, parts, full(1_001, 50, 20, 20, 30, 90))
    caught_up = balanced(pressure, parts, full(1_001, 50, 60, 60, 60, 90))
    just_below = balanced(pressure, parts, full(950, 50, 60, 60, 60, 90))
    well_below = balanced(pressure, parts, full(800, 50, 60, 60, 60, 90))

    assert TOPICS[0] in first - caught_up
    assert just_below == caught_up == {TOPICS[1], TOPICS[2], TOPICS[3], TOPICS[4]}
    assert well_below == set()


def test_just_below_the_limit_nobody_waits_whom_the_clock_waits_for() -> None:
    pressure, parts = memory(), Partitions()
    first = balanced(pressure, parts, full(1_001, 50, 20, 20, 30, 90))
    at_their_ends = balanced(pressure, parts, full(950, 50, 99, 99, 99, 90))

    assert first == {TOPICS[0], TOPICS[3], TOPICS[4]}
    assert at_their_ends == {TOPICS[3], TOPICS[4]}


def test_what_is_away_comes_back_while_more_of_its_session_is_on_its_way_to_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, whole = lane(), Trace().whole()
    feed(held, *whole[:3])
    (session,) = held.sessions.values()
    ((key, chunk),) = chunks.promoted(held, session, held.turn())
    session.chunks[key] = 7  # committed
    held.leave(session)
    feed(held, *whole[3:])
    chunks.promoted(held, session, held.turn())
    asked = []

    def read_at(_: object, topic: str, index: int, offsets: list[int]) -> list[Any]:
        asked.append((topic, index, offsets))
        value = ENCODER.encode("session_chunk", chunk)
        return [SimpleNamespace(offset=lambda: 7, value=lambda: value)]

    monkeypatch.setattr(lane_reader, "reading_consumer", dict)
    monkeypatch.setattr(lane_reader, "read_at", read_at)
    (due,) = memory().take_due([(held, held.turn())])

    assert asked == [(OPEN_SESSIONS_TOPIC, held.index, [7])]
    assert due.session.values == [made.value for made in whole]


def test_what_a_turn_has_no_room_for_is_left_for_the_next_which_need_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, pressure = lane(), memory()
    for trace_id in ("1" * 32, "2" * 32):
        feed(held, *Trace(trace_id).whole())
    monkeypatch.setattr("trailweave.stream_processors.memory.TURN_BYTES_MAX", 10)

    turns = [(len(pressure.take_due([(held, held.turn())])), pressure.behind) for _ in range(2)]

    assert turns == [(1, True), (1, False)]


STATES = st.tuples(st.integers(800, 1_100), st.lists(st.integers(-1, 9), min_size=5, max_size=5))


@given(st.lists(STATES, max_size=8))
def test_whatever_came_before_the_clock_waits_for_nobody_who_waits(
    states: list[tuple[int, list[int]]],
) -> None:
    pressure, parts = memory(), Partitions()
    for size, newest_ms in states:
        held = full(size, *newest_ms)
        waiting = balanced(pressure, parts, held)
        late = [one for one, at_ms in zip(TOPICS, newest_ms, strict=True)
                if at_ms == held.clock_ms()]  # fmt: skip

        assert not waiting.intersection(late)


def test_a_new_assignment_has_no_one_waiting() -> None:
    pressure, parts = memory(), Partitions()
    balanced(pressure, parts, full(1_001, 50, 20, 20, 30, 90))
    pressure.assigned(parts, [TopicPartition(topic, 0) for topic in TOPICS])  # type: ignore[arg-type]

    assert parts.waiting == set()
    assert TOPICS[4] in balanced(pressure, parts, full(1_001, 50, 20, 20, 30, 90))


def test_above_the_limit_as_much_is_given_back_as_keeps_it_below_for_a_while() -> None:
    assert memory().excess([full(700, 1), full(300, 1)]) == 0
    assert memory().excess([full(700, 1), full(301, 1)]) == 301


def test_what_is_due_at_once_is_closed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trailweave.stream_processors.memory.TURN_BYTES_MAX", 2_000)
    held = lane()
    for number in range(20):
        feed(held, *Trace(f"{number:032x}").whole())
    closed = []
    while held.sessions:
        due = memory().take_due([(held, held.turn())])
        closed.append([one.session.key for one in due])

    assert all(closed)
    assert len(closed) > 5
    assert len({key for keys in closed for key in keys}) == sum(map(len, closed)) == 20


def test_what_is_due_is_closed() -> None:
    held = lane()
    feed(held, *Trace().whole())
    (due,) = memory().take_due([(held, held.turn())])

    assert (due.reason, due.session.closed, held.sessions) == ("counts", True, {})
