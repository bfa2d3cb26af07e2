"""What is stored of one trace of one tenant, and the tree that a person reads. Pure.

The tree follows what events say of each other: a call's request holds what was decided, approved,
used and done for it; the model response that proposed a call holds the call; all else hangs below
its parent span, else below its session. Steps that should be there and are not become ghosts.
Nothing here trusts the events: parents may be missing, forged or in a circle.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

Json = Mapping[str, Any]

#: A forged line of parents must not outrun the stack of whoever walks the tree.
DEPTH_MAX: Final = 40

MISSING: Final = "missing"
_CALL_STEPS: Final = frozenset(
    ("policy_decided", "guardrail_checked", "approval_requested", "approval_decided",
     "credential_issued", "credential_used", "tool_executed", "downstream_observed")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored event: where it lies, and what it says."""

    name: str
    record: Json
    topic: str = ""
    partition: int = -1
    offset: int = -1
    recorded_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Trail:
    """Everything stored of one trace of one tenant; `chain` is its latest verdict, if any."""

    tenant: str
    trace_id: str
    events: Sequence[Stored]
    chain: Json | None = None
    findings: Sequence[Json] = ()


@dataclass(slots=True)
class Node:
    """One row of the tree: an event, or (`kind` is `missing`) a step that should be there."""

    kind: str
    title: str
    detail: str = ""
    #: Microseconds since 1970, by the reporter's clock.
    at: int | None = None
    event: Stored | None = None
    #: Rules that found something here.
    findings: tuple[str, ...] = ()
    children: list["Node"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Header:
    """The answer in short: who did what for whom, how it ended, and whether that is all."""

    tenant: str
    trace_id: str
    state: str
    completeness: str
    highest_severity: str
    identities: tuple[str, ...]
    sponsors: tuple[str, ...]
    agents: tuple[str, ...]
    task: str | None
    status: str | None
    outcome: str | None
    started_at: int | None
    ended_at: int | None
    events: int


def header(trail: Trail) -> Header:
    """What is said above the tree; from the events alone where no chain is yet."""
    chain = trail.chain or {}
    start = _first(trail.events, "session_started") or {}
    end = _root_end(trail.events) or {}
    records = [event.record for event in trail.events]
    # Of a session that goes on, the events know more than the record of a moment.
    told = {} if chain.get("state") == "open" else chain
    times = [record["occurred_at"] for record in records]
    return Header(
        tenant=trail.tenant,
        trace_id=trail.trace_id,
        state=chain.get("state", "not judged yet"),
        completeness=chain.get("completeness", "unprovable"),
        highest_severity=chain.get("highest_severity", "none"),
        identities=_seen(told.get("identities"), (r["actor"]["subject"] for r in records)),
        sponsors=_seen(
            told.get("sponsors"), (r["sponsor"]["subject"] for r in records if r.get("sponsor"))
        ),
        agents=_seen(told.get("agents"), (r["agent_id"] for r in records if r.get("agent_id"))),
        task=start.get("task"),
        status=chain.get("status") or end.get("status"),
        outcome=chain.get("outcome") or end.get("outcome"),
        started_at=start.get("occurred_at", min(times, default=None)),
        ended_at=end.get("occurred_at"),
        events=len(records),
    )


def tree(trail: Trail) -> list[Node]:
    """The roots of the tree, in the order of time."""
    events = sorted(_distinct(trail.events), key=_order)
    nodes = {event.record["event_id"]: _node(event, trail.findings) for event in events}
    parents = _Parents(events)
    roots: list[Node] = []
    depth: dict[str, int] = {}
    for event in _parents_first(events, parents):
        own = event.record["event_id"]
        parent = parents.of(event)
        level = depth.get(parent, 0) + 1 if parent else 0
        if parent is None or parent not in depth or level > DEPTH_MAX:
            parent, level = None, 0
        depth[own] = level
        (nodes[parent].children if parent else roots).append(nodes[own])
    for node in nodes.values():
        node.children.sort(key=_when)
    roots.sort(key=_when)
    _add_ghosts(trail, events, nodes, roots)
    return roots


def walk(nodes: Iterable[Node]) -> Iterator[Node]:
    """Every node, parents first, without recursion."""
    waiting = list(nodes)[::-1]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(node.children))


class _Parents:
    """Which event an event hangs below."""

    def __init__(self, events: Sequence[Stored]) -> None:
        self._spans: dict[str, str] = {}
        self._calls: dict[str, str] = {}
        self._proposals: dict[str, str] = {}
        self._sessions: dict[str | None, str] = {}
        self._root: str | None = None
        for event in events:
            self._index(event)

    def _index(self, event: Stored) -> None:
        record, own = event.record, event.record["event_id"]
        if event.name == "session_started":
            self._sessions.setdefault(record.get("agent_id"), own)
            if self._root is None and not record.get("parent_session_event_id"):
                self._root = own
        if event.name == "tool_requested":
            self._calls.setdefault(record["call_id"], own)
        for call in record.get("proposed") or () if event.name == "model_responded" else ():
            self._proposals.setdefault(call["call_id"], own)
        if record.get("span_id"):
            self._spans.setdefault(record["span_id"], own)

    def of(self, event: Stored) -> str | None:
        """The event id of the parent; never the event itself."""
        own = event.record["event_id"]
        for parent in self._candidates(event):
            if parent is not None and parent != own:
                return parent
        return None

    def _candidates(self, event: Stored) -> Iterator[str | None]:
        record = event.record
        call = record.get("call_id")
        if event.name == "session_started":
            yield record.get("parent_session_event_id")
        elif event.name == "session_ended":
            yield self._sessions.get(record.get("agent_id"))
        if event.name in _CALL_STEPS and call:
            yield self._calls.get(call)
        if event.name == "tool_requested" or (event.name in _CALL_STEPS and call):
            yield self._proposals.get(call or "")
        if record.get("parent_span_id"):
            yield self._spans.get(record["parent_span_id"])
        if event.name != "session_started":
            yield self._sessions.get(record.get("agent_id"))
        yield self._root


def _parents_first(events: Sequence[Stored], parents: _Parents) -> list[Stored]:
    """The events such that each comes after its parent; one event of a circle comes first."""
    known = {event.record["event_id"]: event for event in events}
    placed: set[str] = set()
    ordered: list[Stored] = []
    for event in events:
        line: list[Stored] = []
        at: Stored | None = event
        climbed: set[str] = set()
        while at is not None:
            own = at.record["event_id"]
            if own in placed or own in climbed:
                break
            climbed.add(own)
            line.append(at)
            at = known.get(parents.of(at) or "")
        ordered.extend(reversed(line))
        placed |= climbed
    return ordered


def _add_ghosts(
    trail: Trail, events: Sequence[Stored], nodes: Mapping[str, Node], roots: list[Node]
) -> None:
    calls = {e.record["call_id"]: e for e in reversed(events) if e.name == "tool_requested"}
    by_call = {call: nodes[event.record["event_id"]] for call, event in calls.items()}
    for what, subject, detail in _missing(trail, events):
        title = _WORDS.get(what, f"{what}: missing")
        ghost = Node(MISSING, title, f"{subject}: {detail}" if what in _BY_PRODUCER else detail)
        place = by_call.get(subject) or nodes.get(subject)
        if place is not None:
            place.children.append(ghost)
        elif what == "start":
            roots.insert(0, ghost)
        else:
            (roots[0].children if roots else roots).append(ghost)


def _missing(trail: Trail, events: Sequence[Stored]) -> list[tuple[str, str, str]]:
    """What is missing, as (what, subject, detail): the verdict's word, or what events show."""
    found: list[tuple[str, str, str]] = []
    if _first(events, "session_started") is None:
        found.append(("start", "", "no session_started is stored"))
    if trail.chain is None:
        # Not judged yet: whatever else is not here may be on its way.
        return found
    if trail.chain.get("state") == "closed" and _root_end(events) is None:
        found.append(("end", "", "the session never said that it ended"))
    found += [(m["what"], m["subject"], m["detail"]) for m in trail.chain.get("missing") or ()]
    known = {(what, subject) for what, subject, _ in found}
    for finding in trail.findings:
        what = _MISSING_BY_RULE.get(str(finding["rule"]))
        if what and (what, finding["subject"]) not in known:
            found.append((what, str(finding["subject"]), str(finding.get("summary") or "")))
    return found


_MISSING_BY_RULE: Final = {
    "exec_without_decision": "decision",
    "hallucinated_call": "execution",
    "ghost_action": "proposal",
    "outcome_missing": "outcome",
    "model_version_missing": "model_version",
    "identity_missing": "identity",
    "cred_not_issued": "credential_issued",
}
_WORDS: Final = {
    "start": "session start: missing",
    "end": "session end: missing",
    "decision": "policy decision: missing",
    "execution": "tool execution: missing",
    "proposal": "model's proposal: missing",
    "outcome": "evidence of the outcome: missing",
    "model_version": "model version: missing",
    "identity": "verified identity: missing",
    "credential_issued": "issue of the credential: missing",
    "sequence": "gap in the sequence",
    "count": "promised events: missing",
    "conflict": "two events with one id",
}
_BY_PRODUCER: Final = frozenset(("sequence", "count"))


def _node(event: Stored, findings: Sequence[Json]) -> Node:
    record = event.record
    subjects = {record["event_id"]}
    if event.name == "tool_requested":
        subjects.add(record["call_id"])
    rules = dict.fromkeys(
        str(finding["rule"]) for finding in findings if finding.get("subject") in subjects
    )
    title, detail = describe(event.name, record)
    return Node(event.name, title, detail, record["occurred_at"], event, tuple(rules))


#: Of each event type, what is said at once: the fields of the title, and those behind it.
_FIELDS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "session_started": (("agent_id",), ("task", "entrypoint")),
    "prompt_submitted": (("role",), ("origin", "content")),
    "context_retrieved": (("source_uri",), ("trust", "flagged")),
    "memory_accessed": (("operation", "store"), ("memory_key", "trust")),
    "model_responded": (("model", "model_version"), ("status", "finish_reasons", "content")),
    "policy_decided": (("effect",), ("policy_id", "mode", "reason", "error")),
    "guardrail_checked": (("guardrail",), ("stage", "verdict", "reason")),
    "approval_requested": (("approval_kind", "approval_id"), ("requested_by", "to")),
    "approval_decided": (("effect", "approval_kind"), ("by", "reason", "ticket")),
    "credential_issued": (("credential_kind",), ("issuer", "subject", "scopes_granted")),
    "credential_used": (("scope_exercised",), ("credential_id", "audience")),
    "credential_renewed": (("credential_id",), ("issuer",)),
    "credential_rotated": (("credential_id",), ("issuer", "reason")),
    "credential_revoked": (("credential_id",), ("issuer", "reason")),
    "tool_requested": (("tool",), ("server", "action", "resource", "arguments")),
    "tool_executed": (("status",), ("tool", "error", "result")),
    "downstream_observed": (("system", "operation"), ("resource", "status", "principal")),
    "session_ended": (("status",), ("outcome",)),
}


def describe(name: str, record: Json) -> tuple[str, str]:
    """One event in words: its title, and what stands behind it."""
    title, detail = _FIELDS.get(name, ((), ()))
    head = " ".join(text for key in title if (text := _text(record.get(key))))
    rest = ", ".join(f"{key} {text}" for key in detail if (text := _text(record.get(key))))
    return f"{name.replace('_', ' ')}: {head}" if head else name.replace("_", " "), rest


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return _text(value.get("subject"))
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else ""
    return "" if value is None else str(value)


def _distinct(events: Iterable[Stored]) -> list[Stored]:
    """Each event id once: a duplicate is stored once more, and shown once."""
    first: dict[str, Stored] = {}
    for event in events:
        first.setdefault(event.record["event_id"], event)
    return list(first.values())


def _order(event: Stored) -> tuple[Any, ...]:
    record = event.record
    return (record["occurred_at"], record["producer_id"], record.get("trace_seq") or 0,
            record["event_id"])  # fmt: skip


def _when(node: Node) -> int:
    return node.at or 0


def _first(events: Iterable[Stored], name: str) -> Json | None:
    found = sorted((event for event in events if event.name == name), key=_order)
    return found[0].record if found else None


def _root_end(events: Iterable[Stored]) -> Json | None:
    return _first((e for e in events if e.record.get("root", True)), "session_ended")


def _seen(judged: Iterable[str] | None, found: Iterable[str]) -> tuple[str, ...]:
    return tuple(judged) if judged else tuple(dict.fromkeys(found))
