"""Findings about tool calls: proposed, decided, requested, executed, observed."""

from collections.abc import Iterator

from trailweave.stream_processors.chain import Chain, Record
from trailweave.stream_processors.rules.limits import Limits
from trailweave.stream_processors.rules.rule import Hit, rule
from trailweave.stream_processors.rules.times import occurred_at, started_at


def _origin(chain: Chain, call_id: str) -> list[str]:
    """The call and those that it repeats: a retry stands under its first call's decision."""
    calls = [call_id]
    for call in calls:  # grows while it is walked: a retry may repeat a retry
        for request in chain.requests.get(call, ()):
            before = request["retry_of"]
            if before is not None and before not in calls:
                calls.append(before)
    return calls


def _standing(chain: Chain, call_id: str, at: int | None) -> list[Record]:
    """The decisions that hold for what started at `at` (None: after all of them).

    Per engine and policy the last enforced one; of two at one time, the denial. A decision without
    a time counts as made before the start, and neither replaces those of its policy that have one
    nor is replaced by them.
    """
    made = [
        decision
        for call in _origin(chain, call_id)
        for decision in chain.decisions.get(call, ())
        if at is None or decision["occurred_at"] <= at
    ]
    last: dict[tuple[str, str | None, bool], Record] = {}
    for decision in made:
        policy = (decision["engine"], decision["policy_id"], decision["occurred_at"] == 0)
        known = last.setdefault(policy, decision)
        if decision["occurred_at"] > known["occurred_at"] or (
            decision["occurred_at"] == known["occurred_at"] and decision["effect"] == "deny"
        ):
            last[policy] = decision
    return list(last.values())


def _effect_before(chain: Chain, call_id: str, at: int | None) -> str | None:
    """The effective decision of a call for what started at `at` (None: after all of them).

    Of the standing decisions a denial wins; an approval given after the denial lifts it.
    """
    last = _standing(chain, call_id, at)
    if not last:
        return None
    denials = [d for d in last if d["effect"] == "deny"]
    if not denials:
        return str(max(last, key=occurred_at)["effect"])
    denied_at = max(d["occurred_at"] for d in denials)
    return "allow" if _approved(chain, call_id, denied_at, at) else "deny"


def _approved(chain: Chain, call_id: str, after: int, before: int | None) -> bool:
    """Whether somebody allowed the call after its denial and before it started.

    An approval without a time counts as such a one: approvals answer denials.
    """
    return any(
        approval["effect"] == "allow"
        and (approval["occurred_at"] == 0 or approval["occurred_at"] >= after)
        and (before is None or approval["occurred_at"] <= before)
        and (approval["valid_until"] is None or (before or 0) <= approval["valid_until"])
        for call in _origin(chain, call_id)
        for approval in chain.approvals.get(call, ())
    )


@rule(
    "high",
    controls=("ASI02", "T2", "AC-6", "OWASP Agentic A1"),
    needs=("policy",),
    about=("tool_executed",),
    expected="an enforced policy decision that names the call",
    next_step="find out which path to the tool bypasses the policy engine, and close it",
)
def exec_without_decision(chain: Chain) -> Iterator[Hit]:
    """A tool call ran, and no enforced policy decision names it.

    Evaluated when the session or the settings promise that a policy engine reports. A retry stands
    under the decision of the call it repeats.
    """
    for call_id, ran in chain.runs.items():
        if call_id in chain.decisions:
            continue
        if not any(chain.decisions.get(call) for call in _origin(chain, call_id)):
            tool = ran[0]["tool"] or "a tool"
            yield Hit(call_id, f"{tool} ran without a policy decision", tuple(ran))


@rule(
    "critical",
    controls=("ASI02", "AC-6", "NIST SP 800-207 AC-6"),
    about=("policy_decided",),
    expected="no execution: the effective decision was a denial",
    next_step="stop the agent, check the gateway's enforcement, undo the call's effect",
    early=True,
)
def denied_but_executed(chain: Chain) -> Iterator[Hit]:
    """The effective decision of a call was a denial, and the call succeeded all the same.

    Effective is the last enforced decision per policy before the call started; a denial wins over
    other policies; an approval or override given in between lifts it. A retry stands under the
    denial of the call it repeats.

    A time that is not known hides no denial and makes none of an approval: a denial without a time
    stands whatever else its policy said, an allowance without a time replaces no denial, an
    approval without a time lifts one, and for a call whose start is not known all of them were
    made before it.
    """
    if not any(d["effect"] == "deny" for made in chain.decisions.values() for d in made):
        return
    for call_id in {**chain.executions, **chain.observations}:
        decisions = [d for c in _origin(chain, call_id) for d in chain.decisions.get(c, ())]
        denials = tuple(d for d in decisions if d["effect"] == "deny")
        for record in chain.ran(call_id) if denials else ():
            denied = _effect_before(chain, call_id, started_at(record)) == "deny"
            if denied and record["status"] == "ok":
                tool = record.get("tool") or record.get("operation") or "the call"
                yield Hit(call_id, f"{tool} succeeded although it was denied", (*denials, record))
                break


@rule(
    "high",
    controls=("ASI08", "SC-24", "NIST SP 800-207 AC-6"),
    about=("policy_decided", "tool_executed"),
    expected="no execution while the policy engine can't decide",
    next_step="make the gateway refuse calls that the policy engine does not answer",
    early=True,
)
def fail_open(chain: Chain) -> Iterator[Hit]:
    """The policy engine failed or took too long to decide on a call, and it ran all the same.

    Not if another enforced decision on the call, or on the one that it repeats, went well.
    """
    if not any(d["error"] is not None or d["timed_out"] for d in chain.of("policy_decided")):
        return
    for call_id, ran in chain.runs.items():
        made = [d for call in _origin(chain, call_id) for d in chain.decisions.get(call, ())]
        if made and all(d["error"] is not None or d["timed_out"] for d in made):
            tool = ran[0]["tool"] or "a tool"
            yield Hit(call_id, f"{tool} ran though no policy could be decided", (*made, *ran))


@rule(
    "high",
    controls=("ASI02", "AC-6", "IA-11", "OWASP Agentic A1"),
    about=("policy_decided", "tool_executed"),
    expected="no execution before what the decision asks for is there",
    next_step="have the gateway wait for the approval or the check that the decision names",
)
def obligation_bypassed(chain: Chain, limits: Limits) -> Iterator[Hit]:
    """A decision asked for more before the call, and the call ran without it.

    A step-up asks for an approval, and so do the obligations that `limits.obligations` calls one;
    others ask for a guardrail's check of the call. Obligations that it does not name leave no trace
    and are not judged.
    """
    asking = {
        call_id
        for call_id, made in chain.decisions.items()
        if any(d["effect"] == "step_up" or d["obligations"] for d in made)
    }
    for call_id in [call for call in chain.runs if call in asking]:
        ran = chain.runs[call_id]
        at = started_at(ran[0])
        for decision in _standing(chain, call_id, at):
            lacks = _lacks(chain, call_id, decision, at, limits)
            if lacks:
                tool = ran[0]["tool"] or "a tool"
                yield Hit(call_id, f"{tool} ran without {lacks}", (decision, *ran))
                break


def _lacks(
    chain: Chain, call_id: str, decision: Record, at: int | None, limits: Limits
) -> str | None:
    """What a decision asked for and is not there."""
    asked = {limits.obligations.get(name) for name in decision["obligations"]}
    approval = decision["effect"] == "step_up" or "approval" in asked
    if approval and not _approved(chain, call_id, decision["occurred_at"], at):
        return "the approval that its decision asked for"
    checks = chain.by("guardrail_checked", "call_id") if "guardrail" in asked else {}
    if "guardrail" in asked and call_id not in checks:
        return "the guardrail's check that its decision asked for"
    return None


@rule(
    "low",
    controls=("T5",),
    needs=("gateway",),
    about=("model_responded",),
    expected="a request or an execution for every call that the model proposed",
    next_step="compare the offered tools with the proposed one; look for a dropped call",
)
def hallucinated_call(chain: Chain) -> Iterator[Hit]:
    """A model proposed a call that was neither made nor denied, declined or left pending.

    Typical for a tool that does not exist. Evaluated when a gateway is promised to report.
    """
    waiting = {r["call_id"] for r in chain.of("approval_requested")}
    for call_id, response in chain.proposals.items():
        answered = (
            call_id in chain.requests
            or call_id in chain.executions
            or call_id in chain.observations
            or call_id in waiting
            or call_id in chain.approvals
            or any(d["effect"] in ("deny", "step_up") for d in chain.decisions.get(call_id, ()))
        )
        if not answered:
            tool = next(c["tool"] for c in response["proposed"] if c["call_id"] == call_id)
            yield Hit(call_id, f"the model proposed {tool}, and nothing came of it", (response,))


def _proposals_kept(chain: Chain, _: Limits) -> bool:
    """No response stopped for tool calls whose ids the recorder did not keep."""
    return not any(
        reason.startswith("tool") and not response["proposed"]
        for response in chain.of("model_responded")
        for reason in response["finish_reasons"]
    )


@rule(
    "critical",
    controls=("ASI10", "T8", "OWASP Agentic A2"),
    needs=("agent",),
    when=_proposals_kept,
    expected="a model response that proposed the call, or a human or workflow that asked for it",
    next_step="find who made the call with this agent's access; treat the identity as compromised",
)
def ghost_action(chain: Chain) -> Iterator[Hit]:
    """A tool ran, or a downstream system saw a call, that no model proposed.

    Calls whose request names a human or a workflow as initiator are legitimate; a retry stands
    under the proposal of the call it repeats. Not evaluable where a response stopped for tool calls
    and their ids were not kept: capture without content leaves them out.
    """
    for call_id in {**chain.executions, **chain.observations}:
        if call_id in chain.proposals:
            continue
        ran = chain.ran(call_id)
        requests = chain.requests.get(call_id, ())
        asked = any(r["initiator"] != "model" for r in requests)
        if not ran or asked or any(c in chain.proposals for c in _origin(chain, call_id)):
            continue
        tool = ran[0].get("tool") or ran[0].get("operation") or "a call"
        yield Hit(call_id, f"{tool} ran, and no model proposed it", (*requests, *ran))


@rule(
    "medium",
    controls=("T8", "AU-12"),
    needs=("gateway",),
    about=("tool_requested",),
    expected="an execution or a downstream record for every side effect that was let through",
    next_step="ask the downstream system whether the call arrived, and what came of it",
)
def outcome_missing(chain: Chain) -> Iterator[Hit]:
    """A call with a side effect was requested and not denied, and nothing says how it ended.

    Not denied: by the last word on it. A denial without a time stands, for it may have been that;
    an approval without a time lifts a denial.
    """
    waiting = {
        r["call_id"]
        for r in chain.of("approval_requested")
        if not chain.approvals.get(r["call_id"])
    }
    for call_id, requests in chain.requests.items():
        if call_id in chain.executions or call_id in chain.observations or call_id in waiting:
            continue
        if not any(r["side_effect"] for r in requests):
            continue
        declined = any(a["effect"] == "deny" for a in chain.approvals.get(call_id, ()))
        if declined or _effect_before(chain, call_id, None) in ("deny", "step_up"):
            continue
        yield Hit(call_id, f"no outcome of {requests[0]['tool']} is known", tuple(requests))
