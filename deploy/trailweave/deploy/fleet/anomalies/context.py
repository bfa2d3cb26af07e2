"""What goes into a model's context and should not come out again as an act."""

from trailweave.deploy.fleet.anomalies.planting import (
    GUARDED,
    Planted,
    found,
    pick,
)
from trailweave.deploy.fleet.cast import Json
from trailweave.deploy.fleet.labels import Expected
from trailweave.deploy.fleet.story import Step, Story


def sensitive_no_guardrail(story: Story) -> Planted | None:
    """Restricted data goes to a model, and the guardrail is switched off."""
    prompts = story.named("prompt_submitted")
    if not any(step.envelope["data_class"] in GUARDED for step in prompts):
        return None
    story.drop(lambda step: step.name == "guardrail_checked")
    return Planted((Expected("sensitive_no_guardrail", "session"),))


def secret_in_content(story: Story) -> Planted | None:
    """Somebody writes a password into a prompt; the recorder takes it out."""
    prompt = pick(story, story.named("prompt_submitted"))
    if prompt is None:
        return None
    prompt.fields["redactions"] = [{"field": "content", "kind": "secret", "count": 1}]
    return Planted((Expected("secret_in_content", prompt.event_id),))


def injection_to_tool(story: Story) -> Planted | None:
    """A page that a scanner has marked makes the agent act."""
    fields = {
        "source_uri": "https://forum.example/thread/4711",
        "store": "web",
        "trust": "untrusted",
        "flagged": "instructions in retrieved text",
    }
    return _acts_on(story, "injection_to_tool", "context_retrieved", fields)


def memory_poison(story: Story) -> Planted | None:
    """A stranger's note in the agent's memory makes it act."""
    fields = {
        "store": "agent-memory",
        "memory_key": "how we do it",
        "operation": "read",
        "trust": "untrusted",
    }
    return _acts_on(story, "memory_poison", "memory_accessed", fields)


def exfil_via_tool(story: Story) -> Planted | None:
    """Restricted data is read, and the next call goes to a host outside."""
    ran = [s for s in story.named("tool_executed") if s.fields["status"] == "ok"]
    reads = [step for step in ran if step.fields["result_data_class"] in GUARDED]
    if not reads:
        return None
    later = pick(story, [step for step in ran if step.fields["started_at"] > reads[0].at_us])
    if later is None:
        return None
    (request,) = story.about(str(later.call_id), "tool_requested")
    request.fields |= {"destination": {"host": "files.example", "zone": "external"}}
    return found("exfil_via_tool", later)


def trust_boundary_crossed(story: Story) -> Planted | None:
    """A page that anybody may edit goes into a session with restricted data that acts."""
    pages = [s for s in story.named("context_retrieved") if s.envelope["data_class"] in GUARDED]
    acts = [s for s in _acts(story) if pages and s.fields["started_at"] > pages[0].at_us]
    if not acts:
        return None
    pages[0].fields |= {"trust": "untrusted"}
    return found("trust_boundary_crossed", min(acts, key=lambda step: step.fields["started_at"]))


def _acts(story: Story) -> list[Step]:
    """Executions that changed something."""
    ran = [s for s in story.named("tool_executed") if s.fields["status"] == "ok"]
    return [step for step in ran if step.fields["side_effect"]]


def _acts_on(story: Story, rule: str, name: str, fields: Json) -> Planted | None:
    """Have the model read something just before it proposes an act, and say that it did."""
    wanted = {step.call_id for step in _acts(story)}
    responses = [
        step
        for step in story.named("model_responded")
        if step.envelope["data_class"] not in GUARDED
        and len(step.fields["proposed"]) == 1
        and step.fields["proposed"][0]["call_id"] in wanted
    ]
    response = pick(story, responses)
    if response is None:
        return None
    read = story.insert(response.at_us - 1, name, response.producer, response.envelope, fields)
    response.fields["derived_from"] = [read.event_id]
    call_id = response.fields["proposed"][0]["call_id"]
    return Planted((Expected(rule, call_id),))
