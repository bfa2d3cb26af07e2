"""Chunks: what they take, that they fit, and that a session comes back from them as it was."""

from __future__ import annotations

import gc

import pytest
from trailweave.schemas.codec import EVENT_BYTES_MAX
from trailweave.schemas.events import OPEN_SESSIONS_TOPIC
from trailweave.schemas.topics import load_topics
from trailweave.stream_processors import chunks, recovery
from trailweave.stream_processors.chunks import Chunk
from trailweave.stream_processors.closing import close
from trailweave.stream_processors.lanes import Lane
from trailweave.stream_processors.session import Session
from trailweave.stream_processors.verdict import RulesConfig

from tests.unit.stream_processors.builders import (
    ENCODER,
    TRACE,
    WHOLE_DECODER,
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
    return list(chunks.promote(held, held.turn(), AFTER_MS))


def stored(found: list[Chunk]) -> list[Chunk]:
    """The chunks as whoever reads the topic has them."""
    return [
        (key, WHOLE_DECODER.decode(ENCODER.encode("session_chunk", chunk))[1])
        for key, chunk in found
    ]


def restored(held: Lane, found: list[Chunk]) -> Lane:
    """A new lane where `held` stands, from chunks alone."""
    positions = list(held.positions)
    new = Lane(0, positions, held.times, held.decoder)
    point = recovery.Checkpoint(held.number, tuple(positions), tuple(positions), 0)
    recovery.replay(new, point, [], stored(found), [])
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
    assert held.sessions[KEY].chunks == [KEY + b"|1|0", KEY + b"|2|0"]
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
    new = restored(held, found[::-1])
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
    recovery.replay(new, point, [], found, again)

    assert places(new.sessions[KEY]) == {(0, 0), (0, 1)}
    assert new.lows() == [1, 0, 0, 0, 0]
    assert new.sessions[KEY].chunks == [key for key, _ in found]


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
