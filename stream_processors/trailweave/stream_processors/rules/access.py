"""Findings about what credentials allow, who uses them, and where."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from trailweave.stream_processors.chain import Chain, Record
from trailweave.stream_processors.rules.limits import Limits, covers, is_production
from trailweave.stream_processors.rules.rule import Hit, rule


@rule(
    "medium",
    controls=("NHI5:2025", "AC-6", "PR.AA-05", "OWASP NHI-06"),
    about=("credential_issued", "credential_used"),
    expected="credentials that allow what the task needs, and little more",
    next_step="narrow the role to the scopes that are used",
)
def scope_wider(chain: Chain, limits: Limits) -> Iterator[Hit]:
    """A credential of the session allows much more than it was used for.

    Much more: more than `limits.scopes_unused_share` of its scopes stayed unused. Judged where
    every use says which scope it exercised; a credential without a use is not.
    """
    uses = chain.by("credential_used", "credential_id")
    for issue in chain.of("credential_issued") if uses else ():
        granted, used = issue["scopes_granted"], uses.get(issue["credential_id"])
        if len(granted) < 2 or not used or not all(use["scope_exercised"] for use in used):
            continue
        unused = [
            scope
            for scope in granted
            if not any(covers(scope, use["scope_exercised"]) for use in used)
        ]
        if len(unused) > limits.scopes_unused_share * len(granted):
            summary = f"{len(unused)} of {len(granted)} granted scopes stayed unused"
            yield Hit(issue["credential_id"], summary, (issue, *used))


@rule(
    "critical",
    controls=("ASI03", "AC-3", "AC-6", "OWASP NHI-06"),
    about=("credential_used",),
    expected="no success beyond what the credential allows",
    next_step="find the service that does not check scopes; see what was done beyond them",
    early=True,
)
def scope_exceeded(chain: Chain) -> Iterator[Hit]:
    """A credential was used, with success, for something that it does not allow.

    What it allows is what its issue or the use itself says; where neither does, it is not judged.
    """
    granted = {r["credential_id"]: r["scopes_granted"] for r in chain.of("credential_issued")}
    for use in chain.of("credential_used"):
        scopes = use["scopes_granted"] or granted.get(use["credential_id"])
        if not scopes or use["status"] != "ok":
            continue
        ran = [r for r in chain.runs.get(use["call_id"], ()) if r["status"] == "ok"]
        requests = chain.requests.get(use["call_id"], ()) if ran else ()
        for scope in (use["scope_exercised"], *[r["required_scope"] for r in requests]):
            if scope and scope not in scopes and not any(covers(one, scope) for one in scopes):
                summary = f"a credential was used for {scope}, which it does not allow"
                yield Hit(use["credential_id"], summary, (use, *ran))
                break


@rule(
    "high",
    controls=("NHI9:2025", "IA-2", "OWASP NHI-09"),
    about=("credential_used",),
    expected="one credential for each agent",
    next_step="issue each agent a credential of its own; rotate the shared one",
    early=True,
)
def shared_cred(chain: Chain) -> Iterator[Hit]:
    """Two agents used one credential: what was done with it can't be told apart."""
    if len({use["agent_id"] for use in chain.of("credential_used")}) == 1:
        return
    for credential_id, uses in chain.by("credential_used", "credential_id").items():
        by_agent: dict[str, Record] = {}
        for use in uses:
            if use["agent_id"]:
                by_agent.setdefault(use["agent_id"], use)
        if len(by_agent) > 1:
            summary = f"{len(by_agent)} agents used one credential: {', '.join(sorted(by_agent))}"
            yield Hit(credential_id, summary, tuple(by_agent.values()))


@rule(
    "high",
    controls=("NHI8:2025", "AC-4", "SC-7"),
    about=("tool_requested", "tool_executed"),
    expected="no use of production by what belongs to another environment",
    next_step="find out how the other environment reaches production, and close the way",
    early=True,
)
def env_crossing(chain: Chain, limits: Limits) -> Iterator[Hit]:
    """A session or a credential of another environment reached a production resource.

    Which environments are production, `limits.production` says.
    """
    own = {record["environment"] for record in chain.of("session_started")}
    own |= {use["credential_environment"] for use in chain.of("credential_used")}
    if not any(name and not is_production(name, limits) for name in own):
        return
    for request in chain.of("tool_requested"):
        if not is_production(request["resource_environment"], limits):
            continue
        call_id = request["call_id"]
        ran = [record for record in chain.runs.get(call_id, ()) if record["status"] == "ok"]
        if not ran:
            continue
        told = [(record, record["environment"]) for record in chain.of("session_started")[:1]] + [
            (use, use["credential_environment"])
            for use in chain.of("credential_used")
            if use["call_id"] == call_id
        ]
        other = next(((r, e) for r, e in told if e and not is_production(e, limits)), None)
        if other is not None:
            record, environment = other
            kind = "a session" if record["event_type"] == "session_started" else "a credential"
            summary = f"{request['tool']} reached production from {kind} of {environment}"
            yield Hit(call_id, summary, (record, request, *ran))


def _networks_known(_: Chain, limits: Limits) -> bool:
    return bool(limits.networks)


@rule(
    "critical",
    controls=("NHI10:2025", "AML.T0091.000", "AC-2(12)"),
    when=_networks_known,
    about=("downstream_observed",),
    expected="agents' identities in use from the agents' own networks only",
    next_step="find out who sits at that address; rotate the credential",
    early=True,
)
def agent_cred_elsewhere(chain: Chain, limits: Limits) -> Iterator[Hit]:
    """A downstream system saw the agent's identity or credential from a foreign address.

    Foreign is what lies in none of `limits.networks`. An address that is none is not judged.
    """
    networks = [ip_network(one) for one in limits.networks]
    agents = {r["actor"]["subject"] for r in chain.records if r["actor"]["kind"] != "human"}
    held = {r["credential_id"] for r in chain.of("credential_issued") + chain.of("credential_used")}
    for seen in chain.of("downstream_observed"):
        if seen["principal"] not in agents and seen["credential_id"] not in held:
            continue
        try:
            address = ip_address(seen["source_address"] or "")
        except ValueError:
            continue
        if not any(address in network for network in networks):
            subject = seen["principal"] if seen["principal"] in agents else seen["credential_id"]
            summary = f"{seen['system']} saw it used from {address}"
            yield Hit(str(subject), summary, (seen,))
