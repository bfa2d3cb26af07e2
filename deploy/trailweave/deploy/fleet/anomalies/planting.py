"""What planters of anomalies share: places in a story, and ways to alter it without a trace."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from trailweave.deploy.fleet.cast import Json
from trailweave.deploy.fleet.labels import Completeness, Expected
from trailweave.deploy.fleet.story import Step, Story
from trailweave.schemas.hashing import keyed_text_hash

SECOND_US: Final = 1_000_000
#: Data classes whose prompts must have met a guardrail: its check is not lost from them.
GUARDED: Final = ("restricted", "secret")


@dataclass(frozen=True, slots=True)
class Planted:
    """What an anomaly causes."""

    findings: tuple[Expected, ...]
    completeness: Completeness = "complete"


Planter = Callable[[Story], Planted | None]


def pick(story: Story, steps: list[Step]) -> Step | None:
    return story.pick.choice(steps) if steps else None


def found(rule: str, step: Step) -> Planted:
    return Planted((Expected(rule, str(step.call_id)),))


def lease_id(step: Step) -> str:
    return str(step.fields["credential_id"])


def proposed_calls(story: Story) -> set[str]:
    """Ids of the calls that a model asked for."""
    return {
        proposal["call_id"]
        for step in story.named("model_responded")
        for proposal in step.fields["proposed"]
    }


def plainly_allowed(story: Story, proposed: bool | None = None) -> list[Step]:
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
    wanted = proposed_calls(story)
    return [
        step
        for step in story.named("tool_executed")
        if step.fields["status"] == "ok"
        and step.call_id not in again
        and effects.get(step.call_id) == ["allow"]
        and (proposed is None or (step.call_id in wanted) == proposed)
    ]


def approvals(story: Story, *kinds: str) -> list[Step]:
    """Approvals of these kinds that were given."""
    return [
        answer
        for answer in story.named("approval_decided")
        if answer.fields["approval_kind"] in kinds and answer.fields["effect"] == "allow"
    ]


def run(story: Story, answer: Step) -> Step | None:
    """The execution of the call that was approved."""
    ran = story.about(str(answer.call_id), "tool_executed")
    return next((step for step in ran if step.fields["status"] == "ok"), None)


def run_by_override(story: Story) -> Step | None:
    """The execution of a denied call that a person let pass."""
    ran = (run(story, answer) for answer in approvals(story, "override"))
    return next((step for step in ran if step is not None), None)


def propose(response: Step, proposed: list[Json]) -> None:
    response.fields["proposed"] = proposed
    response.fields["finish_reasons"] = ["tool_calls" if proposed else "stop"]


def withdraw(story: Story, call_id: str | None) -> None:
    for response in story.named("model_responded"):
        if any(proposal["call_id"] == call_id for proposal in response.fields["proposed"]):
            propose(response, [p for p in response.fields["proposed"] if p["call_id"] != call_id])


def only_downstream(story: Story, like: Step) -> Planted | None:
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
    story.insert(like.at_us + 1, model.name, model.producer, model.envelope, fields)
    return Planted((Expected("ghost_action", call_id),))


def dispensable(story: Story) -> Iterator[Step]:
    """Steps whose loss shows only in the sequence."""
    executed = {s.call_id for s in story.named("tool_executed") if s.fields["status"] == "ok"}
    for step in story.steps:
        guarded = step.envelope["data_class"] in GUARDED
        if (
            step.name in ("prompt_submitted", "context_retrieved", "memory_accessed")
            or (step.name == "guardrail_checked" and not guarded)
            or (step.name == "model_responded" and not step.fields["proposed"])
            or (step.name == "downstream_observed" and step.call_id in executed)
        ):
            yield step


def asserted(identity: Json) -> Json:
    """The same identity, only said and not proved."""
    return identity | {"assurance": "asserted", "evidence": None}
