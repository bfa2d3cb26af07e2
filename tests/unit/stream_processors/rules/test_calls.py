"""The findings about tool calls: what each fires on, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from trailweave.stream_processors.rules import RULES
from trailweave.stream_processors.rules.rule import Rule

from tests.unit.stream_processors.builders import START_US, Made, Trace, chain

Events = Callable[[Trace], list[Made]]
RULE = {rule.name: rule for rule in RULES}


def proposed(t: Trace, call: str = "c", at_s: float = 0) -> Made:
    return t.event("model_responded", at_s, proposed=[{"call_id": call, "tool": "shell"}])


def decided(t: Trace, effect: str, at_s: float = 1, call: str = "c", **fields: object) -> Made:
    decision = f"{call}{effect}{at_s}{fields.get('policy_id')}"
    return t.event(
        "policy_decided", at_s, call_id=call, effect=effect, **{"decision_id": decision, **fields}
    )


def asked(t: Trace, at_s: float = 2, call: str = "c", **fields: object) -> Made:
    return t.event("tool_requested", at_s, call_id=call, **fields)


def ran(t: Trace, at_s: float = 3, call: str = "c", **fields: object) -> Made:
    return t.event("tool_executed", at_s, call_id=call, **fields)


def seen(t: Trace, at_s: float = 3, call: str = "c", **fields: object) -> Made:
    return t.event("downstream_observed", at_s, call_id=call, **fields)


def approval(t: Trace, effect: str, at_s: float, **fields: object) -> Made:
    return t.event("approval_decided", at_s, **{"call_id": "c", "effect": effect, **fields})


def asked_for_approval(t: Trace, **fields: object) -> Made:
    return t.event("approval_requested", 1.5, **{"call_id": "c", **fields})


def subjects(rule: Rule, events: Events) -> list[str]:
    return [hit.subject for hit in rule.check(chain(*events(Trace())))]


WITHOUT_DECISION: list[tuple[str, Events, list[str]]] = [
    ("no decision", lambda t: [ran(t)], ["c"]),
    ("a failed run is a run", lambda t: [ran(t, status="error")], ["c"]),
    ("only a dry run", lambda t: [decided(t, "allow", mode="dry_run"), ran(t)], ["c"]),
    ("about another call", lambda t: [decided(t, "allow", call="d"), ran(t)], ["c"]),
    ("decided", lambda t: [decided(t, "allow"), ran(t)], []),
    ("refused by its executor", lambda t: [ran(t, status="denied")], []),
    ("never started", lambda t: [ran(t, status="cancelled")], []),
    ("requested only", lambda t: [asked(t)], []),
    (
        "a retry of a retry of a decided call",
        lambda t: [
            decided(t, "allow"),
            asked(t, call="c2", retry_of="c"),
            asked(t, call="c3", retry_of="c2"),
            ran(t, call="c3"),
        ],
        [],
    ),
    (
        "retries of each other",
        lambda t: [asked(t, call="c2", retry_of="c"), asked(t, retry_of="c2"), ran(t)],
        ["c"],
    ),
]

DENIED: list[tuple[str, Events, list[str]]] = [
    ("denied, then run", lambda t: [decided(t, "deny"), ran(t)], ["c"]),
    ("denied, then seen downstream", lambda t: [decided(t, "deny"), seen(t)], ["c"]),
    ("denied and refused", lambda t: [decided(t, "deny"), ran(t, status="denied")], []),
    ("denied and failed", lambda t: [decided(t, "deny"), ran(t, status="error")], []),
    ("denied in a dry run", lambda t: [decided(t, "deny", mode="dry_run"), ran(t)], []),
    ("allowed", lambda t: [decided(t, "allow"), ran(t)], []),
    ("denied after it ran", lambda t: [ran(t, 0.5), decided(t, "deny", 1)], []),
    (
        "denied while it ran",
        lambda t: [decided(t, "deny", 1), ran(t, 3, started_at=START_US + 500_000)],
        [],
    ),
    (
        "first denied, then allowed",
        lambda t: [decided(t, "deny", 1), decided(t, "allow", 2), ran(t)],
        [],
    ),
    (
        "first allowed, then denied",
        lambda t: [decided(t, "allow", 1), decided(t, "deny", 2), ran(t)],
        ["c"],
    ),
    ("both at one time", lambda t: [decided(t, "deny", 1), decided(t, "allow", 1), ran(t)], ["c"]),
    (
        "another policy's allow lifts no denial",
        lambda t: [decided(t, "deny", 1), decided(t, "allow", 2, policy_id="other"), ran(t)],
        ["c"],
    ),
    (
        "superseded",
        lambda t: [
            decided(t, "deny", 1, decision_id="x"),
            decided(t, "allow", 2, policy_id="other", supersedes="x"),
            ran(t),
        ],
        [],
    ),
    ("approved in between", lambda t: [decided(t, "deny"), approval(t, "allow", 2), ran(t)], []),
    (
        "approved before the denial",
        lambda t: [approval(t, "allow", 0), decided(t, "deny"), ran(t)],
        ["c"],
    ),
    ("approved afterwards", lambda t: [decided(t, "deny"), ran(t), approval(t, "allow", 4)], ["c"]),
    ("approval refused", lambda t: [decided(t, "deny"), approval(t, "deny", 2), ran(t)], ["c"]),
    (
        "the approval had lapsed",
        lambda t: [
            decided(t, "deny"),
            approval(t, "allow", 2, valid_until=START_US + 2_500_000),
            ran(t),
        ],
        ["c"],
    ),
    (
        "the approval names its call by its request",
        lambda t: [
            decided(t, "deny"),
            asked_for_approval(t),
            approval(t, "allow", 2, call_id=None),
            ran(t),
        ],
        [],
    ),
    (
        "a retry of a denied call",
        lambda t: [decided(t, "deny"), asked(t, call="c2", retry_of="c"), ran(t, call="c2")],
        ["c2"],
    ),
]

HALLUCINATED: list[tuple[str, Events, list[str]]] = [
    ("nothing came of it", lambda t: [proposed(t)], ["c"]),
    ("an allowance is no call", lambda t: [proposed(t), decided(t, "allow")], ["c"]),
    ("requested", lambda t: [proposed(t), asked(t)], []),
    ("executed", lambda t: [proposed(t), ran(t)], []),
    ("refused by its executor", lambda t: [proposed(t), ran(t, status="denied")], []),
    ("seen downstream", lambda t: [proposed(t), seen(t)], []),
    ("denied", lambda t: [proposed(t), decided(t, "deny")], []),
    ("stepped up", lambda t: [proposed(t), decided(t, "step_up")], []),
    ("waits for approval", lambda t: [proposed(t), asked_for_approval(t)], []),
    ("declined", lambda t: [proposed(t), approval(t, "deny", 2)], []),
]

GHOST: list[tuple[str, Events, list[str]]] = [
    ("ran unasked", lambda t: [ran(t)], ["c"]),
    ("seen downstream only", lambda t: [seen(t)], ["c"]),
    ("requested for the model, which proposed nothing", lambda t: [asked(t), ran(t)], ["c"]),
    ("proposed", lambda t: [proposed(t), ran(t)], []),
    ("a human asked", lambda t: [asked(t, initiator="human"), ran(t)], []),
    ("a workflow asked", lambda t: [asked(t, initiator="workflow"), seen(t)], []),
    ("it did not run", lambda t: [ran(t, status="denied")], []),
    ("seen downstream without a call", lambda t: [seen(t, call=None)], []),  # type: ignore[arg-type]
    (
        "a retry of a proposed call",
        lambda t: [proposed(t), asked(t, call="c2", retry_of="c"), ran(t, call="c2")],
        [],
    ),
]

#: A record translated without a time has 0.
UNKNOWN: dict[str, Any] = {"occurred_at": 0}

DENIED_WITHOUT_TIME: list[tuple[str, Events, list[str]]] = [
    ("the denial has no time", lambda t: [decided(t, "deny", **UNKNOWN), ran(t)], ["c"]),
    ("the run has no time", lambda t: [decided(t, "deny"), ran(t, **UNKNOWN)], ["c"]),
    (
        "neither has a time",
        lambda t: [decided(t, "deny", **UNKNOWN), ran(t, **UNKNOWN)],
        ["c"],
    ),
    (
        "the run's start is known",
        lambda t: [decided(t, "deny", 2), ran(t, started_at=START_US, **UNKNOWN)],
        [],
    ),
    (
        "an allowance hides no denial without a time",
        lambda t: [decided(t, "deny", **UNKNOWN), decided(t, "allow", 1), ran(t)],
        ["c"],
    ),
    (
        "an allowance without a time hides no denial",
        lambda t: [decided(t, "deny", 1), decided(t, "allow", **UNKNOWN), ran(t)],
        ["c"],
    ),
    (
        "an approval without a time lifts a denial",
        lambda t: [decided(t, "deny"), approval(t, "allow", 2, **UNKNOWN), ran(t)],
        [],
    ),
    (
        "an approval lifts a denial without a time",
        lambda t: [decided(t, "deny", **UNKNOWN), approval(t, "allow", 2), ran(t)],
        [],
    ),
    (
        "for a run without a time the last word counts",
        lambda t: [decided(t, "deny", 1), decided(t, "allow", 2), ran(t, **UNKNOWN)],
        [],
    ),
    (
        "approved, and the run has no time",
        lambda t: [decided(t, "deny", 1), approval(t, "allow", 2), ran(t, **UNKNOWN)],
        [],
    ),
    (
        "allowed, nothing has a time",
        lambda t: [decided(t, "allow", **UNKNOWN), ran(t, **UNKNOWN)],
        [],
    ),
]

OUTCOME_WITHOUT_TIME: list[tuple[str, Events, list[str]]] = [
    (
        "denied, when is unknown",
        lambda t: [
            decided(t, "deny", **UNKNOWN), decided(t, "allow", 1), asked(t, side_effect=True)
        ],
        [],
    ),
    (
        "denied, then approved at an unknown time",
        lambda t: [
            decided(t, "deny", 1), approval(t, "allow", 2, **UNKNOWN), asked(t, side_effect=True)
        ],
        ["c"],
    ),
]  # fmt: skip

OUTCOME: list[tuple[str, Events, list[str]]] = [
    ("no outcome", lambda t: [asked(t, side_effect=True)], ["c"]),
    ("allowed, no outcome", lambda t: [decided(t, "allow"), asked(t, side_effect=True)], ["c"]),
    ("no side effect", lambda t: [asked(t)], []),
    ("executed", lambda t: [asked(t, side_effect=True), ran(t)], []),
    (
        "timed out is an outcome",
        lambda t: [asked(t, side_effect=True), ran(t, status="timeout")],
        [],
    ),
    ("seen downstream", lambda t: [asked(t, side_effect=True), seen(t)], []),
    ("denied", lambda t: [decided(t, "deny"), asked(t, side_effect=True)], []),
    ("stepped up", lambda t: [decided(t, "step_up"), asked(t, side_effect=True)], []),
    ("waits for approval", lambda t: [asked(t, side_effect=True), asked_for_approval(t)], []),
    (
        "declined",
        lambda t: [asked(t, side_effect=True), asked_for_approval(t), approval(t, "deny", 3)],
        [],
    ),
    (
        "approved, no outcome",
        lambda t: [asked(t, side_effect=True), asked_for_approval(t), approval(t, "allow", 3)],
        ["c"],
    ),
]

CASES = [
    pytest.param(RULE[name], events, expected, id=f"{name}: {what}")
    for name, table in {
        "exec_without_decision": WITHOUT_DECISION,
        "denied_but_executed": DENIED + DENIED_WITHOUT_TIME,
        "hallucinated_call": HALLUCINATED,
        "ghost_action": GHOST,
        "outcome_missing": OUTCOME + OUTCOME_WITHOUT_TIME,
    }.items()
    for what, events, expected in table
]


@pytest.mark.parametrize(("rule", "events", "expected"), CASES)
def test_a_rule_names_the_calls_that_it_is_about(
    rule: Rule, events: Events, expected: list[str]
) -> None:
    assert subjects(rule, events) == expected


def test_a_denied_call_is_found_with_its_denials_and_its_run() -> None:
    t = Trace()
    (hit,) = RULE["denied_but_executed"].check(chain(decided(t, "deny"), ran(t, tool="shell")))

    assert hit.summary == "shell succeeded although it was denied"
    assert [e["event_type"] for e in hit.events] == ["policy_decided", "tool_executed"]


FAIL_OPEN: list[tuple[str, Events, list[str]]] = [
    ("the engine timed out", lambda t: [decided(t, "allow", timed_out=True), ran(t)], ["c"]),
    ("the engine failed", lambda t: [decided(t, "allow", error="unavailable"), ran(t)], ["c"]),
    ("it did not run", lambda t: [decided(t, "deny", timed_out=True), ran(t, status="denied")], []),
    ("asked again, with success", lambda t: [
        decided(t, "allow", timed_out=True), decided(t, "allow", 2), ran(t)], []),
    ("a trial failed", lambda t: [
        decided(t, "allow"), decided(t, "allow", 2, mode="dry_run", error="x"), ran(t)], []),
    ("nobody was asked", lambda t: [ran(t)], []),
    ("a retry of a call that was decided", lambda t: [
        decided(t, "allow"), decided(t, "allow", call="d", timed_out=True),
        asked(t, call="d", retry_of="c"), ran(t, call="d")], []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("events", "expected"), [c[1:] for c in FAIL_OPEN], ids=[c[0] for c in FAIL_OPEN]
)
def test_a_call_that_ran_without_an_answer_of_the_engine_is_found(
    events: Events, expected: list[str]
) -> None:
    found = RULE["fail_open"].check(chain(*events(Trace())))

    assert [hit.subject for hit in found] == expected
