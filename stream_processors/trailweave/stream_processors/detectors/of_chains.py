"""What closed sessions show together: credentials, approvals, workloads, agents, traces. Pure.

A chain record holds what detectors need, so they read no events.
"""

import statistics
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from trailweave.stream_processors.detectors.detector import (
    TRACES_MAX,
    Answer,
    Detector,
    Fact,
    newest_us,
)
from trailweave.stream_processors.rules import Limits

_HOUR_US: Final = 3_600_000_000
_DAY_US: Final = 24 * _HOUR_US

#: The chain record's fields that are read here.
READ: Final = (
    "tenant",
    "trace_id",
    "pairs",
    "approvals",
    "workload_sponsors",
    "agents",
    "tool_calls",
    "cost_usd",
    "started_at",
    "first_recorded_at",
    "last_recorded_at",
)
#: The name of the fact that a trace has a session; no credential is called so.
_SESSION: Final = "|session"


def facts(chain: Mapping[str, Any]) -> Iterator[Fact]:
    """What a closed chain says to the detectors; of the chain record's fields."""
    yield from _of_trace(chain, closed=True)
    tenant, trace = chain["tenant"], chain["trace_id"]

    def fact(detector: str, subject: str, name: str, at_us: int, says: Any) -> Fact:
        return Fact(detector, tenant, subject, name, at_us, trace, says)

    for pair in chain["pairs"]:
        credential, agent = pair["credential_id"], pair["agent_id"] or ""
        user = f"{agent}|{pair['task_id'] or ''}"
        yield fact("shared_credential", credential, user, pair["last_at"], agent)
        span = [pair["first_at"], pair["last_at"]]
        yield fact("reused_credential", credential, f"{trace}|{user}", pair["last_at"], span)
    for approval in chain["approvals"]:
        asked, decided = approval["requested_at"], approval["decided_at"]
        if asked and decided >= asked and approval["effect"] == "allow":
            subject = f"{approval['by']} {_hour(decided)}"
            name = f"{trace}|{approval['approval_id']}"
            yield fact("approval_fatigue", subject, name, decided, decided - asked)
    at_us = chain["started_at"] or 1000 * chain["first_recorded_at"]
    for one in chain["workload_sponsors"]:
        yield fact("many_sponsors", one["workload"], one["sponsor"], at_us, None)
    if len(chain["agents"]) == 1:
        subject = f"{chain['agents'][0]} {_hour(at_us)}"
        spent = [chain["tool_calls"], chain["cost_usd"]]
        yield fact("runaway_agent", subject, trace, at_us, spent)


def _hour(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H")


def facts_of_fragment(fragment: Mapping[str, Any]) -> Iterator[Fact]:
    """What a fragment says: events of a trace of which no session is among them."""
    yield from _of_trace(fragment, closed=False)


def _of_trace(record: Mapping[str, Any], *, closed: bool) -> Iterator[Fact]:
    tenant, trace, at_us = record["tenant"], record["trace_id"], 1000 * record["last_recorded_at"]
    # Of no tenant: who runs the platform is to know, and neither of the two that meet.
    yield Fact("tenant_mixed", "", trace, tenant, at_us, "", None)
    names = {_SESSION} if closed else {pair["credential_id"] for pair in record["pairs"]}
    for name in sorted(names):
        yield Fact("credential_outside", tenant, trace, name, at_us, "", None)


def _shared(state: Mapping[str, list[Any]], _: Limits, __: int) -> Answer:
    agents = sorted({says for _, _, says in state.values() if says})
    if len(agents) > 1:
        return f"{len(agents)} agents used one credential: {', '.join(agents[:TRACES_MAX])}"
    tasks = {name.partition("|")[2] for name in state} - {""}
    return f"{len(tasks)} tasks used one credential" if len(tasks) > 1 else None


def _reused(state: Mapping[str, list[Any]], limits: Limits, __: int) -> Answer:
    first = min(says[0] for _, _, says in state.values())
    days = (max(says[1] for _, _, says in state.values()) - first) / _DAY_US
    return (
        f"one credential was used over {days:.1f} days" if days > limits.credential_days else None
    )


def _fatigue(state: Mapping[str, list[Any]], limits: Limits, __: int) -> Answer:
    if len(state) < limits.approvals_per_hour:
        return None
    median_s = statistics.median(says for _, _, says in state.values()) / 1_000_000
    if median_s >= limits.approval_median_s:
        return None
    return f"{len(state)} approvals within an hour, half of them within {median_s:.1f} s"


def _sponsors(state: Mapping[str, list[Any]], limits: Limits, __: int) -> Answer:
    many = len(state) > limits.sponsors
    return f"one workload acts for {len(state)} people" if many else None


def _runaway(state: Mapping[str, list[Any]], limits: Limits, __: int) -> Answer:
    calls = sum(says[0] for _, _, says in state.values())
    cost = sum(says[1] for _, _, says in state.values())
    if calls > limits.agent_calls_per_hour:
        return f"{calls} tool calls within an hour"
    return f"{cost:.2f} USD within an hour" if cost > limits.agent_cost_per_hour else None


def _mixed(state: Mapping[str, list[Any]], _: Limits, __: int) -> Answer:
    tenants = sorted(state)
    if len(tenants) < 2:
        return None
    return f"{len(tenants)} tenants have events of one trace: {', '.join(tenants[:TRACES_MAX])}"


def _outside(state: Mapping[str, list[Any]], limits: Limits, now_us: int) -> Answer:
    if _SESSION in state:
        return None
    if now_us < newest_us(state) + int(limits.trace_kept_s * 1_000_000):
        return False
    used = sorted(state)
    return f"used in a trace of which there is no session: {', '.join(used[:TRACES_MAX])}"


def _trace_kept_s(limits: Limits) -> float:
    return limits.trace_kept_s


DETECTORS: Final = (
    Detector(
        "shared_credential",
        "high",
        ("NHI9:2025", "IA-2", "OWASP NHI-09"),
        "one credential for each agent and task",
        "issue each agent and task a credential of its own; rotate the shared one",
        "Several agents, or several tasks of one agent, used one credential, in any sessions.",
        _shared,
    ),
    Detector(
        "reused_credential",
        "medium",
        ("NHI7:2025", "IA-5(1)", "OWASP NHI-06"),
        "a credential that is used for the time of a task",
        "give the role a time to live; replace the secret by one that is issued for each task",
        "One credential was used for longer than `limits.credential_days`, in any sessions.",
        _reused,
    ),
    Detector(
        "approval_fatigue",
        "medium",
        ("T10", "ASI09", "OWASP Agentic A-07"),
        "approvals by people who have the time to look",
        "ask for fewer approvals, of what matters; look at those that were given",
        "Somebody gave `limits.approvals_per_hour` approvals or more within one hour of the"
        " clock, half of them faster than `limits.approval_median_s`.",
        _fatigue,
    ),
    Detector(
        "many_sponsors",
        "medium",
        ("NHI9:2025", "AC-6", "T9"),
        "a workload that acts for few people",
        "give each team a workload identity of its own",
        "One workload acted for more people than `limits.sponsors`.",
        _sponsors,
    ),
    Detector(
        "runaway_agent",
        "medium",
        ("T4", "AML.T0034.002", "SI-4"),
        "an agent's calls and cost within the limits, in all its sessions together",
        "stop the agent; see what it repeats, and give it a budget",
        "The sessions of one agent that began within one hour made more calls than"
        " `limits.agent_calls_per_hour`, or cost more than `limits.agent_cost_per_hour`.",
        _runaway,
    ),
    Detector(
        "credential_outside",
        "high",
        ("NHI10:2025", "ASI10", "AC-2(12)"),
        "every use of a credential in an agent's session",
        "find out who used it; rotate the credential if it was no agent of yours",
        "A credential was used in a trace of which no session came, for `limits.trace_kept_s`"
        " after the use. Taken back when the session comes after all.",
        _outside,
        again_s=lambda _, limits: limits.trace_kept_s,
        kept_s=lambda limits: 2 * limits.trace_kept_s,
        takes_back=True,
    ),
    Detector(
        "tenant_mixed",
        "high",
        ("SC-4", "AC-4", "SOC 2 CC6.1"),
        "a trace of one tenant only",
        "find the service that passes a trace on from one tenant to another",
        "Events of one trace came under two tenants within `limits.trace_kept_s`. Told to who runs"
        " the platform, under no tenant.",
        _mixed,
        kept_s=_trace_kept_s,
    ),
)
