"""A workflow holds where each session is begun by a known one, for the same human, and whole."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from trailweave.deploy.workflow import Break, Handover, Workflow, seen_as_one

from tests.unit.stream_processors.builders import Trace

A, B, C = ("a" * 32, "b" * 32, "c" * 32)


def session(trace: str, parent: str = "", **fields: Any) -> dict[str, Any]:
    return {
        "trace_id": trace,
        "parent_trace_id": parent,
        "workflow_id": "w",
        "completeness": "complete",
        "sponsors": ["ann"],
        **fields,
    }


def start(trace: str, *line: tuple[str, list[str]]) -> dict[str, Any]:
    delegation = [{"kind": "agent", "subject": name, "scopes": scopes} for name, scopes in line]
    made = Trace(trace).event("session_started", delegation=delegation)
    return {"trace_id": trace, "record": base64.b64encode(made.value)}


def workflow(*sessions: dict[str, Any], starts: tuple[dict[str, Any], ...] = ()) -> Workflow:
    return seen_as_one("acme", "w", list(sessions), starts)


def test_a_workflow_of_linked_sessions_for_one_human_holds() -> None:
    found = workflow(session(A), session(B, A), session(C, B, sponsors=["ann", "ben"]))

    assert found.document()["holds"]
    assert [(depth, one["trace_id"]) for depth, one in found.tree()] == [(0, A), (1, B), (2, C)]


@pytest.mark.parametrize(
    ("sessions", "broken"),
    [
        (
            [session(A), session(B, C)],
            Break(B, "parent", f"nothing is stored of {C}, which began it"),
        ),
        (
            [session(A), session(B, A, sponsors=["eve"])],
            Break(B, "sponsor", "it acts for eve, and what began it for ann"),
        ),
        (
            [session(A), session(B, A, sponsors=[])],
            Break(B, "sponsor", "it acts for nobody, and what began it for ann"),
        ),
        (
            [session(A), session(B, A, workflow_id="")],
            Break(B, "workflow", "it names no workflow, and is linked with w"),
        ),
        ([session(A, completeness="incomplete")], Break(A, "record", "its record is incomplete")),
    ],
)
def test_where_it_breaks_is_said(sessions: list[dict[str, Any]], broken: Break) -> None:
    assert workflow(*sessions).breaks == [broken]


def test_who_acts_for_whom_is_told_with_what_it_may() -> None:
    line: tuple[tuple[str, list[str]], ...] = (
        ("executor", ["write"]),
        ("planner", ["read", "write"]),
        ("owner", []),
    )
    found = workflow(session(A), starts=(start(A, *line), start(A, *line)))

    assert found.handovers == [
        Handover(A, "executor", "planner", ("write",)),
        Handover(A, "planner", "owner", ("read", "write")),
    ]


def test_a_start_whose_bytes_have_expired_tells_nothing() -> None:
    assert workflow(session(A), starts=({"trace_id": A, "record": ""},)).handovers == []


def test_sessions_that_begin_each_other_are_all_shown() -> None:
    found = workflow(session(A, B), session(B, A), session(C, C))

    assert sorted(one["trace_id"] for _, one in found.tree()) == [A, B, C]
