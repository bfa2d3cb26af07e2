"""Findings about approvals: when they came, who gave them, and why."""

from collections.abc import Iterator

from trailweave.stream_processors.chain import Chain, Record
from trailweave.stream_processors.rules.rule import Hit, rule
from trailweave.stream_processors.rules.times import SKEW_US, occurred_at, started_at


@rule(
    "high",
    controls=("ASI09", "AC-3", "EU AI Act 14", "OWASP Agentic A-07"),
    about=("approval_decided", "tool_executed"),
    expected="an approval before the call started",
    next_step="find out why the gateway did not wait; treat the call as one that nobody approved",
    early=True,
)
def approval_after_act(chain: Chain) -> Iterator[Hit]:
    """A call was approved only after it had started: the approval changed nothing.

    The first approval of the call counts. One within five seconds of the start is not judged, for
    clocks differ; nor is one without a time, nor a call whose start is not known.
    """
    for call_id, answers in chain.approvals.items():
        given = [a for a in answers if a["effect"] == "allow"]
        ran = chain.runs.get(call_id, ())
        starts = [at for at in map(started_at, ran) if at is not None]
        if not given or not starts or not all(a["occurred_at"] for a in given):
            continue
        first = min(given, key=occurred_at)
        late_us = first["occurred_at"] - min(starts)
        if late_us > SKEW_US:
            summary = f"a call was approved {late_us // 1_000_000} s after it had started"
            yield Hit(call_id, summary, (*ran, first))


@rule(
    "high",
    controls=("AC-5", "SOC 2 CC6.3", "OWASP Agentic A-07"),
    about=("approval_decided",),
    expected="an approval by somebody who is neither the requester, nor the agent, nor its owner",
    next_step="have somebody independent look at the call; take the approver's right to do this",
    early=True,
)
def self_approval(chain: Chain) -> Iterator[Hit]:
    """Whoever approved had asked for it, is the agent that acts, or answers for that agent.

    The human on whose behalf the agent acts may approve: that is what asking back is for.
    """
    answers = [a for a in chain.of("approval_decided") if a["effect"] == "allow"]
    if not answers:
        return  # nothing is gathered from every event for the many chains without an approval
    asked: dict[str, Record] = {r["approval_id"]: r for r in chain.of("approval_requested")}
    agents = {r["actor"]["subject"] for r in chain.records if r["actor"]["kind"] == "agent"}
    owners = {r["agent_owner"] for r in chain.records if r["agent_owner"]}
    for answer in answers:
        request = asked.get(answer["approval_id"])
        by = answer["by"]["subject"]
        requester = answer["requested_by"] or (request or {}).get("requested_by")
        if requester is not None and requester["subject"] == by:
            who = "whoever had asked for it"
        elif by in agents:
            who = "the agent itself"
        elif by in owners:
            who = "the agent's owner"
        else:
            continue
        events = (answer,) if request is None else (request, answer)
        yield Hit(
            answer["approval_id"], f"the {answer['approval_kind']} was given by {who}", events
        )


@rule(
    "medium",
    controls=("ASI09", "AC-6(9)", "SOC 2 CC7.2", "OWASP Agentic A-07"),
    about=("approval_decided",),
    expected="a reason and a ticket for every override",
    next_step="ask who gave the override for its reason, and write it down",
    early=True,
)
def override_no_reason(chain: Chain) -> Iterator[Hit]:
    """A denial was overridden without a reason or without a ticket."""
    for answer in chain.of("approval_decided"):
        if answer["approval_kind"] != "override" or answer["effect"] != "allow":
            continue
        lacks = [name for name in ("reason", "ticket") if not (answer[name] or "").strip()]
        if lacks:
            summary = f"an override was given without a {' or a '.join(lacks)}"
            yield Hit(answer["approval_id"], summary, (answer,))
