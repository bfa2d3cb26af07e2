"""Calls that go other ways than they should: decisions, approvals, executions."""

from trailweave.deploy.fleet.anomalies.planting import (
    SECOND_US,
    Planted,
    approvals,
    found,
    only_downstream,
    pick,
    plainly_allowed,
    propose,
    run,
    run_by_override,
    withdraw,
)
from trailweave.deploy.fleet.labels import Expected
from trailweave.deploy.fleet.story import Story
from trailweave.schemas.hashing import keyed_text_hash


def exec_without_decision(story: Story) -> Planted | None:
    """The gateway executes a call without asking the policy engine."""
    executed = pick(story, plainly_allowed(story))
    if executed is None:
        return None
    story.drop(lambda step: step.name == "policy_decided" and step.call_id == executed.call_id)
    return found("exec_without_decision", executed)


def denied_but_executed(story: Story) -> Planted | None:
    """A denied call runs: the refusal is ignored, no override was given, or policy said no."""
    refused = next(
        (s for s in story.named("tool_executed") if s.fields["status"] == "denied"), None
    )
    if refused:
        refused.fields |= {
            "status": "ok",
            "error": None,
            "started_at": refused.at_us,
            "result_hash": keyed_text_hash(story.company.key, "all"),
        }
        return found("denied_but_executed", refused)
    overridden = run_by_override(story)
    if overridden:
        story.drop(lambda s: s.name.startswith("approval_") and s.call_id == overridden.call_id)
        return found("denied_but_executed", overridden)
    executed = pick(story, plainly_allowed(story))
    if executed is None:
        return None
    decision = story.about(str(executed.call_id), "policy_decided")[0]
    decision.fields |= {"effect": "deny", "reason": "outside the agent's duties"}
    return found("denied_but_executed", executed)


def fail_open(story: Story) -> Planted | None:
    """The policy engine times out, and the gateway lets the call pass."""
    executed = pick(story, plainly_allowed(story))
    if executed is None:
        return None
    decision = story.about(str(executed.call_id), "policy_decided")[0]
    decision.fields |= {"timed_out": True, "reason": None}
    return found("fail_open", executed)


def approval_after_act(story: Story) -> Planted | None:
    """The gateway does not wait for the approval that it has asked for."""
    for answer in approvals(story, "approval"):
        executed = run(story, answer)
        if executed is not None:
            story.delay(executed.at_us + 1, 240 * SECOND_US)
            answer.at_us = executed.at_us + 120 * SECOND_US
            return found("approval_after_act", executed)
    return None


def self_approval(story: Story) -> Planted | None:
    """An agent answers its own request."""
    answer = pick(story, approvals(story, "approval", "override"))
    if answer is None:
        return None
    answer.fields |= {"by": answer.fields["requested_by"]}
    return Planted((Expected("self_approval", str(answer.fields["approval_id"])),))


def override_no_reason(story: Story) -> Planted | None:
    """Somebody overrides a denial and does not say why."""
    answer = pick(story, approvals(story, "override"))
    if answer is None:
        return None
    answer.fields |= {"reason": None, "ticket": ""}
    return Planted((Expected("override_no_reason", str(answer.fields["approval_id"])),))


def hallucinated_call(story: Story) -> Planted | None:
    """The model asks for a tool that nobody has; nothing comes of it."""
    response = pick(story, story.named("model_responded"))
    if response is None:
        return None
    call_id = f"call_{story.pick.getrandbits(96):024x}"
    invented = {
        "call_id": call_id,
        "call_id_source": "provider",
        "tool": "system.resolve_everything",
        "arguments_hash": keyed_text_hash(story.company.key, call_id),
    }
    propose(response, [*response.fields["proposed"], invented])
    return Planted((Expected("hallucinated_call", call_id),))


def ghost_action(story: Story) -> Planted | None:
    """Something acts in the model's name that the model never asked for."""
    executed = pick(story, plainly_allowed(story, proposed=True))
    if executed is None:
        return None
    if story.pick.random() < 0.5:
        withdraw(story, executed.call_id)
        return found("ghost_action", executed)
    return only_downstream(story, executed)


def outcome_missing(story: Story) -> Planted | None:
    """A workflow's or a person's allowed call changes something, and nothing says that it ended.

    Not a model's call: one that nobody executed would be called hallucinated as well.
    """
    allowed = [s for s in plainly_allowed(story, proposed=False) if s.fields["side_effect"]]
    executed = pick(story, allowed)
    if executed is None:
        return None
    ends = ("tool_executed", "downstream_observed")
    story.drop(lambda step: step.name in ends and step.call_id == executed.call_id)
    return found("outcome_missing", executed)


def obligation_bypassed(story: Story) -> Planted | None:
    """The policy asks for an approval, and the gateway does not wait for one."""
    executed = pick(story, plainly_allowed(story))
    if executed is None:
        return None
    decision = story.about(str(executed.call_id), "policy_decided")[0]
    decision.fields |= {"effect": "step_up", "reason": "above the limit"}
    return found("obligation_bypassed", executed)


def args_drift(story: Story) -> Planted | None:
    """Somewhere between the decision and the tool, the arguments are exchanged."""
    executed = pick(story, plainly_allowed(story, proposed=True))
    if executed is None:
        return None
    other = keyed_text_hash(story.company.key, f"other arguments of {executed.call_id}")
    executed.fields |= {"arguments_hash": other}
    return found("args_drift", executed)


def impossible_order(story: Story) -> Planted | None:
    """A decision is written down after the fact."""
    executed = pick(story, plainly_allowed(story))
    if executed is None:
        return None
    decision = story.about(str(executed.call_id), "policy_decided")[0]
    story.delay(executed.at_us + 1, 60 * SECOND_US)
    decision.at_us = executed.at_us + 50 * SECOND_US
    return found("impossible_order", executed)


def action_after_end(story: Story) -> Planted | None:
    """A downstream system goes on seeing a call when the session is long over."""
    seen = pick(story, story.named("downstream_observed"))
    if seen is None:
        return None
    fields = seen.fields | {"span_id": f"{story.pick.getrandbits(64) or 1:016x}"}
    late_us = max(step.at_us for step in story.steps) + 90 * SECOND_US
    story.insert(late_us, seen.name, seen.producer, seen.envelope, fields)
    return found("action_after_end", seen)
