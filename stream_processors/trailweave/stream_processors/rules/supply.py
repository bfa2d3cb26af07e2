"""Findings about what a session is made of: policies, tools, models."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from trailweave.stream_processors.chain import Chain, Record
from trailweave.stream_processors.rules.limits import Limits
from trailweave.stream_processors.rules.rule import Hit, rule


@rule(
    "high",
    controls=("CM-3", "SOC 2 CC8.1", "PR.PS-01"),
    about=("policy_decided",),
    expected="decisions by the revision that is in force, and by one only",
    next_step="find out which policy engine runs another revision, and who changed it",
    early=True,
)
def policy_bundle_mismatch(chain: Chain, limits: Limits) -> Iterator[Hit]:
    """A call was decided by another revision of a policy than is in force, or by two.

    In force is what `limits.bundles` or the start of the session says.
    """
    decisions = [d for d in chain.of("policy_decided") if d["bundles"] and d["mode"] == "enforced"]
    if not decisions:
        return
    starts = chain.of("session_started")
    if len(starts) == 1 and not limits.bundles:
        bundles = starts[0]["policy_bundles"]
        if all(decision["bundles"] == bundles for decision in decisions):
            return
    expected = dict(limits.bundles)
    for start in starts:
        for name, revision in start["policy_bundles"].items():
            expected.setdefault(name, revision)
    first: dict[str, Record] = {}
    for decision in decisions:
        for name, revision in decision["bundles"].items():
            before = first.setdefault(name, decision)
            wanted = expected.get(name, before["bundles"][name])
            if revision != wanted:
                by = (decision,) if name in expected else (before, decision)
                yield Hit(name, f"{name} decided at {revision} and not at {wanted}", by)


@rule(
    "high",
    controls=("ASI04", "AML.T0109", "AML.T0110", "CM-3"),
    about=("tool_requested",),
    expected="the definition of every tool as it was approved",
    next_step="compare the two definitions; take the tool out of use until somebody has",
    early=True,
)
def tool_changed(chain: Chain, limits: Limits) -> Iterator[Hit]:
    """A tool was called whose definition is another than the approved one.

    Approved is what `limits.tools` says, else what the session offered to the model, else what its
    first call had.
    """
    approved = {tool: {digest} for tool, digest in limits.tools.items()}
    for start in chain.of("session_started"):
        for offer in start["tools_offered"]:
            if offer["definition_hash"] and offer["tool"] not in limits.tools:
                approved.setdefault(offer["tool"], set()).add(offer["definition_hash"])
    for request in chain.of("tool_requested"):
        tool, digest = request["tool"], request["definition_hash"]
        if digest is not None and digest not in approved.setdefault(tool, {digest}):
            yield Hit(tool, f"{tool} has another definition than was approved", (request,))


def _models_approved(_: Chain, limits: Limits) -> bool:
    return bool(limits.models)


@rule(
    "medium",
    controls=("ASI04", "CM-7", "SOC 2 CC8.1"),
    when=_models_approved,
    about=("model_responded",),
    expected="answers by approved models only",
    next_step="approve the model in rules.toml, or take it out of the agent's reach",
    early=True,
)
def unapproved_model(chain: Chain, limits: Limits) -> Iterator[Hit]:
    """A model answered that `limits.models` does not list.

    The model is the one that the provider names, else the one that was asked for.
    """
    for response in chain.of("model_responded"):
        model = response["model"] or response["request_model"]
        if model and not any(fnmatchcase(model, pattern) for pattern in limits.models):
            yield Hit(model, f"{model} is no approved model", (response,))


@rule(
    "medium",
    controls=("T4", "AML.T0034.002", "SI-4"),
    expected="calls, tries, tokens and cost within the limits",
    next_step="stop the agent if it still runs; see what it repeats, and give it a budget",
    early=True,
)
def runaway(chain: Chain, limits: Limits) -> Iterator[Hit]:
    """A session made more calls, tried one more often, or used more tokens or money than allowed.

    Allowed is what `limits` says: tool_calls, tries, tokens, cost_usd.
    """
    executed = chain.of("tool_executed")
    if len(chain.executions) > limits.tool_calls:
        yield Hit("tool_calls", f"{len(chain.executions)} tool calls", tuple(executed[-1:]))
    requests = chain.of("tool_requested")
    again = [r for r in requests if r["attempt"] > limits.tries]
    if again:
        yield Hit("tries", f"{again[-1]['attempt']} tries of {again[-1]['tool']}", (again[-1],))
    responses = chain.of("model_responded")
    tokens, cost = 0, 0.0
    for response in responses:
        tokens += (response["input_tokens"] or 0) + (response["output_tokens"] or 0)
        cost += response["cost_usd"] or 0.0
    if tokens > limits.tokens:
        yield Hit("tokens", f"{tokens} tokens", tuple(responses[-1:]))
    if cost > limits.cost_usd:
        yield Hit("cost_usd", f"{cost:.2f} USD", tuple(responses[-1:]))
