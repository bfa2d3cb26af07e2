"""Reports: scopes granted against scopes exercised, controls by name, and cells that stay cells."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from trailweave.deploy import report
from trailweave.deploy.report import as_markdown

from tests.unit.stream_processors.builders import Trace

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
LATER = datetime(2026, 11, 21, 13, tzinfo=UTC)


def issue(*scopes: str) -> dict[str, Any]:
    made = Trace().event("credential_issued", scopes_granted=list(scopes))
    return row("credential_issued", record=base64.b64encode(made.value))


def row(event_type: str, **fields: Any) -> dict[str, Any]:
    return {
        "event_type": event_type,
        "credential_id": "k",
        "credential_kind": "jwt_svid",
        "scope_exercised": "",
        "recorded_at": NOON,
        "expires_at": None,
        "record": "",
        **fields,
    }


def test_what_was_granted_and_never_exercised_comes_first() -> None:
    used = row("credential_used", scope_exercised="read", recorded_at=LATER)
    found = report._scopes([used, issue("write", "read"), issue("read")])

    assert found == [
        {"scope": "write", "granted": 1, "exercised": 0, "last_exercised": None},
        {"scope": "read", "granted": 2, "exercised": 1, "last_exercised": LATER},
    ]


def test_an_issue_whose_bytes_have_expired_grants_nothing_that_is_known() -> None:
    assert report._scopes([row("credential_issued")]) == []


def test_a_credential_is_told_once_with_its_uses() -> None:
    rows = [row("credential_used", recorded_at=LATER, expires_at=LATER), issue("read")]
    (found,) = report._by_credential(rows)

    assert (found["uses"], found["first_at"], found["last_at"]) == (1, NOON, LATER)
    assert found["expires_at"] == LATER


@pytest.mark.parametrize(
    ("wanted", "named"),
    [("AC-6", True), ("ac-6", True), ("AC-6(9)", True), ("AC", False), ("AC-60", False),
     ("NHI7", True), ("NHI", False)],
)  # fmt: skip
def test_a_control_is_named_with_its_enhancements_and_no_other(wanted: str, named: bool) -> None:
    assert report._names(("AC-6(9)", "AC-6", "NHI7:2025"), wanted) == named


def test_an_enhancement_does_not_name_the_control_that_it_enhances() -> None:
    assert not report._names(("AC-6",), "AC-6(9)")


def test_a_report_is_a_list_and_tables() -> None:
    text = as_markdown("Identity x", {"sessions": 2, "agents": ["a", "b"], "tools": []})

    assert text == "# Identity x\n\n- sessions: 2\n- agents: a, b\n\n## Tools\n\nNone.\n"


def test_nothing_stored_can_end_a_cell_or_drive_a_terminal() -> None:
    rows = [{"tool": "a|b\n| c |\x1b[2J", "calls": None, "last_at": NOON}]
    lines = as_markdown("x", {"tools": rows}).splitlines()

    assert lines[-1] == "| a\\|b \\| c \\| [2J |  | 2026-11-21T12:00:00Z |"
