"""What goes wrong in the fleet, on purpose: each function alters one clean story.

A planter gives what the alteration truly causes, or None when the story has no place for it; then
it has changed nothing. Each causes its own finding and no other: what would follow from a careless
alteration (an orphaned decision, a call that looks invented) is removed or kept out with it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from trailweave.deploy.fleet.cast import Json
from trailweave.deploy.fleet.labels import Completeness, Expected
from trailweave.deploy.fleet.story import Step, Story, new_event_id
from trailweave.schemas.hashing import keyed_text_hash

_SECOND_US: Final = 1_000_000
#: Data classes whose prompts must have met a guardrail: its check is not lost from them.
_GUARDED: Final = ("restricted", "secret")


@dataclass(frozen=True, slots=True)
class Planted:
    """What an anomaly causes."""

    findings: tuple[Expected, ...]
    completeness: Completeness = "complete"


Planter = Callable[[Story], Planted | None]


def exec_without_decision(story: Story) -> Planted | None:
    """The gateway executes a call without asking the policy engine."""
    executed = _pick(story, _plainly_allowed(story))
    if executed is None:
        return None
    story.drop(lambda step: step.name == "policy_decided" and step.call_id == executed.call_id)
    return _found("exec_without_decision", executed)


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
        return _found("denied_but_executed", refused)
    overridden = _overridden(story)
    if overridden:
        story.drop(lambda s: s.name.startswith("approval_") and s.call_id == overridden.call_id)
        return _found("denied_but_executed", overridden)
    executed = _pick(story, _plainly_allowed(story))
    if executed is None:
        return None
    decision = story.about(str(executed.call_id), "policy_decided")[0]
    decision.fields |= {"effect": "deny", "reason": "outside the agent's duties"}
    return _found("denied_but_executed", executed)


def hallucinated_call(story: Story) -> Planted | None:
    """The model asks for a tool that nobody has; nothing comes of it."""
    response = _pick(story, story.named("model_responded"))
    if response is None:
        return None
    call_id = f"call_{story.pick.getrandbits(96):024x}"
    invented = {
        "call_id": call_id,
        "call_id_source": "provider",
        "tool": "system.resolve_everything",
        "arguments_hash": keyed_text_hash(story.company.key, call_id),
    }
    _propose(response, [*response.fields["proposed"], invented])
    return Planted((Expected("hallucinated_call", call_id),))


def ghost_action(story: Story) -> Planted | None:
    """Something acts in the model's name that the model never asked for."""
    executed = _pick(story, _plainly_allowed(story, proposed=True))
    if executed is None:
        return None
    if story.pick.random() < 0.5:
        _withdraw(story, executed.call_id)
        return _found("ghost_action", executed)
    return _only_downstream(story, executed)


def cred_after_expiry(story: Story) -> Planted | None:
    """A slow session goes on with a lease that has run out."""
    renewed = {step.fields["credential_id"] for step in story.named("credential_renewed")}
    issued = [s for s in story.named("credential_issued") if _id(s) not in renewed]
    lease = _pick(story, issued)
    if lease is None:
        return None
    uses = [s for s in story.named("credential_used") if _id(s) == _id(lease)]
    in_time_us = uses[-1].at_us
    # Minutes beyond the expiry, so that no allowance for skewed clocks hides it.
    story.delay(in_time_us, 480 * _SECOND_US)
    expires_us = max(in_time_us, lease.at_us + 60 * _SECOND_US)
    for step in story.steps:
        if step.name.startswith("credential_") and _id(step) == _id(lease):
            step.fields["expires_at"] = expires_us
    return Planted((Expected("cred_after_expiry", _id(lease)),))


def seq_gap(story: Story) -> Planted | None:
    """An event is lost between its producer and Kafka; no rule depends on this one."""
    lost = _pick(story, list(_dispensable(story)))
    if lost is None:
        return None
    lost.lost = True
    return Planted((Expected("seq_gap", lost.producer.producer_id),), "incomplete")


def model_version_missing(story: Story) -> Planted | None:
    """A provider answers without saying which model it was."""
    response = _pick(story, story.named("model_responded"))
    if response is None:
        return None
    response.fields |= {"model": None, "model_version": None}
    return Planted((Expected("model_version_missing", response.event_id),))


def identity_missing(story: Story) -> Planted | None:
    """Nobody's identity was proved, or nobody stands behind the agent."""
    unproved = story.pick.random() < 0.5
    for step in story.steps:
        if unproved:
            step.envelope["actor"] = _asserted(step.envelope["actor"])
            step.envelope["delegation"] = [
                one | {"assurance": "asserted"} for one in step.envelope["delegation"]
            ]
            if "actor" in step.fields:
                step.fields["actor"] = _asserted(step.fields["actor"])
        else:
            step.envelope["sponsor"] = None
    return Planted((Expected("identity_missing", "session"),))


def outcome_missing(story: Story) -> Planted | None:
    """A workflow's or a person's allowed call changes something, and nothing says that it ended.

    Not a model's call: one that nobody executed would be called hallucinated as well.
    """
    allowed = [s for s in _plainly_allowed(story, proposed=False) if s.fields["side_effect"]]
    executed = _pick(story, allowed)
    if executed is None:
        return None
    ends = ("tool_executed", "downstream_observed")
    story.drop(lambda step: step.name in ends and step.call_id == executed.call_id)
    return _found("outcome_missing", executed)


def no_end(story: Story) -> Planted | None:
    """The agent's process dies before it can say that the session ended."""
    story.drop(lambda step: step.name == "session_ended" and step.fields["root"])
    return Planted((), "unprovable")


#: Every anomaly by name, in the order in which the fleet plants them.
ANOMALIES: Final[dict[str, Planter]] = {
    planter.__name__: planter
    for planter in (
        exec_without_decision,
        denied_but_executed,
        hallucinated_call,
        ghost_action,
        cred_after_expiry,
        seq_gap,
        model_version_missing,
        identity_missing,
        outcome_missing,
        no_end,
    )
}


def _pick(story: Story, steps: list[Step]) -> Step | None:
    return story.pick.choice(steps) if steps else None


def _found(rule: str, step: Step) -> Planted:
    return Planted((Expected(rule, str(step.call_id)),))


def _id(step: Step) -> str:
    return str(step.fields["credential_id"])


def _proposed(story: Story) -> set[str]:
    """Ids of the calls that a model asked for."""
    return {
        proposal["call_id"]
        for step in story.named("model_responded")
        for proposal in step.fields["proposed"]
    }


def _plainly_allowed(story: Story, proposed: bool | None = None) -> list[Step]:
    """Executions that went well after one decision, allow; of proposed calls only, or of others.

    Retries and what they repeat are left out: they stand under each other's decision and proposal.
    """
    again = {
        call_id
        for step in story.named("tool_requested")
        if step.fields.get("retry_of")
        for call_id in (step.call_id, step.fields["retry_of"])
    }
    effects: dict[str | None, list[str]] = {}
    for step in story.named("policy_decided"):
        effects.setdefault(step.call_id, []).append(step.fields["effect"])
    wanted = _proposed(story)
    return [
        step
        for step in story.named("tool_executed")
        if step.fields["status"] == "ok"
        and step.call_id not in again
        and effects.get(step.call_id) == ["allow"]
        and (proposed is None or (step.call_id in wanted) == proposed)
    ]


def _overridden(story: Story) -> Step | None:
    """The execution of a denied call that a person let pass."""
    for answer in story.named("approval_decided"):
        if answer.fields["approval_kind"] == "override" and answer.fields["effect"] == "allow":
            return story.about(str(answer.call_id), "tool_executed")[0]
    return None


def _propose(response: Step, proposed: list[Json]) -> None:
    response.fields["proposed"] = proposed
    response.fields["finish_reasons"] = ["tool_calls" if proposed else "stop"]


def _withdraw(story: Story, call_id: str | None) -> None:
    for response in story.named("model_responded"):
        if any(proposal["call_id"] == call_id for proposal in response.fields["proposed"]):
            _propose(response, [p for p in response.fields["proposed"] if p["call_id"] != call_id])


def _only_downstream(story: Story, like: Step) -> Planted | None:
    """A downstream log shows a call that never passed the gateway."""
    models = story.named("downstream_observed")
    if not models:
        return None
    model = models[0]
    call_id = f"call_{story.pick.getrandbits(96):024x}"
    fields = model.fields | {
        "call_id": call_id,
        "credential_id": None,
        "request_id": keyed_text_hash(story.company.key, f"request {call_id}"),
        "span_id": f"{story.pick.getrandbits(64) or 1:016x}",
    }
    fields.pop("actor", None)
    story.steps.append(
        Step(
            model.name,
            model.producer,
            model.envelope,
            like.at_us + 1,
            fields,
            new_event_id(story.start_us + like.at_us, story.pick),
        )
    )
    return Planted((Expected("ghost_action", call_id),))


def _dispensable(story: Story) -> Iterator[Step]:
    """Steps whose loss shows only in the sequence."""
    executed = {s.call_id for s in story.named("tool_executed") if s.fields["status"] == "ok"}
    for step in story.steps:
        guarded = step.envelope["data_class"] in _GUARDED
        if (
            step.name in ("prompt_submitted", "context_retrieved", "memory_accessed")
            or (step.name == "guardrail_checked" and not guarded)
            or (step.name == "model_responded" and not step.fields["proposed"])
            or (step.name == "downstream_observed" and step.call_id in executed)
        ):
            yield step


def _asserted(identity: Json) -> Json:
    """The same identity, only said and not proved."""
    return identity | {"assurance": "asserted", "evidence": None}
