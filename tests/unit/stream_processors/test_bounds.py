"""A chain record fits into a Kafka record, whatever a session holds, and says what it left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from trailweave.schemas.codec import EVENT_BYTES_MAX
from trailweave.stream_processors import bounds
from trailweave.stream_processors.bounds import LIST_ITEMS_MAX, LISTS, TEXT_CHARS_MAX, text
from trailweave.stream_processors.chain import Chain
from trailweave.stream_processors.verdict import (
    Circumstances,
    RulesConfig,
    chain_record,
    finding_record,
    judge,
)

from tests.unit.stream_processors.builders import ENCODER, Made, Trace, as_stored, chain

RECORD_BYTES_MAX = 900_000
CONFIG = RulesConfig(expected_sources=frozenset({"agent", "gateway", "policy"}))
AT = Circumstances("closed", "grace", part=7, judged_at_ms=99, dead_lettered=0)


def record_of(whole: Chain) -> dict[str, Any]:
    return chain_record(whole, judge(whole, CONFIG), AT, CONFIG)


def listings(record: dict[str, Any]) -> dict[str, str]:
    return {m["subject"]: m["detail"] for m in record["missing"] if m["what"] == "listing"}


# --- texts ---


def test_a_text_of_usual_length_stays_as_it_is() -> None:
    assert text("x" * TEXT_CHARS_MAX) == "x" * TEXT_CHARS_MAX


def test_long_texts_that_differ_at_their_end_stay_two() -> None:
    one, other = text("x" * 5_000 + "1"), text("x" * 5_000 + "2")

    assert one != other
    assert {len(one), len(other)} == {TEXT_CHARS_MAX}


# --- lists ---


def test_a_usual_session_is_listed_whole() -> None:
    record = record_of(chain(*Trace().whole(20)))

    assert listings(record) == {}
    assert record["completeness"] == "complete"


def test_a_cut_list_is_named_and_makes_nothing_incomplete() -> None:
    handles = [{"kind": "jti", "hash": f"{n}"} for n in range(LIST_ITEMS_MAX + 1)]
    start = Trace().event("session_started", correlation={"how": "exact", "handles": handles})
    end = Trace(number=1, sequences={("agent-1", 1): 1}).ended({"agent-1": 2})
    record = record_of(chain(start, end))

    assert len(record["handles"]) == LIST_ITEMS_MAX
    assert record["missing"] == [
        {"what": "listing", "subject": "handles", "detail": "1000 of 1001 are listed"}
    ]
    assert record["completeness"] == "complete"


def test_what_short_lists_leave_over_is_for_the_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LISTS_BYTES_MAX", 1_000)
    record = bounds.bounded(
        {name: [] for name in LISTS} | {"agents": ["a" * 46] * 30, "tools": ["b" * 96]}
    )

    assert (len(record["agents"]), len(record["tools"])) == (18, 1)
    assert listings(record) == {"agents": "18 of 30 are listed"}


# --- worst cases: each a session that would stop its lane without the bounds ---


def many_producers(t: Trace) -> list[Made]:
    made = [t.event("prompt_submitted", producer_id=f"p{n}", trace_seq=1) for n in range(3_000)]
    return [t.event("session_started"), *made]


def many_announced(t: Trace) -> list[Made]:
    return [t.event("session_started"), t.ended({f"producer {n}": 2 for n in range(30_000)})]


def many_gaps(t: Trace) -> list[Made]:
    made = [
        t.event("prompt_submitted", producer_id=f"p{n % 20}", trace_seq=2 * n + (1 << 50))
        for n in range(3_000)
    ]
    return [t.event("session_started"), *made]


def many_of_all(t: Trace) -> list[Made]:
    """Ids of the greatest length and of four bytes a character in everything that is listed."""
    made = [t.event("session_started", environment=long(0), workflow_id=long(0))]
    for n in range(40):
        who = {"kind": "agent", "subject": long(n)}
        common: dict[str, Any] = {
            "producer_id": long(n), "trace_seq": n, "actor": who, "sponsor": who,
            "agent_id": long(n), "task_id": long(n), "parent_trace_id": long(0),
            "data_class": long(n),
            "correlation": {"how": "exact", "handles": [{"kind": long(n), "hash": long(n)}]},
        }  # fmt: skip
        made += [
            t.event("credential_used", credential_id=long(n), scope_exercised=long(n), **common),
            t.event("approval_decided", approval_id=long(n), by=who, call_id=long(n), **common),
            t.event("model_responded", model=long(n), model_version=long(n), **common),
            t.event("tool_executed", call_id=long(n), tool=long(n), **common),
        ]
    return [*made, t.event("session_ended", outcome=long(1))]


def long(number: int) -> str:
    return f"{number:04}" + "\U0001f4a5" * TEXT_CHARS_MAX


def huge_texts(t: Trace) -> list[Made]:
    huge = "x" * (EVENT_BYTES_MAX - 10_000)
    return [
        t.event("session_started"),
        t.event("tool_executed", call_id="c", tool=huge),
        t.event("tool_executed", call_id=huge),
        t.event("session_ended", outcome=huge),
        t.event("prompt_submitted", workflow_id=huge),
    ]


def much_evidence(t: Trace) -> list[Made]:
    return [*many_of_all(t), *(t.event("prompt_submitted") for _ in range(1_838))]


WORST = [many_producers, many_announced, many_gaps, many_of_all, huge_texts, much_evidence]


@pytest.mark.parametrize("session", WORST)
def test_the_worst_sessions_fit_into_a_record(session: Callable[[Trace], list[Made]]) -> None:
    whole = chain(*session(Trace()))
    verdict = judge(whole, CONFIG)
    record = chain_record(whole, verdict, AT, CONFIG)
    sizes = [len(ENCODER.encode("finding", finding_record(f, whole, AT, CONFIG)))
             for f in verdict.findings]  # fmt: skip

    assert len(ENCODER.encode("chain", record)) < RECORD_BYTES_MAX
    assert max(sizes, default=0) < 30_000
    assert max(len(record[name]) - len(listings(record)) for name in LISTS) <= LIST_ITEMS_MAX


def test_a_session_of_everything_says_of_each_list_that_there_is_more() -> None:
    record = as_stored(record_of(chain(*much_evidence(Trace()))))

    assert len(record["evidence"]) == record["events"]
    assert set(LISTS) - set(listings(record)) <= {"missing"}


def test_of_many_findings_the_worst_are_listed() -> None:
    whole = chain(*many_of_all(Trace()))
    verdict = judge(whole, CONFIG)
    listed = record_of(whole)["findings"]

    assert len(listed) < len(verdict.findings)
    assert {f["severity"] for f in listed} == {"critical"}
