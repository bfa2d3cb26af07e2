"""What the hot columns of `events` hold, and what they must hold."""

from __future__ import annotations

from typing import Any

from trailweave.schemas import events
from trailweave.sinks import tables


def query_bytes(client: Any, sql: str) -> list[dict[str, Any]]:
    """Rows with times as numbers and strings as their bytes, in latin-1."""
    columns = {c.name: c for c in tables.columns("events") if "." not in c.name}

    def shown(column: tables.Column) -> str:
        if "DateTime64(6" in column.type:
            return f"toUnixTimestamp64Micro({column.name}) AS {column.name}"
        if "DateTime64(3" in column.type:
            return f"toUnixTimestamp64Milli({column.name}) AS {column.name}"
        return f"hex({column.name}) AS {column.name}" if column.name == "record" else column.name

    listed = ", ".join(map(shown, columns.values()))
    made = [dict(row) for row in client.query(sql.replace("*", listed)).named_results()]
    for row in made:
        row["record"] = bytes.fromhex(row["record"]).decode("latin-1")
    return made


def expected_columns(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """What the columns must hold, written down independently of `rows`."""
    head = {
        "event_type": name,
        "topic": events.event_types()[name].topic,
        "partition": 0,
        "actor_kind": record["actor"]["kind"],
        "actor_subject": record["actor"]["subject"],
        "actor_assurance": record["actor"]["assurance"],
        "reporter_kind": record["reporter"]["kind"],
        "reporter_subject": record["reporter"]["subject"],
        "sponsor_subject": (record["sponsor"] or {}).get("subject", ""),
        "correlation_how": record["correlation"]["how"],
    }
    own = dict(record)
    own["request_id"] = record.get("request_id") or record.get("downstream_request_id")
    own["approver_subject"] = (record.get("by") or {}).get("subject")
    own["requester_subject"] = (record.get("requested_by") or {}).get("subject")
    elsewhere = {*head, "topic_id", "offset", "ordinal", "recorded_at", "record_hash", "record"}
    for column in tables.columns("events"):
        if "." in column.name or column.name in elsewhere:
            continue
        nothing = None if column.type.startswith("Nullable") else ABSENT[column.type.split("(")[0]]
        value = own.get(column.name)
        head[column.name] = nothing if value is None else value
    return head


#: What an absent value is in a column of a type.
ABSENT: dict[str, Any] = {
    "DateTime64": 0,
    "String": "",
    "LowCardinality": "",
    "Int64": 0,
    "Float64": 0.0,
    "Bool": False,
    "Array": [],
}
