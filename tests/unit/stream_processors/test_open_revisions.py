"""What is certain of a session is told before it closes, once, and taken back if it was not so."""

from __future__ import annotations

from collections import Counter
from typing import Any

from trailweave.stream_processors import chunks, recovery
from trailweave.stream_processors.closing import Closing, close
from trailweave.stream_processors.lanes import Lane
from trailweave.stream_processors.open_revisions import TURN_EVENTS_MAX, revision, to_look_at

from tests.unit.stream_processors.builders import (
    CLOCKS_APART,
    HUMAN,
    Made,
    Trace,
    as_stored,
    confirm,
    feed,
    lane,
    source,
)

EVERY_MS = 50
#: When a session is looked at first, of which all came at 1 ms.
FIRST_MS = 1 + EVERY_MS
ID = "00000000-0000-7000-8000-0000000000ff"
PROMISED: dict[str, Any] = {"expected_sources": ["policy", "gateway"]}


def started(trace: Trace) -> Made:
    return trace.event("session_started", **PROMISED)


def denial(trace: Trace, call: str = "c", **fields: Any) -> Made:
    return trace.event(
        "policy_decided", call_id=call, **{"mode": "enforced", "effect": "deny", **fields}
    )


def run(trace: Trace, call: str = "c") -> Made:
    return trace.event("tool_executed", call_id=call, tool="shell")


def looks(held: Lane, at_ms: int, *, busy: bool = False) -> list[Closing | None]:
    """End a turn at this time and look at what is to be looked at."""
    confirm(held, at_ms)
    return [
        revision(session, turn, source(), CLOCKS_APART)
        for _, turn, session in to_look_at([(held, held.turn())], EVERY_MS, busy=busy)
    ]


def rules_of(said: Closing | None) -> list[str]:
    assert said is not None
    return [finding["rule"] for finding in said.findings]


def test_a_denied_call_that_ran_is_told_while_its_session_is_open() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace), denial(trace), run(trace))

    (said,) = looks(held, FIRST_MS)

    assert rules_of(said) == ["denied_but_executed"]
    assert said is not None
    assert said.kind == said.chain["state"] == said.findings[0]["chain_state"] == "open"
    assert list(held.sessions) == [said.session]


def test_it_is_told_wherever_the_denial_came_in_between() -> None:
    held, trace = lane(), Trace()
    denied = denial(trace)
    feed(held, started(trace), run(trace), denied)

    (said,) = looks(held, FIRST_MS)

    assert rules_of(said) == ["denied_but_executed"]


def test_nothing_is_said_of_what_may_still_come() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace), denial(trace), run(trace, "another, of which no decision has come"))

    assert looks(held, FIRST_MS) == [None]


def test_an_open_revision_says_nothing_of_what_is_missing() -> None:
    held, trace = lane(), Trace()
    made = [started(trace), trace.event("prompt_submitted"), denial(trace), run(trace)]
    feed(held, *made[:1], *made[2:])

    (said,) = looks(held, FIRST_MS)

    assert said is not None
    record = as_stored(said.chain)
    assert (record["missing"], record["not_evaluable"]) == ([], [])
    assert (record["completeness"], record["close_reason"]) == ("unprovable", "none")


def test_the_closing_has_all_of_the_session_again() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace), denial(trace), run(trace))
    (said,) = looks(held, FIRST_MS)
    (session,) = held.sessions.values()

    closing = close(session, "idle", held.turn(), source(), CLOCKS_APART)

    assert said is not None
    assert closing is not None
    assert closing.chain["events"] == 3
    early = {finding["finding_id"] for finding in said.findings}
    assert early <= {finding["finding_id"] for finding in closing.findings}


def test_a_restart_that_sets_the_clock_back_judges_no_earlier_than_an_open_revision() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace), denial(trace), run(trace), at_ms=7)
    (said,) = looks(held, 1_000)
    again = lane()
    feed(again, started(trace), denial(trace), run(trace), at_ms=7)
    (session,) = again.sessions.values()

    closing = close(session, "idle", again.turn(), source(), CLOCKS_APART)

    assert said is not None
    assert closing is not None
    assert closing.chain["judged_at"] >= said.chain["judged_at"]
    assert said.chain["judged_at"] == said.findings[0]["detected_at"] == 7


def test_what_was_said_is_not_said_again() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace), denial(trace), run(trace))
    looks(held, FIRST_MS)
    feed(held, trace.event("prompt_submitted"))

    assert looks(held, FIRST_MS + EVERY_MS) == [None]


def test_what_comes_on_top_is_said_with_the_rest() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace), denial(trace), run(trace))
    looks(held, FIRST_MS)
    feed(held, denial(trace, "d", decision_id="d2"), run(trace, "d"))

    (said,) = looks(held, FIRST_MS + EVERY_MS)

    assert rules_of(said) == ["denied_but_executed"] * 2


def test_an_approval_that_came_late_takes_back_what_was_said() -> None:
    held, trace = lane(), Trace()
    approved = trace.event(
        "approval_decided", at_s=2.5, call_id="c", approval_id="a", by=HUMAN, effect="allow"
    )
    feed(held, started(trace), denial(trace, at_s=2), run(trace))
    looks(held, FIRST_MS)
    feed(held, approved)

    (said,) = looks(held, FIRST_MS + EVERY_MS)

    assert rules_of(said) == []


def test_a_denial_on_trial_has_nobody_look() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace), denial(trace, mode="dry_run"), run(trace))

    assert looks(held, FIRST_MS) == []


def test_a_credential_that_is_used_after_its_revocation_is_told_at_once() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace), trace.event("credential_revoked", 1))
    looks(held, FIRST_MS)
    feed(held, trace.event("credential_used", 60))

    (said,) = looks(held, FIRST_MS + EVERY_MS)

    assert rules_of(said) == ["cred_after_revoke"]


def test_two_versions_of_an_event_are_told_when_somebody_looks() -> None:
    held, trace = lane(), Trace()
    made = [trace.event("prompt_submitted", content=text, event_id=ID) for text in ("a", "b")]
    feed(held, started(trace), *made, denial(trace))

    (said,) = looks(held, FIRST_MS)

    assert rules_of(said) == ["dup_conflict"]


def test_a_session_that_closes_soon_after_what_it_is_watched_for_is_not_looked_at() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace), denial(trace), run(trace))

    assert looks(held, FIRST_MS - 1) == []
    assert len(looks(held, FIRST_MS)) == 1


def test_two_looks_are_some_time_apart() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace), denial(trace))
    looks(held, FIRST_MS)
    feed(held, run(trace))

    assert looks(held, FIRST_MS + EVERY_MS - 1) == []
    assert len(looks(held, FIRST_MS + EVERY_MS)) == 1


def test_a_large_session_is_looked_at_less_often() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace), denial(trace), *(run(trace, "d") for _ in range(2 * EVERY_MS)))
    looks(held, FIRST_MS)
    feed(held, run(trace))

    assert looks(held, FIRST_MS + EVERY_MS) == []
    assert len(looks(held, FIRST_MS + 3 * EVERY_MS)) == 1


def test_looks_above_a_turns_share_wait_for_the_next_turn() -> None:
    held = lane()
    for number in range(3):
        trace = Trace(trace_id=f"{number:032x}")
        feed(held, started(trace), denial(trace), run(trace))
        (*_, session) = held.sessions.values()
        session.values *= TURN_EVENTS_MAX // 3 + 1
        session.places *= TURN_EVENTS_MAX // 3 + 1
        session.times *= TURN_EVENTS_MAX // 3 + 1

    assert [len(looks(held, FIRST_MS)) for _ in range(4)] == [1, 1, 1, 0]


def test_a_session_without_a_start_is_no_chain_to_speak_of() -> None:
    held, trace = lane(), Trace()
    feed(held, denial(trace), run(trace))

    assert looks(held, FIRST_MS) == [None]


def test_a_closed_session_is_not_looked_at() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace), denial(trace), run(trace))
    (session,) = held.sessions.values()
    held.close(session)

    assert looks(held, FIRST_MS) == []


def test_after_a_crash_the_same_is_said_under_the_same_ids_and_nothing_is_taken() -> None:
    held, trace = lane(), Trace()
    made = [started(trace), denial(trace), run(trace)]
    feed(held, *made)
    (said,) = looks(held, FIRST_MS)
    assert said is not None
    headers = dict(recovery.session_headers("open", 1, said.session, tuple(held.positions)))

    new, offsets = lane(), Counter[int]()
    new.positions = list(held.positions)
    again = []
    for event in made:
        again.append((event.topic, offsets[event.topic], 1, event.key, event.value))
        offsets[event.topic] += 1
    point = recovery.Checkpoint(1, tuple(held.positions), (0,) * len(held.positions), 0)
    recovery.replay(new, point, [headers], [], again, 1 << 40)
    (repeated,) = looks(new, FIRST_MS)

    assert repeated is not None
    assert repeated.chain["events"] == 3
    assert repeated.findings[0]["finding_id"] == said.findings[0]["finding_id"]


def long_open(held: Lane, at_ms: int) -> None:
    confirm(held, at_ms)
    list(chunks.promote(held, held.turn(), 100))


def test_a_long_open_session_is_shown_and_again_when_it_has_doubled() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace), trace.event("prompt_submitted"))
    long_open(held, 1_000)
    (said,) = looks(held, 1_000)
    assert said is not None
    assert (said.chain["events"], said.findings) == (2, [])

    feed(held, trace.event("prompt_submitted"), at_ms=1_001)
    long_open(held, 2_000)
    assert looks(held, 2_000) == []

    feed(held, trace.event("prompt_submitted"), at_ms=2_001)
    long_open(held, 3_000)
    (said,) = looks(held, 3_000)
    assert said is not None
    assert said.chain["events"] == 4


def test_a_worker_that_lags_behind_shows_no_sessions_that_are_only_open_for_long() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace))
    long_open(held, 1_000)

    assert looks(held, 1_000, busy=True) == []


def test_what_is_only_in_chunks_waits_for_the_close() -> None:
    held, trace = lane(), Trace()
    feed(held, started(trace), denial(trace), run(trace))
    long_open(held, 1_000)
    (session,) = held.sessions.values()
    for key in session.chunks:
        session.chunks[key] = 1
    held.leave(session)
    feed(held, run(trace), at_ms=1_001)

    assert looks(held, 2_000) == []
