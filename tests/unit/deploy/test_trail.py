"""The tree of a session: what hangs below what, and what is missing."""

import io
import sys
from typing import Any

from rich.console import Console
from trailweave.deploy.render import print_trail, trail_document
from trailweave.deploy.trail import MISSING, Node, Stored, Trail, header, tree, walk

TRACE = "a" * 32


def event(name: str, at: int, **fields: Any) -> Stored:
    record = {
        "event_id": f"e{at}",
        "trace_id": TRACE,
        "tenant": "acme",
        "producer_id": "p",
        "producer_epoch": 1,
        "trace_seq": at,
        "occurred_at": at,
        "agent_id": "buyer",
        "actor": {"kind": "agent", "subject": "spiffe://acme/buyer"},
        "sponsor": {"kind": "human", "subject": "ann@acme"},
        **fields,
    }
    return Stored(name, record, "trailweave.x", 0, at)


def trail(*events: Stored, chain: dict[str, Any] | None = None, findings: Any = ()) -> Trail:
    return Trail("acme", TRACE, events, chain, findings)


def rows(nodes: list[Node], depth: int = 0) -> list[str]:
    """The tree as indented lines."""
    lines = []
    for node in nodes:
        lines.append("  " * depth + node.title)
        lines += rows(node.children, depth + 1)
    return lines


START = event("session_started", 1, task="buy pens")
PROPOSAL = event("model_responded", 2, model="m", proposed=[{"call_id": "c1", "tool": "pay"}])
REQUEST = event("tool_requested", 3, call_id="c1", tool="pay")
DECISION = event("policy_decided", 4, call_id="c1", effect="allow")
EXECUTION = event("tool_executed", 5, call_id="c1", status="ok")
END = event("session_ended", 6, status="ok", root=True, outcome="paid")
WHOLE = (START, PROPOSAL, REQUEST, DECISION, EXECUTION, END)
CLOSED = {"state": "closed", "completeness": "complete", "missing": [], "highest_severity": "none"}


def test_a_call_hangs_below_its_proposal_and_holds_what_was_done_for_it() -> None:
    assert rows(tree(trail(*WHOLE, chain=CLOSED))) == [
        "session started: buyer",
        "  model responded: m",
        "    tool requested: pay",
        "      policy decided: allow",
        "      tool executed: ok",
        "  session ended: ok",
    ]


def test_the_order_of_arrival_does_not_matter() -> None:
    assert rows(tree(trail(*reversed(WHOLE)))) == rows(tree(trail(*WHOLE)))


def test_a_repeated_event_is_shown_once() -> None:
    assert rows(tree(trail(*WHOLE, EXECUTION))) == rows(tree(trail(*WHOLE)))


def test_a_missing_decision_is_a_ghost_below_its_call() -> None:
    finding = {"rule": "exec_without_decision", "subject": "c1", "severity": "high", "summary": "s"}
    events = (START, PROPOSAL, REQUEST, EXECUTION, END)
    lines = rows(tree(trail(*events, chain=CLOSED, findings=[finding])))

    assert "      policy decision: missing" in lines


def test_a_gap_in_a_sequence_is_a_ghost() -> None:
    lack = {"what": "sequence", "subject": "p", "detail": "sequence 3 to 4 never arrived"}
    chain = {**CLOSED, "missing": [lack]}
    ghosts = [n for n in walk(tree(trail(*WHOLE, chain=chain))) if n.kind == MISSING]

    assert [(ghost.title, ghost.detail) for ghost in ghosts] == [
        ("gap in the sequence", "p: sequence 3 to 4 never arrived")
    ]


def test_without_a_chain_only_the_start_can_be_missing() -> None:
    assert rows(tree(trail(PROPOSAL, REQUEST)))[0] == "session start: missing"


def test_a_closed_session_without_its_end_says_so() -> None:
    assert "  session end: missing" in rows(tree(trail(START, chain=CLOSED)))


def test_a_child_agent_hangs_below_the_event_that_spawned_it() -> None:
    child = event("session_started", 7, agent_id="child", parent_session_event_id="e3")
    prompt = event("prompt_submitted", 8, agent_id="child", role="user")
    lines = rows(tree(trail(*WHOLE, child, prompt)))

    assert "      session started: child" in lines
    assert "        prompt submitted: user" in lines


def test_parents_in_a_circle_lose_no_event() -> None:
    first = event("prompt_submitted", 1, span_id="a", parent_span_id="b", agent_id=None)
    second = event("prompt_submitted", 2, span_id="b", parent_span_id="a", agent_id=None)
    shown = [node.event for node in walk(tree(trail(first, second))) if node.event]

    assert sorted(stored.record["event_id"] for stored in shown) == ["e1", "e2"]


def test_a_forged_line_of_parents_longer_than_the_stack_is_shown() -> None:
    count = sys.getrecursionlimit() + 100
    line = [
        event("prompt_submitted", at, span_id=f"s{at}", parent_span_id=f"s{at - 1}", agent_id=None)
        for at in range(1, count + 1)
    ]
    long = trail(*line)
    print_trail(Console(file=io.StringIO(), width=120), long)

    assert len(list(walk(tree(long)))) == count + 1
    assert trail_document(long)["events"] == count


def test_the_header_comes_from_the_events_while_there_is_no_chain() -> None:
    top = header(trail(*WHOLE))

    assert (top.state, top.completeness) == ("not judged yet", "unprovable")
    assert (top.identities, top.sponsors) == (("spiffe://acme/buyer",), ("ann@acme",))
    assert (top.task, top.status, top.outcome) == ("buy pens", "ok", "paid")


def test_hostile_content_drives_no_terminal() -> None:
    hostile = "\x1b]0;owned\x07[red]x[/]\u202e"
    start = event("session_started", 1, task=hostile, agent_id=hostile)
    finding = {"rule": "r", "subject": hostile, "severity": "high", "summary": hostile}
    screen = io.StringIO()
    print_trail(Console(file=screen, width=200), trail(start, findings=[finding]))
    shown = screen.getvalue()

    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "[red]x[/]" in shown


def test_a_time_that_no_calendar_has_is_shown_as_none() -> None:
    start = event("session_started", 2**62)
    print_trail(Console(file=io.StringIO()), trail(start))

    assert trail_document(trail(start))["started_at"] is None
