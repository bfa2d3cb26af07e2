"""The findings about approvals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from trailweave.stream_processors.rules.approvals import (
    approval_after_act,
    override_no_reason,
    self_approval,
)
from trailweave.stream_processors.rules.times import SKEW_US

from tests.unit.stream_processors.builders import AGENT, HUMAN, START_US, Made, Trace, chain

Events = Callable[[Trace], list[Made]]
BOSS = {"kind": "human", "subject": "boss@acme"}
SKEW_S = SKEW_US / 1_000_000


def asked(t: Trace, at_s: float = 0, **fields: Any) -> Made:
    return t.event("approval_requested", at_s, call_id="c", **fields)


def approved(t: Trace, at_s: float = 1, **fields: Any) -> Made:
    return t.event(
        "approval_decided", at_s, **{"call_id": "c", "effect": "allow", "by": BOSS, **fields}
    )


def ran(t: Trace, at_s: float = 2, **fields: Any) -> Made:
    return t.event("tool_executed", at_s, call_id="c", **fields)


AFTER: list[tuple[str, Events, list[str]]] = [
    ("approved after it had started", lambda t: [ran(t, 0), approved(t, 60)], ["c"]),
    ("approved before", lambda t: [approved(t, 0), ran(t, 60)], []),
    ("before, and again after", lambda t: [approved(t, 0), ran(t, 9), approved(t, 60)], []),
    ("approved at once, for clocks differ", lambda t: [ran(t, 0), approved(t, SKEW_S)], []),
    (
        "it ended before the approval, and had started after it",
        lambda t: [approved(t, 30), ran(t, 60, started_at=START_US + 40_000_000)],
        [],
    ),
    (
        "it had started long before it ended",
        lambda t: [approved(t, 30), ran(t, 60, started_at=START_US)],
        ["c"],
    ),
    ("declined after it had started", lambda t: [ran(t, 0), approved(t, 60, effect="deny")], []),
    ("it did not run", lambda t: [ran(t, 0, status="denied"), approved(t, 60)], []),
    ("the approval has no time", lambda t: [ran(t, 5), approved(t, occurred_at=0)], []),
    ("the start is not known", lambda t: [ran(t, occurred_at=0), approved(t, 60)], []),
    (
        "the approval names the request only",
        lambda t: [asked(t, 0), ran(t, 1), approved(t, 60, call_id=None)],
        ["c"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("events", "expected"), [c[1:] for c in AFTER], ids=[c[0] for c in AFTER])
def test_an_approval_that_came_too_late_is_found(events: Events, expected: list[str]) -> None:
    assert [hit.subject for hit in approval_after_act.check(chain(*events(Trace())))] == expected


def test_it_says_how_late_the_approval_came() -> None:
    t = Trace()
    (hit,) = approval_after_act.check(chain(ran(t, 0), approved(t, 60), approved(t, 90)))

    assert hit.summary == "a call was approved 60 s after it had started"
    assert [e["event_type"] for e in hit.events] == ["tool_executed", "approval_decided"]


OWN: list[tuple[str, Events, str | None]] = [
    (
        "the requester",
        lambda t: [approved(t, requested_by=BOSS)],
        "whoever had asked for it",
    ),
    (
        "the requester, whom only the request names",
        lambda t: [asked(t, requested_by=BOSS), approved(t)],
        "whoever had asked for it",
    ),
    ("the agent", lambda t: [approved(t, requested_by=HUMAN, by=AGENT)], "the agent itself"),
    (
        "the agent's owner",
        lambda t: [t.event("prompt_submitted", agent_owner="boss@acme"), approved(t)],
        "the agent's owner",
    ),
    ("somebody else", lambda t: [asked(t), approved(t)], None),
    ("the human on whose behalf it acts", lambda t: [asked(t), approved(t, by=HUMAN)], None),
    ("who declines it", lambda t: [approved(t, requested_by=BOSS, effect="deny")], None),
]  # fmt: skip


@pytest.mark.parametrize(("events", "who"), [c[1:] for c in OWN], ids=[c[0] for c in OWN])
def test_an_approval_by_a_party_to_it_is_found(events: Events, who: str | None) -> None:
    found = [hit.summary for hit in self_approval.check(chain(*events(Trace())))]

    assert found == ([] if who is None else [f"the approval was given by {who}"])


OVERRIDES: list[tuple[str, dict[str, Any], str | None]] = [
    ("neither", {}, "a reason or a ticket"),
    ("no ticket", {"reason": "urgent"}, "a ticket"),
    ("no reason", {"ticket": "CHG-1"}, "a reason"),
    ("blanks", {"ticket": "CHG-1", "reason": "  "}, "a reason"),
    ("both", {"ticket": "CHG-1", "reason": "urgent"}, None),
    ("declined", {"effect": "deny"}, None),
    ("a plain approval", {"approval_kind": "approval"}, None),
]


@pytest.mark.parametrize(
    ("fields", "lacks"), [c[1:] for c in OVERRIDES], ids=[c[0] for c in OVERRIDES]
)
def test_an_override_that_nobody_can_account_for_is_found(
    fields: dict[str, Any], lacks: str | None
) -> None:
    t = Trace()
    given = approved(t, **{"approval_kind": "override", **fields})
    found = [hit.summary for hit in override_no_reason.check(chain(given))]

    assert found == ([] if lacks is None else [f"an override was given without {lacks}"])
