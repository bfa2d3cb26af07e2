"""What an auditor asks: what an identity did and may do, and what shows that a control holds.

A report is a dict of plain values and tables: `--json` prints it as it is, `as_markdown` is for
people.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from trailweave.deploy.output import json_value
from trailweave.schemas.codec import Decoder
from trailweave.schemas.errors import Rejected, TrailError
from trailweave.sinks.ask import ask, ask_one
from trailweave.stream_processors.rules import RULES

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

Report = dict[str, Any]

#: Rows of one table; a report that was cut off says so.
ROWS_MAX: Final = 10_000
_EXCEPTIONS: Final = frozenset({"override", "escalation", "exception"})


def identity_report(
    client: "Client", identity: str, tenant: str, period: Mapping[str, datetime]
) -> Report:
    """What an identity did, with which credentials, on whose behalf; raises `TrailError`."""
    asked = {"identity": identity, "tenant": tenant, **period}
    sums = ask_one(client, "report_identity", **asked)
    if not sums["sessions"]:
        raise TrailError(
            f"couldn't report on {identity}: no session of that time names it;"
            " `trailweave sessions search` looks for a part of a name"
        )
    credentials = ask(client, "report_identity_credentials", limit=ROWS_MAX, **asked)
    approvals = ask(client, "report_identity_approvals", limit=ROWS_MAX, **asked)
    findings = ask(client, "report_findings", rules=[], state="open", limit=ROWS_MAX, **asked)
    tools = ask(client, "report_identity_tools", limit=ROWS_MAX, **asked)
    return {
        "identity": identity,
        "from": sums["first_at"],
        "to": sums["last_at"],
        **{name: sums[name] for name in _SUMS},
        "tools": tools,
        "scopes": _scopes(credentials),
        "credentials": _by_credential(credentials),
        "exceptions": [row for row in approvals if row["approval_kind"] in _EXCEPTIONS],
        "approvals": [row for row in approvals if row["approval_kind"] not in _EXCEPTIONS],
        "open_findings": findings,
        "cut_off": max(map(len, (tools, credentials, approvals, findings))) == ROWS_MAX,
    }


_SUMS: Final = (
    "sessions", "complete", "severe", "as_actor", "as_sponsor", "agents", "sponsors", "tool_calls",
    "cost_usd",
)  # fmt: skip


def control_report(
    client: "Client", control: str, tenant: str, period: Mapping[str, datetime]
) -> Report:
    """What shows that a control holds, and what stands against it; raises `TrailError`."""
    rules = [rule for rule in RULES if _names(rule.controls, control)]
    if not rules:
        known = sorted({one for rule in RULES for one in rule.controls})
        raise TrailError(f"couldn't report on {control}: no rule serves it; these are served: "
                         f"{', '.join(known)}")  # fmt: skip
    names = [rule.name for rule in rules]
    asked = {"rules": names, "tenant": tenant, **period}
    judged = {row["rule"]: row for row in ask(client, "report_control", **asked)}
    findings = ask(client, "report_findings", identity="", state="", limit=ROWS_MAX, **asked)
    return {
        "control": control,
        "sessions": max((row["judged"] for row in judged.values()), default=0),
        "rules": [
            {
                "rule": rule.name,
                "severity": rule.severity,
                "expected": rule.expected,
                "evaluated": (row := judged.get(rule.name, _NONE))["judged"] - row["not_evaluable"],
                "not_evaluable": row["not_evaluable"],
                "sessions_with_findings": row["with_findings"],
            }
            for rule in rules
        ],
        "open_findings": [row for row in findings if row["state"] == "open"],
        "taken_back": sum(row["state"] == "retracted" for row in findings),
        "cut_off": len(findings) == ROWS_MAX,
    }


_NONE: Final = {"judged": 0, "not_evaluable": 0, "with_findings": 0}


def _names(controls: Iterable[str], wanted: str) -> bool:
    """Whether one of them is the wanted one; "AC-6" names "AC-6(9)" as well, and no "AC-60"."""
    name = wanted.casefold()
    return any(
        one.casefold() == name or one.casefold().startswith((f"{name}(", f"{name}:"))
        for one in controls
    )


def _scopes(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per scope: how often it was granted and exercised. What was never exercised comes first."""
    found: dict[str, dict[str, Any]] = {}
    decoder = Decoder()
    for row in rows:
        at = row["recorded_at"]
        if row["event_type"] == "credential_issued":
            for scope in _granted(row, decoder):
                said = found.setdefault(scope, _scope(scope))
                said["granted"] += 1
        elif row["scope_exercised"]:
            said = found.setdefault(row["scope_exercised"], _scope(row["scope_exercised"]))
            said["exercised"] += 1
            said["last_exercised"] = max(said["last_exercised"] or at, at)
    return sorted(found.values(), key=lambda said: (said["exercised"] > 0, said["scope"]))


def _scope(name: str) -> dict[str, Any]:
    return {"scope": name, "granted": 0, "exercised": 0, "last_exercised": None}


def _granted(row: Mapping[str, Any], decoder: Decoder) -> list[str]:
    """The scopes of an issue; none when its bytes have expired."""
    try:
        _, record = decoder.decode(base64.b64decode(row["record"]))
    except Rejected:
        return []
    return list(record["scopes_granted"])


def _by_credential(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in reversed(rows):
        said = found.setdefault(
            row["credential_id"],
            {
                "credential": row["credential_id"],
                "kind": row["credential_kind"],
                "first_at": row["recorded_at"],
                "uses": 0,
                "expires_at": None,
            },
        )
        said["uses"] += row["event_type"] == "credential_used"
        said["expires_at"] = row["expires_at"] or said["expires_at"]
        said["last_at"] = row["recorded_at"]
    return list(found.values())


def as_markdown(title: str, report: Report) -> str:
    """Plain values as a list, each table under its name."""
    lines = [f"# {_text(title)}", ""]
    plain = {name: value for name, value in report.items() if name not in _TABLES}
    lines += [f"- {_words(name)}: {_text(value)}" for name, value in plain.items()]
    for name, rows in report.items():
        if name in _TABLES:
            lines += ["", f"## {_words(name).capitalize()}", ""]
            lines += _table(rows) if rows else ["None."]
    return "\n".join(lines) + "\n"


#: Names of tables, for an empty one is a list like any other.
_TABLES: Final = frozenset(
    ("tools", "scopes", "credentials", "exceptions", "approvals", "open_findings", "rules")
)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(rows[0])
    lines = [f"| {' | '.join(map(_words, names))} |", f"|{' --- |' * len(names)}"]
    return lines + [f"| {' | '.join(_text(row[name]) for name in names)} |" for row in rows]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(value: Any) -> str:
    """A value in one cell: no line breaks, and nothing that ends the cell or drives a terminal."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if not isinstance(value, (str, int, float, type(None))):
        value = json_value(value)
    text = "" if value is None else str(value)
    kept = "".join(char if char.isprintable() else " " for char in text)
    return kept.replace("|", "\\|")
