"""Reads a trail from ClickHouse: its events decoded, its latest verdict, its findings."""

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from trailweave.deploy.trail import Stored, Trail
from trailweave.schemas.codec import Decoder
from trailweave.schemas.errors import Rejected, TrailError
from trailweave.sinks.ask import ask

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

_FINDING: Final = ("finding_id", "rule", "severity", "subject")
_MISSING: Final = ("what", "subject", "detail")
_PRODUCER: Final = ("producer_id", "epoch", "events", "first_seq", "last_seq", "gaps", "expected")
EVIDENCE: Final = ("topic", "partition", "offset", "event_id", "leaf")
#: Columns that are no field of an event, or stand for a part of one.
_NO_FIELDS: Final = frozenset(
    ("topic", "partition", "offset", "recorded_at", "record_base64", "occurred_at_micros",
     "actor_kind", "actor_subject", "sponsor_subject")
)  # fmt: skip


class UnknownTraceError(TrailError):
    """Nothing is stored of a trace, or more than one tenant has something."""


def read_trail(client: "Client", trace_id: str, tenant: str | None) -> Trail:
    """Everything stored of one trace; raises `UnknownTraceError`."""
    owner = tenant if tenant is not None else _owner(client, trace_id)
    place = {"tenant": owner, "trace": trace_id}
    decoder = Decoder()
    events = [_event(row, decoder) for row in ask(client, "trail_events", **place)]
    chains = ask(client, "trail_chain", **place)
    if not events and not chains:
        raise UnknownTraceError(
            f"couldn't find the trace {trace_id} of tenant {owner}: nothing is stored of it;"
            " look for it with `trailweave sessions list`"
        )
    findings = ask(client, "trail_findings", **place)
    for finding in findings:
        finding["evidence"] = named_all(EVIDENCE, finding["evidence"])
    return Trail(owner, trace_id, events, _chain(chains[0]) if chains else None, findings)


def named_all(names: tuple[str, ...], rows: list[Any]) -> list[dict[str, Any]]:
    """Tuples of ClickHouse as dicts; the client gives dicts for tuples whose parts have names."""
    return [
        dict(row) if isinstance(row, Mapping) else dict(zip(names, row, strict=True))
        for row in rows
    ]


def _owner(client: "Client", trace_id: str) -> str:
    tenants = [str(row["tenant"]) for row in ask(client, "trail_tenants", trace=trace_id)]
    if not tenants:
        raise UnknownTraceError(
            f"couldn't find the trace {trace_id}: nothing is stored of it;"
            " look for it with `trailweave sessions list`"
        )
    if len(tenants) > 1:
        raise UnknownTraceError(
            f"couldn't choose between the tenants of the trace {trace_id}:"
            f" name one of {', '.join(tenants)} with --tenant"
        )
    return tenants[0]


def _chain(row: dict[str, Any]) -> dict[str, Any]:
    shapes = {
        "findings": _FINDING,
        "missing": _MISSING,
        "producers": _PRODUCER,
        "evidence": EVIDENCE,
    }
    return {**row, **{key: named_all(names, row[key]) for key, names in shapes.items()}}


def _event(row: dict[str, Any], decoder: Decoder) -> Stored:
    try:
        name, record = decoder.decode(base64.b64decode(row["record_base64"]))
    except Rejected:
        # The bytes have expired, or another version wrote them: the columns tell most of it.
        name, record = str(row["event_type"]), _from_columns(row)
    return Stored(name, record, row["topic"], row["partition"], row["offset"], row["recorded_at"])


def _from_columns(row: dict[str, Any]) -> dict[str, Any]:
    record = {key: value for key, value in row.items() if key not in _NO_FIELDS and value != ""}
    record["occurred_at"] = row["occurred_at_micros"]
    record["actor"] = {"kind": row["actor_kind"], "subject": row["actor_subject"]}
    if row["sponsor_subject"]:
        record["sponsor"] = {"kind": "human", "subject": row["sponsor_subject"]}
    if row["event_type"] in ("tool_requested", "tool_executed"):
        record.setdefault("call_id", "")
    return record
