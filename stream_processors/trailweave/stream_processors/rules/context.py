"""Findings about what went into the model's context, and what came of it."""

from collections.abc import Iterator

from trailweave.stream_processors.chain import Chain, Record
from trailweave.stream_processors.rules.causes import causes_of, changed
from trailweave.stream_processors.rules.limits import SENSITIVE
from trailweave.stream_processors.rules.rule import Hit, rule
from trailweave.stream_processors.rules.times import started_at


@rule(
    "high",
    controls=("PR.DS-10", "ASI01", "NIST CSF PR.DS-1"),
    needs=("policy",),
    expected="a guardrail's check in every session that handles restricted data",
    next_step="have the agent's prompts pass a guardrail; see what the session did with the data",
)
def sensitive_no_guardrail(chain: Chain) -> Iterator[Hit]:
    """A prompt, a retrieval or an answer was restricted or secret, and no guardrail looked at any.

    Guardrails report as policy engines do: evaluated when these are promised to report.
    """
    if chain.of("guardrail_checked"):
        return
    for name in ("prompt_submitted", "context_retrieved", "model_responded"):
        for record in chain.of(name):
            if record["data_class"] in SENSITIVE:
                summary = f"{record['data_class']} data met no guardrail"
                yield Hit("session", summary, (record,))
                return


def _flagged(chain: Chain) -> dict[str, Record]:
    """Untrusted retrievals that a scanner or a guardrail has marked, by event id."""
    found = {r["event_id"]: r for r in chain.of("context_retrieved") if r["trust"] == "untrusted"}
    if not found:
        return found
    marked = {
        check["subject_event_id"]
        for check in chain.of("guardrail_checked")
        if check["verdict"] != "pass"
    }
    return {i: record for i, record in found.items() if record["flagged"] or i in marked}


@rule(
    "high",
    controls=("ASI01", "AML.T0051.001", "OWASP Agentic A1"),
    about=("context_retrieved", "tool_executed"),
    expected="no side effect that comes from text which a scanner has marked",
    next_step="undo the call's effect; have the gateway refuse calls derived from such text",
    early=True,
)
def injection_to_tool(chain: Chain) -> Iterator[Hit]:
    """Untrusted text was marked by a scanner, and a call made from it changed something.

    Made from it: the call's request, its execution or the response that proposed it says so in
    `derived_from`, directly or through other events.
    """
    flagged = _flagged(chain)
    for call_id, executed in changed(chain) if flagged else ():
        causes = causes_of(chain, call_id, flagged.keys())
        if causes:
            tool = executed["tool"] or "a tool"
            summary = f"{tool} acted on untrusted text that was marked as suspect"
            yield Hit(call_id, summary, (*causes, executed))


@rule(
    "critical",
    controls=("NHI2:2025", "AML.T0098", "IA-5", "OWASP NHI-02"),
    expected="no secret in prompts, answers and arguments",
    next_step="rotate the secret; find out how it got into the text",
    early=True,
)
def secret_in_content(chain: Chain) -> Iterator[Hit]:
    """The recorder took a secret out of a prompt, an answer or a call's arguments.

    It never reached the trail, but it had reached the model or the tool.
    """
    for name in ("prompt_submitted", "model_responded", "tool_requested"):
        for record in chain.of(name):
            places = [r["field"] for r in record["redactions"] if r["kind"] == "secret"]
            if places:
                summary = f"a secret stood in {places[0]} of {name}"
                yield Hit(record["event_id"], summary, (record,))


def _sensitive_reads(chain: Chain) -> list[Record]:
    """Events by which restricted data came into the session."""
    return [r for r in chain.of("tool_executed") if r["result_data_class"] in SENSITIVE] + [
        r for r in chain.of("context_retrieved") if r["data_class"] in SENSITIVE
    ]


@rule(
    "critical",
    controls=("AML.T0086", "AC-4", "ASI02"),
    about=("tool_requested", "tool_executed"),
    expected="no call to an external destination after restricted data was read",
    next_step="find out what the call carried; ask the destination to delete it",
    early=True,
)
def exfil_via_tool(chain: Chain) -> Iterator[Hit]:
    """Restricted or secret data was read, and later a call went to an external destination.

    Later by the clock of whoever reported it; what has no time is not judged.
    """
    outside = {
        request["call_id"]: request
        for request in chain.of("tool_requested")
        if request["destination"] is not None and request["destination"]["zone"] == "external"
    }
    if not outside:
        return
    reads = [read for read in _sensitive_reads(chain) if read["occurred_at"]]
    for call_id, request in outside.items():
        for executed in chain.runs.get(call_id, ()):
            start = started_at(executed)
            before = [r for r in reads if r is not executed and r["occurred_at"] <= (start or 0)]
            if before and executed["status"] == "ok":
                host = request["destination"]["host"]
                summary = f"{request['tool']} called {host} after restricted data was read"
                yield Hit(call_id, summary, (before[0], request, executed))
                break


@rule(
    "high",
    controls=("ASI06", "AML.T0080.000", "OWASP Agentic A-07"),
    about=("memory_accessed", "tool_executed"),
    expected="no side effect that comes from a memory which an untrusted source wrote",
    next_step="delete the memory; look for other sessions that have read it",
    early=True,
)
def memory_poison(chain: Chain) -> Iterator[Hit]:
    """A memory from an untrusted source was read, and a call made from it changed something.

    Untrusted is a memory that is marked so, or that this session wrote from an untrusted source
    before it was read. Made from it: as `derived_from` says.
    """
    written: dict[tuple[str, str | None], Record] = {}
    poisoned: dict[str, tuple[Record, ...]] = {}
    for access in chain.of("memory_accessed"):
        place = (access["store"], access["memory_key"])
        if access["operation"] == "write" and access["trust"] == "untrusted":
            written.setdefault(place, access)
        elif access["operation"] == "read":
            if place in written:
                poisoned[access["event_id"]] = (written[place], access)
            elif access["trust"] == "untrusted":
                poisoned[access["event_id"]] = (access,)
    for call_id, executed in changed(chain) if poisoned else ():
        causes = causes_of(chain, call_id, poisoned.keys())
        if causes:
            tool = executed["tool"] or "a tool"
            how = [record for cause in causes for record in poisoned[cause["event_id"]]]
            summary = f"{tool} acted on a memory that an untrusted source wrote"
            yield Hit(call_id, summary, (*how, executed))


def _untrusted(chain: Chain) -> list[Record]:
    return [
        r for r in chain.of("context_retrieved") + chain.of("memory_accessed")
        if r["trust"] == "untrusted"
    ]  # fmt: skip


@rule(
    "high",
    controls=("ASI01", "AC-4", "CSA MAESTRO"),
    about=("tool_executed",),
    expected="untrusted text, restricted data and side effects never in one session",
    next_step="give the parts to separate agents, or have a person approve the side effect",
    early=True,
)
def trust_boundary_crossed(chain: Chain) -> Iterator[Hit]:
    """One session read untrusted text and restricted data, and then changed something.

    Whoever wrote the text may have had a say in what became of the data. The first such change
    counts; what has no time is not judged.
    """
    untrusted = [r for r in _untrusted(chain) if r["occurred_at"]]
    if not untrusted:
        return
    reads = [r for r in _sensitive_reads(chain) if r["occurred_at"]]
    if not reads:
        return
    text, data = untrusted[0], min(reads, key=lambda r: int(r["occurred_at"]))
    after = max(text["occurred_at"], data["occurred_at"])
    late = [
        (start, call_id, executed)
        for call_id, executed in changed(chain)
        if executed is not data and (start := started_at(executed) or 0) >= after
    ]
    if late:
        _, call_id, executed = min(late, key=lambda one: one[:2])
        tool = executed["tool"] or "a tool"
        summary = f"{tool} changed something after untrusted text and restricted data were read"
        yield Hit(call_id, summary, (text, data, executed))
