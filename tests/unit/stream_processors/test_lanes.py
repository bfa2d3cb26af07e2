"""A lane's grouping, clock and closings, and what its commits say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from trailweave.schemas.codec import CONFLUENT, Decoder
from trailweave.schemas.compiled import Json
from trailweave.schemas.errors import Rejected
from trailweave.schemas.events import event_types, fingerprint_of
from trailweave.stream_processors.lanes import FOLD_READ, Lane, Metadata, group_key

from tests.unit.stream_processors.builders import (
    FOLD_DECODER,
    TIMES,
    TOPICS,
    TRACE,
    Trace,
    closed,
    confirm,
    feed,
    lane,
    places,
)

OTHER = "ffffffffffffffffffffffffffffffff"
KEY = TRACE.encode() + b"\x08acme"


class Later:
    """A source of schemas in which they appear when a test says so."""

    def __init__(self) -> None:
        self.found: dict[bytes, Json] = {}

    def schema_of(self, key: bytes) -> Json | None:
        return self.found.get(key)


# --- grouping ---


def test_a_session_is_a_trace_of_a_tenant() -> None:
    held = lane()
    feed(held, Trace().event("session_started"), Trace(tenant="b").event("session_started"))
    feed(held, Trace(OTHER).event("session_started"), Trace().event("tool_executed", call_id="c"))

    assert [len(s.values) for s in held.sessions.values()] == [2, 1, 1]


def test_both_framings_group_alike() -> None:
    value = Trace().event("session_started").value

    assert group_key(TRACE.encode(), CONFLUENT + b"\0\0\0\1" + value[10:]) == KEY
    assert group_key(TRACE.encode(), value) == KEY


def damaged(how: Callable[[bytearray], None]) -> bytes:
    value = bytearray(Trace().event("session_started").value)
    how(value)
    return bytes(value)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"plain text", "not_framed"),
        (b"\xc3", "not_framed"),
        (b"\xc3\x01", "not_an_event"),
        (b"\0", "not_an_event"),
        (damaged(lambda v: v.__setitem__(10, 70)), "not_an_event"),
        (damaged(lambda v: v.__setitem__(47, 66)), "not_an_event"),
        (damaged(lambda v: v.__setitem__(80, 9)), "not_an_event"),
        (damaged(lambda v: v.__setitem__(80, 128)), "not_an_event"),
        (damaged(lambda v: v.__delitem__(slice(83, None))), "not_an_event"),
    ],
)
def test_bytes_that_cannot_be_an_event_are_refused(value: bytes | None, code: str) -> None:
    with pytest.raises(Rejected) as refused:
        group_key(TRACE.encode(), value)

    assert refused.value.reason.code == code


@pytest.mark.parametrize("key", [None, b"", OTHER.encode(), TRACE.upper().encode()])
def test_an_event_under_another_key_is_refused(key: bytes | None) -> None:
    with pytest.raises(Rejected) as refused:
        group_key(key, Trace().event("session_started").value)

    assert refused.value.reason.code == "wrong_key"


def test_a_refused_record_keeps_its_place_and_moves_the_lane() -> None:
    held = lane()
    held.fold(2, 7, 55, b"k", None)

    (refused,) = held.refused
    assert (refused.topic, refused.offset, refused.recorded_ms, refused.key, refused.value) == (
        (2, 7, 55, b"k", b"")
    )
    assert (held.positions[2], held.moved, held.sessions) == (8, True, {})


# --- the clock ---


def test_the_clock_stands_before_all_time_until_every_topic_was_read_or_confirmed() -> None:
    held = lane()
    for topic in range(4):
        held.confirm(topic, 500)

    assert held.clock_ms() == -1


def test_the_clock_is_that_of_the_topic_that_lags_most() -> None:
    held = lane()
    confirm(held, 500)
    feed(held, Trace().event("session_started"), at_ms=900)

    assert held.clock_ms() == 500


def test_an_older_confirmation_does_not_turn_the_clock_back() -> None:
    held = lane()
    confirm(held, 500)
    confirm(held, 400)

    assert held.clock_ms() == 500


def test_a_stalled_broker_closes_nothing() -> None:
    held = lane()
    confirm(held, 10)
    feed(held, Trace().ended(), at_ms=10)
    # The prompts go on, and the broker confirms nothing about the other topics.
    feed(held, Trace(OTHER).event("session_started"), at_ms=10_000_000)

    assert closed(held) == []


# --- closing ---


@pytest.mark.parametrize(("clock_ms", "closes"), [(110, False), (111, True)])
def test_a_session_closes_strictly_after_its_deadline(clock_ms: int, closes: bool) -> None:
    held = lane()
    feed(held, Trace().ended(), at_ms=10)
    confirm(held, clock_ms)

    assert closed(held) == ([(KEY, "grace")] if closes else [])


def test_events_of_one_moment_do_not_close_their_session() -> None:
    held = lane()
    feed(held, Trace().ended(), at_ms=10)
    confirm(held, 10 + TIMES.grace_ms)
    # Another event with the very time of the deadline may still come.
    late = Trace(OTHER).event("tool_executed", call_id="c")
    feed(held, late, at_ms=10 + TIMES.grace_ms)

    assert closed(held) == []


def test_a_session_without_an_end_closes_when_it_was_idle() -> None:
    held = lane()
    feed(held, Trace().event("session_started"), at_ms=10)
    confirm(held, 900)
    assert closed(held) == []
    feed(held, Trace().event("tool_executed", call_id="c"), at_ms=900)
    confirm(held, 1_900)
    assert closed(held) == []
    confirm(held, 1_901)

    assert closed(held) == [(KEY, "idle")]


def test_a_session_whose_counts_are_here_closes_without_any_clock() -> None:
    held = lane()
    made = Trace().whole()
    feed(held, *made[:-1])
    assert closed(held) == []
    feed(held, made[-1])

    assert closed(held) == [(KEY, "counts")]


def test_an_end_may_come_before_the_events_that_it_counts() -> None:
    held = lane()
    *before, end = Trace().whole()
    feed(held, end)
    assert closed(held) == []
    feed(held, *before)

    assert closed(held) == [(KEY, "counts")]


def test_a_session_that_its_caller_leaves_open_after_counts_closes_at_its_deadline() -> None:
    held = lane()
    feed(held, *Trace().whole(), at_ms=10)
    assert [reason for _, reason in held.due()] == ["counts"]
    assert list(held.due()) == []
    confirm(held, 111)

    assert closed(held) == [(KEY, "grace")]


def test_a_session_that_its_caller_leaves_open_at_the_deadline_is_asked_about_again_later() -> None:
    held = lane()
    feed(held, Trace().ended(), at_ms=10)
    confirm(held, 111)

    assert [reason for _, reason in held.due()] == ["grace"]
    assert [reason for _, reason in held.due()] == ["grace"]


def test_a_childs_end_closes_nothing() -> None:
    held = lane()
    child = Trace().ended({"agent-1": 1}, root=False)
    feed(held, child, at_ms=10)
    confirm(held, 500)

    assert closed(held) == []


def test_a_pending_approval_holds_an_ended_session_until_the_cap() -> None:
    held = lane()
    trace = Trace()
    feed(held, trace.event("approval_requested"), trace.ended(), at_ms=10)
    confirm(held, 10_010)
    assert closed(held) == []
    confirm(held, 10_011)

    assert closed(held) == [(KEY, "grace")]


def test_a_decided_approval_lets_the_session_close_at_once() -> None:
    held = lane()
    trace = Trace()
    feed(held, trace.event("approval_requested"), trace.ended(), at_ms=10)
    confirm(held, 2_000)
    assert closed(held) == []
    feed(held, trace.event("approval_decided"), at_ms=2_000)
    confirm(held, 2_001)

    assert closed(held) == [(KEY, "grace")]


def test_nothing_is_decided_while_a_batch_is_folded() -> None:
    held = lane()
    trace = Trace()
    made = trace.whole()
    late = trace.event("tool_executed", call_id="late")
    feed(held, *made, late)
    (session,) = [session for session, _ in held.due()]

    assert len(session.values) == len(made) + 1
    assert held.turn().positions == tuple(held.positions)


def test_an_event_after_the_close_opens_a_session_of_its_own() -> None:
    held = lane()
    trace = Trace()
    feed(held, *trace.whole())
    closed(held)
    feed(held, trace.event("tool_executed", call_id="late"))

    (session,) = held.sessions.values()
    assert len(session.values) == 1


# --- schemas that nobody knows yet ---


def newer_end(count: int = 1) -> tuple[bytes, bytes, Json]:
    """A session end of a version that has a field more: its bytes, fingerprint and schema."""
    schema = dict(event_types()["session_ended"].schema)
    added = {"name": "added", "type": ["null", "string"], "default": None}
    schema["fields"] = [*schema["fields"], added]
    value = Trace().ended({"agent-1": count}).value
    key = fingerprint_of(schema)
    return b"\xc3\x01" + key + value[10:] + b"\0", key, schema


def test_a_session_with_an_unknown_schema_waits_for_it() -> None:
    held = lane()
    value, key, _ = newer_end()
    held.fold(0, 0, 10, TRACE.encode(), value)
    (session,) = held.sessions.values()

    assert session.unknown == {key: 10 + TIMES.unknown_schema_wait_ms}
    assert list(held.unknown) == [key]


def test_what_is_learned_late_still_counts() -> None:
    schemas = Later()
    held = lane(decoder=Decoder(FOLD_READ, schemas))
    value, key, schema = newer_end()
    held.fold(0, 0, 10, TRACE.encode(), value)
    assert closed(held) == []
    schemas.found[key] = schema
    assert held.decoder.knows(key)
    held.learned(key)

    assert held.unknown == {}
    assert closed(held) == [(KEY, "counts")]


def test_a_schema_that_nobody_publishes_delays_the_close_and_is_then_forgotten() -> None:
    held = lane()
    value, _, _ = newer_end()
    feed(held, Trace().ended(), at_ms=10)
    held.fold(0, 1, 10, TRACE.encode(), value)
    confirm(held, 510)
    assert closed(held) == []
    confirm(held, 511)

    assert closed(held) == [(KEY, "grace")]
    assert held.unknown == {}


def test_learning_a_schema_lets_a_session_close_at_its_own_deadline() -> None:
    schemas = Later()
    held = lane(decoder=Decoder(FOLD_READ, schemas))
    value, key, schemas.found[key] = newer_end(count=9)
    feed(held, Trace().ended(), at_ms=10)
    held.fold(0, 1, 10, TRACE.encode(), value)
    confirm(held, 200)
    assert closed(held) == []
    assert held.decoder.knows(key)
    held.learned(key)

    assert closed(held) == [(KEY, "grace")]


# --- what a commit says ---


def test_metadata_comes_back_from_its_text() -> None:
    meta = Metadata(3, 41, 17)

    assert meta.text() == "v1;3;41;17"
    assert Metadata.parse(meta.text()) == meta


@pytest.mark.parametrize("text", ["", "v1;1;2", "v2;1;2;3", "v1;1;2;x", "v1;1;2;-3", "v1;1;2;3;4"])
def test_foreign_metadata_is_none(text: str) -> None:
    assert Metadata.parse(text) is None


def test_the_low_of_a_topic_is_the_lowest_offset_that_an_open_session_holds() -> None:
    held = lane()
    feed(held, Trace().event("session_started"), Trace(OTHER).event("session_started"))
    feed(held, Trace(OTHER).event("tool_executed", call_id="c"))
    assert held.lows() == [0, 0, 0, 0, 0]
    held.close(held.sessions[KEY])

    assert held.lows() == [1, 0, 0, 0, 0]
    held.close(held.sessions[OTHER.encode() + b"\x08acme"])
    assert held.lows() == held.positions


def test_refused_records_hold_no_low_back() -> None:
    held = lane()
    held.fold(0, 0, 1, b"x", b"garbage")

    assert held.lows() == [1, 0, 0, 0, 0]


def commit(held: Lane, sessions_end: int) -> Metadata:
    turn = held.turn()
    first, *_ = held.prepare(turn)
    held.committed(turn, sessions_end)
    return first


def test_the_bound_on_records_stays_behind_while_an_old_session_is_open() -> None:
    held = lane()
    held.sessions_end = 5
    feed(held, Trace().event("session_started"))
    assert commit(held, 6) == Metadata(1, 0, 5)
    feed(held, Trace(OTHER).event("session_started"))
    # Offset 0 is still held, and it was taken in by the transaction before which the end was 5.
    assert commit(held, 9) == Metadata(2, 0, 5)
    held.close(held.sessions[KEY])
    assert commit(held, 10) == Metadata(3, 1, 6)
    held.close(held.sessions[OTHER.encode() + b"\x08acme"])
    # Nothing is held: no record from before the known end can matter.
    assert commit(held, 11) == Metadata(4, 2, 10)


def test_reports_that_never_came_leave_the_bound_low() -> None:
    held = lane()
    held.sessions_end = 5
    feed(held, *Trace().whole())
    closed(held)
    commit(held, 0)
    feed(held, Trace(OTHER).event("session_started"))

    assert commit(held, 0).sessions_from == 5


def test_a_commit_forgets_what_it_carried() -> None:
    held = lane()
    held.fold(0, 0, 1, b"x", b"garbage")
    commit(held, 0)

    assert (held.refused, held.moved, held.number) == ([], False, 1)


def test_a_commit_says_nothing_of_what_was_folded_after_its_turn() -> None:
    held = lane()
    feed(held, Trace().event("session_started"))
    turn = held.turn()
    feed(held, Trace(OTHER).event("session_started"))
    held.fold(1, 0, 1, b"x", b"garbage")
    metadata = held.prepare(turn)
    held.committed(turn, 0)

    assert (turn.positions, [m.low for m in metadata]) == ((1, 0, 0, 0, 0), [0, 0, 0, 0, 0])
    assert turn.refused == []
    assert (held.moved, len(held.refused)) == (True, 1)


# --- sessions that are taken back ---


def test_a_session_taken_back_has_what_came_while_it_was_away() -> None:
    held = lane()
    trace = Trace()
    feed(held, trace.event("session_started"), trace.event("prompt_submitted"))
    away = held.sessions[KEY]
    held.close(away)
    feed(held, trace.event("session_started"), trace.event("tool_executed", call_id="c"), at_ms=9)
    held.reopen(away)

    assert held.sessions == {KEY: away}
    assert places(away) == {(0, 0), (0, 1), (0, 2), (3, 0)}
    assert (away.last_ms, away.size) == (9, sum(map(len, away.values)))
    assert (held.held_events, held.held_bytes) == (4, away.size)
    assert held.positions == [3, 0, 0, 1, 0]


def test_a_session_taken_back_holds_its_lows_and_those_of_what_came() -> None:
    held = lane()
    feed(held, Trace().event("session_started"))
    away = held.sessions[KEY]
    held.close(away)
    feed(held, Trace().event("tool_executed", call_id="c"))
    feed(held, Trace(OTHER).event("tool_executed", call_id="c"))
    held.reopen(away)

    assert held.lows() == [0, 0, 0, 0, 0]
    held.close(away)
    assert held.lows() == [1, 0, 0, 1, 0]


def test_a_session_taken_back_closes_at_its_deadline() -> None:
    held = lane()
    feed(held, Trace().event("session_started"))
    confirm(held, 9_000)
    (away,) = [session for session, _ in held.due()]
    held.close(away)
    held.reopen(away)

    assert closed(held) == [(KEY, "idle")]
    assert closed(held) == []


def test_a_session_taken_back_with_all_that_was_announced_is_due() -> None:
    held = lane()
    trace = Trace()
    feed(held, trace.event("session_started"), trace.ended({"agent-1": 3}))
    away = held.sessions[KEY]
    held.close(away)
    feed(held, trace.event("prompt_submitted"))
    held.reopen(away)

    assert closed(held) == [(KEY, "counts")]


def test_a_session_taken_back_for_a_while_is_due_again() -> None:
    held = lane()
    feed(held, *Trace().whole())
    (away,) = [session for session, _ in held.due()]
    held.close(away)
    held.reopen(away)
    not_yet = closed(held)
    held.close(away)
    held.reopen(away, due=True)

    assert (not_yet, closed(held)) == ([], [(KEY, "counts")])


def test_a_session_taken_back_still_waits_for_its_schema() -> None:
    later = Later()
    held = lane(decoder=Decoder(FOLD_READ, later))
    made = Trace().event("session_started")
    feed(held, made, value=made.value[:2] + b"newer!!!" + made.value[10:])
    away = held.sessions[KEY]
    held.close(away)
    assert held.unknown == {}
    feed(held, made, value=made.value[:2] + b"newer!!!" + made.value[10:])
    held.reopen(away)

    assert [session for session, _, _ in held.unknown[b"newer!!!"]] == [away, away]


# --- replay ---


def test_replay_leaves_out_what_lies_below_a_sessions_cut() -> None:
    held = lane()
    held.positions = [3, 0, 0, 0, 0]
    held.cuts = {KEY: [2, 0, 0, 0, 0]}
    made = [Trace().event("session_started") for _ in range(3)]
    for offset, event in enumerate(made):
        held.refold(0, offset, 1, event.key, event.value)
    held.replayed()

    assert places(held.sessions[KEY]) == {(0, 2)}
    assert (held.positions, held.moved, held.cuts) == ([3, 0, 0, 0, 0], False, {})


def test_replay_emits_no_dead_letters_again() -> None:
    held = lane()
    held.positions = [1, 0, 0, 0, 0]
    held.refold(0, 0, 1, b"x", b"garbage")

    assert held.refused == []


def test_a_lane_has_a_place_for_every_event_topic() -> None:
    assert len(lane().positions) == len(TOPICS) == len(lane().newest_ms)
    assert FOLD_DECODER.known
