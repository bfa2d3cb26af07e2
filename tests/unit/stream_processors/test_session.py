"""When a session closes, and what it remembers for that."""

from __future__ import annotations

import pytest
from trailweave.stream_processors.session import Session

from tests.unit.stream_processors.builders import TIMES, Trace, session_of

KEY = b"0af7651916cd43dd8448eb211c80319c" + b"\x08acme"


def session() -> Session:
    return Session(KEY, [-1] * 5, last_ms=50)


def end(root: bool = True, **expected: int) -> dict[str, object]:
    return {"root": root, "expected": expected, "expected_exhaustive": bool(expected)}


def request(expires_at: int | None, approval_id: str = "a") -> dict[str, object]:
    return {"approval_id": approval_id, "expires_at": expires_at}


def test_trace_and_tenant_are_read_from_the_key() -> None:
    assert (session().trace_id, session().tenant) == ("0af7651916cd43dd8448eb211c80319c", "acme")


def test_without_an_end_the_idle_time_runs_from_the_newest_event() -> None:
    assert session().deadline_ms(TIMES) == 50 + TIMES.idle_ms


def test_the_earliest_end_of_the_root_starts_the_grace_time() -> None:
    held = session()
    held.note_end(end(), 90)
    held.note_end(end(), 70)
    held.note_end(end(), 80)

    assert held.deadline_ms(TIMES) == 70 + TIMES.grace_ms


def test_a_childs_end_changes_nothing() -> None:
    held = session()
    held.note_end(end(root=False, agent=1), 70)

    assert (held.ended_ms, held.expected_total) == (0, 0)


def test_of_two_exhaustive_ends_the_larger_count_of_each_producer_holds() -> None:
    held = session()
    held.note_end(end(a=2, b=5), 70)
    held.note_end(end(a=3, b=1), 70)

    assert (held.expected, held.expected_total) == ({"a": 3, "b": 5}, 8)


@pytest.mark.parametrize(
    ("expires_at", "until"),
    [(None, 60 + 10_000), (5_000_000, 5_000), (10**15, 60 + 10_000)],
    ids=["never", "soon", "far"],
)
def test_a_pending_approval_holds_until_it_lapses_but_not_longer_than_the_cap(
    expires_at: int | None, until: int
) -> None:
    held = session()
    held.note_approval_requested(request(expires_at), 60, TIMES)

    assert held.deadline_ms(TIMES) == until


def test_a_decision_ends_the_hold() -> None:
    held = session()
    held.note_approval_requested(request(None), 60, TIMES)
    held.note_approval_decided({"approval_id": "a"})

    assert held.deadline_ms(TIMES) == 50 + TIMES.idle_ms


def test_a_decision_that_came_before_its_request_prevents_the_hold() -> None:
    held = session()
    held.note_approval_decided({"approval_id": "a"})
    held.note_approval_requested(request(None), 60, TIMES)

    assert held.pending == {}


def test_another_approvals_decision_ends_no_hold() -> None:
    held = session()
    held.note_approval_requested(request(None), 60, TIMES)
    held.note_approval_decided({"approval_id": "b"})

    assert held.deadline_ms(TIMES) == 60 + 10_000


def test_an_event_of_an_unpublished_schema_holds_the_session_and_keeps_it_from_being_whole() -> (
    None
):
    held = session_of(Trace().whole())
    held.unknown[b"12345678"] = 9_000

    assert held.deadline_ms(TIMES) == 9_000
    assert not held.may_be_whole()


def test_duplicates_do_not_make_up_a_missing_event() -> None:
    trace = Trace()
    start = trace.event("session_started")
    finish = trace.ended({"agent-1": 3})

    assert not session_of([start, start, start, finish]).may_be_whole()
    assert session_of([start, trace.event("prompt_submitted"), start, finish]).may_be_whole()


def test_as_many_events_as_promised_are_read_to_see_whether_they_are_distinct() -> None:
    trace = Trace()
    start = trace.event("session_started")

    assert session_of([start, start, trace.ended({"agent-1": 3})]).may_be_whole()
    assert not session_of([start, trace.ended({"agent-1": 3})]).may_be_whole()
