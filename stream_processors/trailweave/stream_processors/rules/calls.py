"""Findings about tool calls: proposed, decided, requested, executed, observed."""

from collections.abc import Iterator

from trailweave.stream_processors.chain import NOT_RUN, Chain, Record
from trailweave.stream_processors.rules.rule import Hit, rule


def _origin(chain: Chain, call_id: str) -> list[str]:
    """The call and those that it repeats: a retry stands under its first call's decision."""
    calls = [call_id]
    for call in calls:  # grows while it is walked: a retry may repeat a retry
        for request in chain.requests.get(call, ()):
            before = request["retry_of"]
            if before is not None and before not in calls:
                calls.append(before)
    return calls


def _started_at(record: Record) -> int | None:
    """When a call began; None when nobody says, as in translated records without a time."""
    return record.get("started_at") or record["occurred_at"] or None


def _effect_before(chain: Chain, call_id: str, at: int | None) -> str | None:
    """The effective decision of a call for what started at `at` (None: after all of them).

    Per engine and policy the last enforced decision counts; among them a denial wins; an approval
    given after the denial lifts it. A decision without a time counts as made before the start, and
    neither replaces those of its policy that have one nor is replaced by them.
    """
    made = [
        decision
        for call in _origin(chain, call_id)
        for decision in chain.decisions.get(call, ())
        if at is None or decision["occurred_at"] <= at
    ]
    if not made:
        return None
    last: dict[tuple[str, str | None, bool], Record] = {}
    for decision in made:
        policy = (decision["engine"], decision["policy_id"], decision["occurred_at"] == 0)
        known = last.setdefault(policy, decision)
        if decision["occurred_at"] > known["occurred_at"] or (
            decision["occurred_at"] == known["occurred_at"] and decision["effect"] == "deny"
        ):
            last[policy] = decision
    denials = [d for d in last.values() if d["effect"] == "deny"]
    if not denials:
        newest = max(last.values(), key=lambda d: d["occurred_at"])
        return str(newest["effect"])
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
    expected="an enforced policy decision that names the call",
    next_step="find out which path to the tool bypasses the policy engine, and close it",
)
def exec_without_decision(chain: Chain) -> Iterator[Hit]:
    """A tool call ran, and no enforced policy decision names it.

    Evaluated when the session or the settings promise that a policy engine reports. A retry stands
    under the decision of the call it repeats.
    """
    for call_id in chain.executions:
        ran = [r for r in chain.executions[call_id] if r["status"] not in NOT_RUN]
        if ran and not any(chain.decisions.get(call) for call in _origin(chain, call_id)):
            tool = ran[0]["tool"] or "a tool"
            yield Hit(call_id, f"{tool} ran without a policy decision", tuple(ran))


@rule(
    "critical",
    controls=("ASI02", "AC-6", "NIST SP 800-207 AC-6"),
    expected="no execution: the effective decision was a denial",
    next_step="stop the agent, check the gateway's enforcement, undo the call's effect",
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
            denied = _effect_before(chain, call_id, _started_at(record)) == "deny"
            if denied and record["status"] == "ok":
                tool = record.get("tool") or record.get("operation") or "the call"
                yield Hit(call_id, f"{tool} succeeded although it was denied", (*denials, record))
                break


@rule(
    "low",
    controls=("T5",),
    needs=("gateway",),
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


def _proposals_kept(chain: Chain) -> bool:
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
        if not any(r["side_effect"] for r in requests):
            continue
        if call_id in chain.executions or call_id in chain.observations or call_id in waiting:
            continue
        declined = any(a["effect"] == "deny" for a in chain.approvals.get(call_id, ()))
        if declined or _effect_before(chain, call_id, None) in ("deny", "step_up"):
            continue
        yield Hit(call_id, f"no outcome of {requests[0]['tool']} is known", tuple(requests))
