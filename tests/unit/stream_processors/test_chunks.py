"""Chunks: what they take, that they fit, and that a session comes back from them as it was."""

from __future__ import annotations

import gc

import pytest
from trailweave.schemas.codec import EVENT_BYTES_MAX
from trailweave.schemas.errors import Fatal
from trailweave.schemas.events import OPEN_SESSIONS_TOPIC
from trailweave.schemas.topics import load_topics
from trailweave.stream_processors import chunks, recovery
from trailweave.stream_processors.chunks import Chunk, Stored, events_of
from trailweave.stream_processors.closing import close
from trailweave.stream_processors.lanes import Lane
from trailweave.stream_processors.session import Session
from trailweave.stream_processors.verdict import RulesConfig

from tests.unit.stream_processors.builders import (
    ENCODER,
    TRACE,
    Made,
    Trace,
    closed,
    confirm,
    feed,
    lane,
    places,
    source,
)

KEY = TRACE.encode() + b"\x08acme"
AFTER_MS = 100


def promoted(held: Lane, at_ms: int = 1_000) -> list[Chunk]:
    confirm(held, at_ms)
    return [chunk for _, chunk in chunks.promote(held, held.turn(), AFTER_MS)]


def stored(found: list[Chunk]) -> list[Stored]:
    """The chunks as whoever reads the topic has them."""
    return [
        (key, offset, chunks.read(ENCODER.encode("session_chunk", chunk)))
        for offset, (key, chunk) in enumerate(found)
    ]


def restored(held: Lane, found: list[Chunk], room: int = 1 << 40) -> Lane:
    """A new lane where `held` stands, from chunks alone."""
    positions = list(held.positions)
    new = Lane(0, positions, held.times, held.decoder)
    point = recovery.Checkpoint(held.number, tuple(positions), tuple(positions), 0)
    recovery.replay(new, point, [], stored(found), [], room)
    return new


def test_what_a_session_has_held_for_long_goes_to_a_chunk_and_holds_no_low() -> None:
    held = lane()
    made = Trace().whole()
    feed(held, *made)
    ((key, chunk),) = promoted(held)

    assert (key, chunk["session"], chunk["number"]) == (KEY + b"|1|0", KEY, 1)
    assert [event["value"] for event in chunk["events"]] == [event.value for event in made]
    assert chunk["cut"] == held.positions == held.lows()


def test_what_is_young_stays() -> None:
    held = lane()
    feed(held, Trace().event("session_started"), at_ms=950)

    assert promoted(held, at_ms=1_050) == []
    assert held.lows() == [0, 0, 0, 0, 0]


def test_nothing_goes_to_chunks_while_the_clock_stands() -> None:
    held = lane()
    feed(held, Trace().event("session_started"))

    assert list(chunks.promote(held, held.turn(), AFTER_MS)) == []


def test_a_session_that_closes_needs_no_chunk() -> None:
    held = lane()
    feed(held, Trace().event("session_started"))
    held.close(held.sessions[KEY])

    assert promoted(held) == []


def test_a_later_chunk_holds_what_came_since_the_last() -> None:
    held = lane()
    trace = Trace()
    feed(held, trace.event("session_started"))
    promoted(held)
    late = trace.event("tool_executed", call_id="c")
    feed(held, late, at_ms=1_500)
    ((key, chunk),) = promoted(held, at_ms=2_000)

    assert (key, [event["value"] for event in chunk["events"]]) == (KEY + b"|2|0", [late.value])
    assert list(held.sessions[KEY].chunks) == [KEY + b"|1|0", KEY + b"|2|0"]
    assert promoted(held, at_ms=3_000) == []


def large_session() -> list[Made]:
    trace = Trace()
    big = trace.event("tool_executed", call_id="c", result="x" * (EVENT_BYTES_MAX - 1_000))
    small = [trace.event("tool_executed", call_id="c", result="x" * 9_000) for _ in range(200)]
    return [*small[:50], big, *small[50:]]


def test_a_large_session_goes_to_chunks_that_fit_into_records() -> None:
    held = lane()
    made = large_session()
    feed(held, *made)
    found = promoted(held)
    topic = next(t for t in load_topics(1) if t.name == OPEN_SESSIONS_TOPIC)
    sizes = [len(ENCODER.encode("session_chunk", chunk)) for _, chunk in found]

    assert len(found) > 3
    assert max(sizes) + 10_000 < topic.message_bytes_max
    assert sum(len(chunk["events"]) for _, chunk in found) == len(made)


def test_many_small_events_do_not_go_into_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_EVENTS_MAX", 4)
    held = lane()
    feed(held, *Trace().whole(2))
    found = promoted(held)

    assert [len(chunk["events"]) for _, chunk in found] == [4, 4, 2]
    assert [chunk["index"] for _, chunk in found] == [0, 1, 2]


def test_a_session_comes_back_from_its_chunks_and_closes_as_it_would_have() -> None:
    held = lane()
    trace = Trace()
    *made, end = trace.whole(2)
    feed(held, *made[:4], at_ms=10)
    found = promoted(held)
    feed(held, *made[4:], at_ms=1_500)
    found += promoted(held, at_ms=2_000)
    new = restored(held, found)
    for each in (held, new):
        feed(each, end, at_ms=2_100)
        confirm(each, 2_200)
    turn = held.turn()
    before, after = (
        close(each.sessions[KEY], "counts", turn, source(), RulesConfig()) for each in (held, new)
    )

    assert before == after is not None
    assert [closed(each) for each in (held, new)] == [[(KEY, "counts")]] * 2
    assert new.sessions == {}


def test_what_lies_below_the_cut_of_a_chunk_is_not_read_again() -> None:
    held = lane()
    trace = Trace()
    made = [trace.event("session_started"), trace.event("prompt_submitted")]
    feed(held, made[0])
    found = stored(promoted(held))
    new = Lane(0, [2, 0, 0, 0, 0], held.times, held.decoder)
    point = recovery.Checkpoint(1, (2, 0, 0, 0, 0), (0, 0, 0, 0, 0), 0)
    again = [(0, offset, 1, event.key, event.value) for offset, event in enumerate(made)]
    recovery.replay(new, point, [], found, again, 1 << 40)

    assert places(new.sessions[KEY]) == {(0, 0), (0, 1)}
    assert new.lows() == [1, 0, 0, 0, 0]
    assert new.sessions[KEY].chunks == {key: offset for key, offset, _ in found}


def away(held: Lane, made: list[Made]) -> tuple[Session, list[Chunk]]:
    """The session of these events, left to its chunks."""
    feed(held, *made)
    found = promoted(held)
    session = held.sessions[KEY]
    session.chunks = {key: offset for offset, key in enumerate(session.chunks)}
    held.leave(session)
    return session, found


def test_what_is_in_chunks_leaves_memory_and_comes_back_as_it_was() -> None:
    held = lane()
    made = Trace().whole(2)
    session, found = away(held, made[:5])
    feed(held, *made[5:])
    left = (session.away, len(session.values), held.held_bytes)
    assert held.held_events == len(made)
    session.come_back(event for _, chunk in found for event in events_of(chunk))

    assert left == (5, 5, sum(len(event.value) for event in made[5:]))
    assert session.values == [event.value for event in made]
    assert (session.away, session.promoted, session.size) == (0, 5, sum(map(len, session.values)))


def test_a_session_that_is_away_is_due_when_as_many_events_are_here_as_announced() -> None:
    held = lane()
    made = Trace().whole()
    away(held, made[:-1])
    assert closed(held) == []
    feed(held, made[-1])

    assert closed(held) == [(KEY, "counts")]


def test_chunks_that_lack_an_event_are_not_taken_for_the_session() -> None:
    session, found = away(lane(), Trace().whole())
    events = [event for _, chunk in found for event in events_of(chunk)]

    with pytest.raises(Fatal, match="its chunks hold 5 of 6"):
        session.come_back(events[1:])


def test_chunks_of_unknown_place_do_not_let_a_session_leave() -> None:
    held = lane()
    feed(held, *Trace().whole())
    promoted(held)
    held.leave(held.sessions[KEY])

    assert (held.sessions[KEY].away, held.held_bytes) == (0, held.sessions[KEY].size)


def test_a_recovery_takes_no_more_into_memory_than_it_may() -> None:
    held = lane()
    made = Trace().whole(2)
    feed(held, *made)
    new = restored(held, promoted(held), room=100)

    assert (new.held_bytes, new.sessions[KEY].away) == (0, len(made))


def test_the_largest_sessions_are_left_first() -> None:
    held = lane()
    for letter, calls in (("a", 1), ("b", 9), ("c", 5)):
        feed(held, *Trace(letter * 32).whole(calls)[:-1])
    turn = held.turn()
    sizes = sorted(session.size for session in held.sessions.values())
    found = [session.trace_id[0] for _, _, session in chunks.largest([(held, turn)], sizes[2] + 1)]

    assert found == ["b", "c"]
    assert list(chunks.largest([(held, turn)], 0)) == []


def test_one_turn_takes_no_more_into_chunks_than_its_limit() -> None:
    held = lane()
    for number in range(6):
        feed(held, *Trace(f"{number:032x}").whole()[:-1])
    room = next(iter(held.sessions.values())).size * 2
    confirm(held, 1_000)
    turns = []
    while found := [session for session, _ in chunks.promote(held, held.turn(), AFTER_MS, room)]:
        turns.append(found)

    assert [len(found) for found in turns] == [2, 2, 2]
    assert len({session for found in turns for session in found}) == 6


def test_what_leaves_memory_is_limited_by_what_is_not_in_chunks_yet() -> None:
    held = lane()
    for number in range(6):
        feed(held, *Trace(f"{number:032x}").whole()[:-1])
    turn, (first, second, *_) = held.turn(), held.sessions.values()
    chunks.promoted(held, first, turn)
    held.in_chunks(first, dict.fromkeys(first.chunks, 7))
    chunks.promoted(held, second, turn)
    found = [found for *_, found in chunks.largest([(held, turn)], 1 << 20, first.size + 1)]

    assert found[0] is first
    assert len(found) == 3
    assert second not in found


def test_closed_sessions_do_not_stay_in_a_lanes_queues() -> None:
    held = lane()
    for number in range(5_000):
        feed(held, Trace(f"{number:032x}").event("session_started"))
        (key,) = held.sessions
        held.close(held.sessions[key])
    turn = held.turn()
    held.prepare(turn)
    held.committed(turn, 0)
    alive = sum(isinstance(each, Session) for each in gc.get_objects())

    assert alive < 1_500
