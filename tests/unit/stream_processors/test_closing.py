"""From a session that is due to its records."""

from __future__ import annotations

from trailweave.stream_processors.chain import Source
from trailweave.stream_processors.closing import Closing, close
from trailweave.stream_processors.lanes import Lane

from tests.unit.stream_processors.builders import (
    CLOCKS_APART,
    DECODER,
    TOPICS,
    TRACE,
    Made,
    Trace,
    as_stored,
    confirm,
    feed,
    lane,
    source,
)


def close_first(held: Lane, reason: str, other: Source | None = None) -> Closing | None:
    session = next(iter(held.sessions.values()))
    return close(session, reason, held.turn(), other or source(), CLOCKS_APART)


def held_with(*made: Made, at_ms: int = 5) -> Lane:
    held = lane()
    feed(held, *made, at_ms=at_ms)
    return held


def test_a_session_with_a_start_becomes_a_chain() -> None:
    closing = close_first(held_with(*Trace().whole()), "counts")

    assert closing is not None
    assert (closing.kind, closing.trace_id, closing.tenant) == ("chain", TRACE, "acme")
    assert (closing.chain["state"], closing.chain["completeness"]) == ("closed", "complete")
    assert closing.chain["part"] == 1


def test_a_part_without_a_start_becomes_an_unjudged_fragment() -> None:
    closing = close_first(held_with(Trace().event("tool_executed", call_id="c")), "idle")

    assert closing is not None
    assert (closing.kind, closing.chain["state"], closing.findings) == ("fragment", "fragment", [])


def test_a_total_that_a_stranger_made_up_closes_nothing() -> None:
    trace = Trace()
    start = trace.event("session_started")
    stranger = trace.event("tool_executed", call_id="c", producer_id="stranger")
    held = held_with(start, stranger, trace.ended({"agent-1": 3}))

    assert [reason for _, reason in held.due()] == ["counts"]
    assert close_first(held, "counts") is None
    assert close_first(held, "grace") is not None


def test_a_part_of_nothing_but_refused_bytes_is_still_a_record() -> None:
    held = lane()
    event = Trace().event("session_started")
    feed(held, event, value=event.value[:-1])
    closing = close_first(held, "idle")

    assert closing is not None
    assert (closing.kind, closing.chain["events"], closing.chain["dead_lettered"]) == (
        ("fragment", 0, 1)
    )
    assert [refused.reason.code for refused in closing.refused] == ["truncated"]


def test_findings_come_with_the_chain_that_names_them() -> None:
    trace = Trace()
    made = trace.event("session_started", expected_sources=["policy"])
    closing = close_first(held_with(made, trace.event("tool_executed", call_id="c")), "idle")

    assert closing is not None
    assert [f["finding_id"] for f in closing.findings] == [
        reference["finding_id"] for reference in closing.chain["findings"]
    ]
    assert [f["rule"] for f in closing.findings] == ["exec_without_decision"]


def test_a_record_is_judged_at_the_lane_clock_and_never_before_its_last_event() -> None:
    held = held_with(*Trace().whole(), at_ms=50)
    early = close_first(held, "counts")
    confirm(held, 80)
    later = close_first(held, "counts")

    assert early is not None
    assert later is not None
    assert (early.chain["judged_at"], later.chain["judged_at"]) == (50, 80)


def test_a_record_names_the_partition_of_its_lane() -> None:
    held = held_with(*Trace().whole())
    held.index = 3
    other = Source(TOPICS, 3, DECODER, lambda _key, _at: False)
    closing = close_first(held, "counts", other)

    assert closing is not None
    assert {place["partition"] for place in as_stored(closing.chain)["evidence"]} == {3}
