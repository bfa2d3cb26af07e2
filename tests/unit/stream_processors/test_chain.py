"""From the bytes of a session to its chain: duplicates, conflicts, refusals, order."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trailweave.schemas import hashing
from trailweave.stream_processors.chain import Reading, Source, read

from tests.unit.stream_processors.builders import (
    TRACE,
    Made,
    Trace,
    feed,
    lane,
    reading,
    session_of,
    source,
)


def changed(event: Made, **fields: Any) -> Made:
    """Another event with the same id."""
    number = int(event.record["event_id"][-12:], 16)
    again = Trace(number=number - 1).event(event.name, **{**event.record, **fields})
    assert again.record["event_id"] == event.record["event_id"]
    return again


def codes(found: Reading) -> list[str]:
    return [refused.reason.code for refused in found.refused]


def test_the_same_event_twice_is_one_record_and_a_duplicate() -> None:
    event = Trace().event("session_started")
    found = reading([event, event, event]).chain

    assert (len(found.records), found.duplicates, found.conflicts) == (1, 2, [])
    assert found.records[0]["place"][2] == 0


def test_two_events_with_one_id_are_both_kept_and_named() -> None:
    event = Trace().event("session_started")
    other = changed(event, entrypoint="cli")
    found = reading([event, other]).chain

    assert len(found.records) == 2
    assert found.conflicts == [event.record["event_id"]]


def test_a_repeat_of_either_side_of_a_conflict_is_a_duplicate() -> None:
    event = Trace().event("session_started")
    other = changed(event, entrypoint="cli")
    found = reading([event, other, other, event]).chain

    assert (len(found.records), found.duplicates) == (2, 2)


def test_a_record_knows_its_place_and_leaf() -> None:
    event = Trace().event("tool_executed", call_id="c")
    (record,) = reading([event]).chain.records

    assert record["place"] == (
        "trailweave.tools",
        0,
        0,
        hashing.leaf("trailweave.tools", 0, 0, event.key, event.value),
    )


def refused_codes(event: Made, topic: int | None = None, value: bytes | None = None) -> list[str]:
    held = lane()
    place = event.topic if topic is None else topic
    held.fold(place, 0, 1, event.key, event.value if value is None else value)
    (session,) = held.sessions.values()
    return codes(read(session, source()))


def test_each_record_that_is_no_event_is_refused_with_its_reason() -> None:
    event = Trace().event("session_started")
    unknown = event.value[:2] + b"newer!!!" + event.value[10:]
    confluent = b"\0\0\0\0\x07" + event.value[10:]

    assert refused_codes(event, value=event.value[:-1]) == ["truncated"]
    assert refused_codes(event, value=event.value + event.value) == ["trailing_bytes"]
    assert refused_codes(event, value=event.value + b"\0") == ["trailing_bytes"]
    assert refused_codes(event, topic=1) == ["wrong_topic"]
    assert refused_codes(event, value=unknown) == ["unknown_schema"]
    assert refused_codes(event, value=confluent) == ["unknown_schema"]


def test_an_event_that_says_it_is_another_kind_is_refused() -> None:
    event = Trace().event("prompt_submitted")
    # Credential events share their fields, so only the type tells them apart.
    renewed = Trace().event("credential_renewed").value
    issued = Trace().event("credential_issued").value

    assert refused_codes(event, topic=3, value=issued[:10] + renewed[10:]) == ["kind_mismatch"]


def test_a_trace_id_that_is_no_hex_is_refused() -> None:
    event = Trace(TRACE[:-1] + "G").event("session_started")

    assert refused_codes(event) == ["not_an_event"]


def test_a_schema_that_came_too_late_is_not_admitted() -> None:
    event = Trace().event("session_started")
    session = session_of([Made(event.name, event.record, b"\xc3\x01newer!!!" + event.value[10:])])
    asked = []

    def admits(key: bytes, recorded_ms: int) -> bool:
        asked.append((key, recorded_ms))
        return False

    found = read(session, Source(source().topics, 0, source().decoder, admits))

    assert (codes(found), asked) == (["unknown_schema"], [(b"newer!!!", 1)])


def test_refused_records_count_as_no_events() -> None:
    event = Trace().event("session_started")
    held = lane()
    feed(held, event)
    feed(held, event, value=event.value[:-1])
    (session,) = held.sessions.values()
    found = read(session, source())

    assert (len(found.chain.records), codes(found)) == (1, ["truncated"])


def plain(found: Reading) -> tuple[object, ...]:
    """What a reading says apart from where things lie."""
    records = [{k: v for k, v in r.items() if k != "place"} for r in found.chain.records]
    return records, found.chain.conflicts, found.chain.promised, found.chain.expected


@settings(max_examples=2 * settings().max_examples)
@given(st.data())
def test_order_of_arrival_and_repeats_change_nothing(data: st.DataObject) -> None:
    trace = Trace()
    made = [*trace.whole(2), trace.event("downstream_observed", call_id="c0", trace_seq=None)]
    repeats = data.draw(st.lists(st.sampled_from(made), max_size=6))
    shuffled = made + repeats
    random.Random(data.draw(st.integers(0, 2**32))).shuffle(shuffled)
    found = reading(shuffled)

    assert plain(found) == plain(reading(made))
    assert found.chain.duplicates == len(repeats)


def test_indexes_leave_out_what_counts_for_nothing() -> None:
    trace = Trace()
    found = reading(
        [
            trace.event("policy_decided", call_id="c", decision_id="old", effect="deny"),
            trace.event(
                "policy_decided", call_id="c", decision_id="new", effect="allow", supersedes="old"
            ),
            trace.event("policy_decided", call_id="c", decision_id="dry", mode="dry_run"),
            trace.event("policy_decided", decision_id="about no call"),
            trace.event("approval_requested", call_id="c", approval_id="a"),
            trace.event("approval_decided", approval_id="a", effect="allow"),
            trace.event("tool_executed", call_id="c", status="denied"),
        ]
    ).chain

    assert [d["decision_id"] for d in found.decisions["c"]] == ["new"]
    assert [a["effect"] for a in found.approvals["c"]] == ["allow"]
    assert found.ran("c") == []


@pytest.mark.parametrize(
    ("expected", "whole"),
    [({"agent-1": 2}, True), ({"agent-1": 3}, False), ({"agent-1": 1, "gateway": 1}, False)],
)
def test_a_chain_is_whole_when_each_producers_own_count_is_there(
    expected: dict[str, int], whole: bool
) -> None:
    trace = Trace()
    found = reading([trace.event("session_started"), trace.ended(expected)]).chain

    assert found.whole() is whole
