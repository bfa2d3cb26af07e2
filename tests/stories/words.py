"""The words in which stories are told: one event each, with what most of its kind have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from trailweave.stream_processors.rules import Limits

from tests.unit.stream_processors.builders import AGENT, HUMAN, START_US, Made, Trace

Events = Callable[[Trace], list[Made]]
#: It must be found; it looks like it and must not be; what would tell is late or not there.
Kind = Literal["fires", "near miss", "lacking"]

SECOND_US: Final = 1_000_000
BOSS: Final = {"kind": "human", "subject": "boss@acme"}
EVERYBODY: Final = ("agent", "gateway", "policy", "vault", "downstream")


@dataclass(frozen=True)
class Story:
    """One story for one rule, and what the rule must say of it."""

    rule: str
    kind: Kind
    told: str
    events: Events
    #: Subjects of the findings; None: the rule can't be evaluated.
    finds: tuple[str, ...] | None = ()
    limits: Limits = field(default_factory=Limits)

    def __str__(self) -> str:
        return f"{self.rule}, {self.kind}: {self.told}"


@dataclass(frozen=True)
class About:
    """Stories for one rule."""

    rule: str
    stories: list[Story] = field(default_factory=list)

    def fires(self, told: str, subject: str, events: Events, **limits: Any) -> About:
        self.stories.append(Story(self.rule, "fires", told, events, (subject,), Limits(**limits)))
        return self

    def near_miss(self, told: str, events: Events, **limits: Any) -> About:
        self.stories.append(Story(self.rule, "near miss", told, events, (), Limits(**limits)))
        return self

    def lacking(
        self, told: str, events: Events, finds: tuple[str, ...] | None = (), **limits: Any
    ) -> About:
        self.stories.append(Story(self.rule, "lacking", told, events, finds, Limits(**limits)))
        return self


def at(seconds: float) -> int:
    """Microseconds of a time after the story's start."""
    return START_US + int(seconds * SECOND_US)


def start(t: Trace, *promised: str, **fields: Any) -> Made:
    return t.event("session_started", 0, expected_sources=promised or EVERYBODY, **fields)


def end(t: Trace, at_s: float | None = None, **fields: Any) -> Made:
    return t.event("session_ended", at_s, **fields)


def prompt(t: Trace, **fields: Any) -> Made:
    return t.event("prompt_submitted", fields.pop("at_s", None), role="user", **fields)


def retrieve(t: Trace, **fields: Any) -> Made:
    return t.event("context_retrieved", fields.pop("at_s", None), **fields)


def remember(t: Trace, operation: str = "read", **fields: Any) -> Made:
    fields = {"store": "notes", "memory_key": "plan", "operation": operation, **fields}
    return t.event("memory_accessed", fields.pop("at_s", None), **fields)


def guard(t: Trace, **fields: Any) -> Made:
    return t.event("guardrail_checked", **{"guardrail": "shield", "verdict": "pass", **fields})


def propose(t: Trace, call: str = "c", **fields: Any) -> Made:
    proposed = {"call_id": call, "tool": "shell", "arguments_hash": fields.pop("arguments", None)}
    return t.event(
        "model_responded",
        fields.pop("at_s", None),
        **{"status": "ok", "proposed": [proposed], **fields},
    )


def answer(t: Trace, **fields: Any) -> Made:
    return t.event("model_responded", **{"status": "ok", **fields})


def decide(t: Trace, effect: str = "allow", call: str = "c", **fields: Any) -> Made:
    fields = {"call_id": call, "effect": effect, "mode": "enforced", **fields}
    fields.setdefault("decision_id", f"d{t.number}")
    return t.event("policy_decided", fields.pop("at_s", None), **fields)


def ask(t: Trace, **fields: Any) -> Made:
    return t.event("approval_requested", fields.pop("at_s", None), **{"call_id": "c", **fields})


def approve(t: Trace, effect: str = "allow", **fields: Any) -> Made:
    fields = {"call_id": "c", "effect": effect, "by": BOSS, **fields}
    return t.event("approval_decided", fields.pop("at_s", None), **fields)


def request(t: Trace, call: str = "c", **fields: Any) -> Made:
    return t.event("tool_requested", fields.pop("at_s", None), **{"call_id": call, **fields})


def run(t: Trace, call: str = "c", **fields: Any) -> Made:
    fields = {"call_id": call, "tool": "shell", **fields}
    return t.event("tool_executed", fields.pop("at_s", None), **fields)


def see(t: Trace, call: str | None = "c", **fields: Any) -> Made:
    fields = {"call_id": call, "status": "ok", **fields}
    return t.event("downstream_observed", fields.pop("at_s", None), **fields)


def credential(t: Trace, what: str, one: str = "k", **fields: Any) -> Made:
    return t.event(f"credential_{what}", fields.pop("at_s", None), credential_id=one, **fields)


def issue(t: Trace, one: str = "k", **fields: Any) -> Made:
    return credential(t, "issued", one, **fields)


def use(t: Trace, one: str = "k", **fields: Any) -> Made:
    return credential(t, "used", one, **{"status": "ok", **fields})


def line(*agents: tuple[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    """A line of delegation, the acting one first."""
    return [{"kind": "agent", "subject": name, "scopes": list(scopes)} for name, scopes in agents]


__all__ = [
    "AGENT",
    "BOSS",
    "EVERYBODY",
    "HUMAN",
    "About",
    "Story",
    "answer",
    "approve",
    "ask",
    "at",
    "credential",
    "decide",
    "end",
    "guard",
    "issue",
    "line",
    "prompt",
    "propose",
    "remember",
    "request",
    "retrieve",
    "run",
    "see",
    "start",
    "use",
]  # fmt: skip
