"""Sessions that serve one task, seen as one: who handed what to whom, and where that breaks.

Pure but for the questions that `read_workflow` asks. A session belongs to a workflow by its
`workflow_id`; one that began such a session, or was begun by one (`parent_trace_id`), is shown with
it, for a workflow that is not passed on is a break itself.
"""

import base64
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trailweave.schemas.codec import Decoder
from trailweave.schemas.errors import Rejected, TrailError
from trailweave.sinks.ask import TRACES_MAX, ask

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

SESSIONS_MAX: Final = 10_000


class Handover(NamedTuple):
    """One agent acting for another, with the rights that it was given."""

    trace_id: str
    agent: str
    for_whom: str
    scopes: tuple[str, ...]


class Break(NamedTuple):
    """Where a workflow's line of responsibility breaks."""

    trace_id: str
    what: str
    detail: str


class Workflow(NamedTuple):
    """One workflow as it is stored."""

    tenant: str
    workflow_id: str
    sessions: list[dict[str, Any]]
    handovers: list[Handover]
    breaks: list[Break]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "tenant": self.tenant,
            "workflow_id": self.workflow_id,
            "holds": not self.breaks,
            "sessions": self.sessions,
            "handovers": [one._asdict() for one in self.handovers],
            "breaks": [one._asdict() for one in self.breaks],
        }

    def tree(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(depth, session): each behind the one that began it, those that nobody began first."""
        known = {one["trace_id"] for one in self.sessions}
        below: dict[str, list[dict[str, Any]]] = {}
        for one in self.sessions:
            parent = one["parent_trace_id"]
            below.setdefault(parent if parent in known else "", []).append(one)
        shown: set[str] = set()
        stack = [(0, one) for one in reversed(below.get("", []))]
        while stack:
            depth, one = stack.pop()
            shown.add(one["trace_id"])
            yield depth, one
            under = reversed(below.get(one["trace_id"], []))
            stack += [(depth + 1, each) for each in under if each["trace_id"] not in shown]
        # What begins each other in a circle hangs on nothing.
        yield from ((0, one) for one in self.sessions if one["trace_id"] not in shown)


def read_workflow(client: "Client", workflow_id: str, tenant: str) -> Workflow:
    """Everything stored of one workflow; raises `TrailError`."""
    rows = ask(client, "workflow_sessions", workflow=workflow_id, tenant=tenant, limit=SESSIONS_MAX)
    tenants = sorted({row["tenant"] for row in rows})
    if not rows:
        raise TrailError(
            f"couldn't find the workflow {workflow_id}: no session names it;"
            " `trailweave workflows list` shows all"
        )
    if len(tenants) > 1:
        raise TrailError(
            f"couldn't choose a workflow {workflow_id}: {', '.join(tenants)} have one;"
            " say whose with --tenant"
        )
    traces = [row["trace_id"] for row in rows]
    starts = [
        row
        for at in range(0, len(traces), TRACES_MAX)
        for row in ask(
            client, "workflow_starts", tenants=tenants, traces=traces[at : at + TRACES_MAX]
        )
    ]
    return seen_as_one(tenants[0], workflow_id, rows, starts)


def seen_as_one(
    tenant: str,
    workflow_id: str,
    sessions: list[dict[str, Any]],
    starts: Sequence[Mapping[str, Any]],
) -> Workflow:
    """The workflow of these sessions; `starts` are rows of `workflow_starts`."""
    lines = list(_delegations(starts))
    handovers = [
        Handover(trace, agent["subject"], above["subject"], tuple(agent["scopes"]))
        for trace, line in lines
        for agent, above in itertools.pairwise(line)
    ]
    breaks = sorted({*_links(workflow_id, sessions), *_states(sessions)})
    return Workflow(tenant, workflow_id, sessions, sorted(set(handovers)), breaks)


def _delegations(starts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    decoder = Decoder()
    for row in starts:
        try:
            _, record = decoder.decode(base64.b64decode(row["record"]))
        except Rejected:
            continue  # its bytes have expired
        yield row["trace_id"], record["delegation"]


def _links(workflow_id: str, sessions: Iterable[Mapping[str, Any]]) -> Iterator[Break]:
    """Breaks between a session and the one that began it."""
    known = {one["trace_id"]: one for one in sessions}
    for trace, one in known.items():
        if one["workflow_id"] != workflow_id:
            said = one["workflow_id"] or "no workflow"
            yield Break(trace, "workflow", f"it names {said}, and is linked with {workflow_id}")
        if not one["parent_trace_id"]:
            continue
        parent = known.get(one["parent_trace_id"])
        if parent is None:
            detail = f"nothing is stored of {one['parent_trace_id']}, which began it"
            yield Break(trace, "parent", detail)
        elif parent["sponsors"] and not set(one["sponsors"]) & set(parent["sponsors"]):
            whom = ", ".join(one["sponsors"]) or "nobody"
            detail = f"it acts for {whom}, and what began it for {', '.join(parent['sponsors'])}"
            yield Break(trace, "sponsor", detail)


def _states(sessions: Iterable[Mapping[str, Any]]) -> Iterator[Break]:
    for one in sessions:
        if one["completeness"] != "complete":
            yield Break(one["trace_id"], "record", f"its record is {one['completeness']}")
