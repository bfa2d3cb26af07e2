"""The findings about the record itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from trailweave.stream_processors.rules import RULES
from trailweave.stream_processors.rules.records import (
    dup_conflict,
    identity_missing,
    model_version_missing,
    seq_gap,
)

from tests.unit.stream_processors.builders import AGENT, Made, Trace, chain

Events = Callable[[Trace], list[Made]]
HUMAN_AGENT = {**AGENT, "kind": "human"}
ASSERTED = {**AGENT, "assurance": "asserted"}


def started(t: Trace, **fields: Any) -> Made:
    return t.event("session_started", **fields)


def responded(t: Trace, **fields: Any) -> Made:
    return t.event("model_responded", **fields)


GAPS: list[tuple[str, Events, list[str]]] = [
    ("a number is missing", lambda t: [started(t), started(t, trace_seq=2)], ["agent-1"]),
    ("the first is missing", lambda t: [started(t, trace_seq=1)], ["agent-1"]),
    ("fewer than announced", lambda t: [started(t), t.ended({"agent-1": 3})], ["agent-1"]),
    (
        "an announced producer is silent",
        lambda t: [started(t), t.ended({"agent-1": 2, "gateway": 1})],
        ["gateway"],
    ),
    ("all here", lambda t: [started(t), t.ended({"agent-1": 2})], []),
    ("more than announced", lambda t: [started(t), t.ended({"agent-1": 1})], []),
    ("a new epoch begins at 0", lambda t: [started(t), started(t, producer_epoch=2)], []),
    ("without sequences", lambda t: [started(t, trace_seq=None)], []),
]

MODELS: list[tuple[str, Events, int]] = [
    ("neither is known", lambda t: [responded(t, model=None)], 1),
    ("an empty name", lambda t: [responded(t, model="")], 1),
    ("the model is known", lambda t: [responded(t)], 0),
    ("the version is known", lambda t: [responded(t, model=None, model_version="7")], 0),
    ("it did not answer", lambda t: [responded(t, model=None, status="error")], 0),
]

IDENTITIES: list[tuple[str, Events, str | None]] = [
    ("verified and sponsored", lambda t: [started(t)], None),
    ("an owner is no sponsor", lambda t: [started(t, sponsor=None, agent_owner="team")], "sponsor"),
    (
        "one event of each will do",
        lambda t: [started(t, sponsor=None), started(t, actor=ASSERTED)],
        None,
    ),
    ("nobody stands behind it", lambda t: [started(t, sponsor=None)], "sponsor"),
    ("only asserted", lambda t: [started(t, actor=ASSERTED)], "verified workload identity"),
    (
        "a human is no workload",
        lambda t: [started(t, actor=HUMAN_AGENT)],
        "verified workload identity",
    ),
]


@pytest.mark.parametrize(("events", "expected"), [c[1:] for c in GAPS], ids=[c[0] for c in GAPS])
def test_gaps_are_found_per_producer(events: Events, expected: list[str]) -> None:
    assert [hit.subject for hit in seq_gap.check(chain(*events(Trace())))] == expected


@pytest.mark.parametrize(("events", "hits"), [c[1:] for c in MODELS], ids=[c[0] for c in MODELS])
def test_an_answer_of_an_unknown_model_is_found(events: Events, hits: int) -> None:
    assert len(list(model_version_missing.check(chain(*events(Trace()))))) == hits


@pytest.mark.parametrize(
    ("events", "lacks"), [c[1:] for c in IDENTITIES], ids=[c[0] for c in IDENTITIES]
)
def test_a_session_without_identity_or_backing_is_found(events: Events, lacks: str | None) -> None:
    found = [hit.summary for hit in identity_missing.check(chain(*events(Trace())))]

    assert found == ([] if lacks is None else [f"the session shows no {lacks}"])


PROMPT = "prompt_submitted"
SAME_ID: dict[str, Any] = {"event_id": "00000000-0000-7000-8000-0000000000ff"}

CONFLICTS: list[tuple[str, Events, list[str]]] = [
    (
        "two versions of an event",
        lambda t: [t.event(PROMPT, content=text, **SAME_ID) for text in ("a", "b")],
        [SAME_ID["event_id"]],
    ),
    (
        "three versions of an event",
        lambda t: [t.event(PROMPT, content=text, **SAME_ID) for text in ("a", "b", "c")],
        [SAME_ID["event_id"]],
    ),
    (
        "two events with one sequence",
        lambda t: [t.event(PROMPT, trace_seq=4), t.event(PROMPT, trace_seq=4)],
        ["agent-1/1/4"],
    ),
    ("the same event again", lambda t: [t.event(PROMPT)] * 2, []),
    (
        "the same number after a restart",
        lambda t: [t.event(PROMPT), t.event(PROMPT, trace_seq=0, producer_epoch=2)],
        [],
    ),
    (
        "the same number by another producer",
        lambda t: [t.event(PROMPT), t.event(PROMPT, producer_id="gateway")],
        [],
    ),
    (
        "events without a sequence",
        lambda t: [t.event(PROMPT, trace_seq=None), t.event(PROMPT, trace_seq=None)],
        [],
    ),
]


@pytest.mark.parametrize(
    ("events", "expected"), [c[1:] for c in CONFLICTS], ids=[c[0] for c in CONFLICTS]
)
def test_different_events_under_one_name_are_found(events: Events, expected: list[str]) -> None:
    assert [hit.subject for hit in dup_conflict.check(chain(*events(Trace())))] == expected


def test_a_conflict_shows_all_that_share_the_name() -> None:
    t = Trace()
    texts = ("a", "b", "c")
    (hit,) = dup_conflict.check(chain(*(t.event(PROMPT, content=x, **SAME_ID) for x in texts)))

    assert [event["event_id"] for event in hit.events] == [SAME_ID["event_id"]] * 3


def test_every_rule_explains_itself() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES) == 41
    assert all(rule.doc and rule.controls and rule.expected and rule.next_step for rule in RULES)
