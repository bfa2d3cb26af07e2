"""What every adapter shares: settings, places in traces, and the envelope of a translated event.

Pure. Every value of a translated event is a function of the outside record and of the settings: no
clock, no random id. So the same record read twice gives the same bytes, and the join leaves the
second out.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal

from trailweave.producers.adapters.spiffe import read_spiffe_id
from trailweave.producers.capture import Captor, Capture, CapturePolicy
from trailweave.producers.identity import Identity, IdentityKind
from trailweave.producers.redact import Redactor
from trailweave.schemas import ids
from trailweave.schemas.codec import TENANT_BYTES_MAX
from trailweave.schemas.errors import Rejected
from trailweave.schemas.events import Event, Json
from trailweave.schemas.hashing import TenantKey, keyed_hash, keyed_text_hash

How = Literal["exact", "handle", "heuristic", "uncorrelated"]

#: Years 1970 to 2199 in microseconds: what ClickHouse's times hold, and no clock is that wrong.
TIME_US_MAX: Final = 7_258_118_400_000_000

#: Fields that join records or prove them: a redaction would break that, and none holds a text.
_NEVER_REDACTED: Final = frozenset(
    (
        "call_id",
        "decision_id",
        "approval_id",
        "credential_id",
        "parent_credential_id",
        "lease_id",
        "handles",
    )
)


@dataclass(frozen=True, slots=True)
class Context:
    """How outside records are read: who they belong to and how much of them is kept.

    Without a `key` nothing secret can be hashed: values that need it come out as null, and a
    record that only such a value ties to others is `uncorrelated`. There is no default key, for
    its hashes could be guessed by anyone who reads this.
    """

    tenant: str
    #: otlp, opa, vault or mcp; part of every event id.
    adapter: str
    #: The authority that wrote the records.
    reporter: Identity
    key: TenantKey | None = None
    environment: str = "production"
    capture: Capture = "metadata"
    #: `occurred_at` of records that carry no time; 0 reads as "unknown".
    default_time_us: int = 0
    #: Name of the MCP conversation that messages without session id or trace context belong to.
    conversation: str = ""
    #: What a vault's `sys/audit-hash` gave: hash as in the audit lines -> the plain value.
    audit_hashes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < len(self.tenant.encode()) <= TENANT_BYTES_MAX:
            raise Rejected(
                "invalid_tenant",
                f"couldn't use the tenant {self.tenant!r}: 1 to {TENANT_BYTES_MAX} bytes",
            )


@dataclass(frozen=True, slots=True)
class Translated:
    """What became of one outside record: its events, or why there are none."""

    events: tuple[Event, ...] = ()
    #: One reason for each record that was passed over.
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tie:
    """A value that other records of the same work carry as well.

    An `open` one stands in the event as it is (a call id): no key is needed to go by it.
    """

    kind: str
    value: str
    open: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where an event belongs, and how sure that is."""

    trace_id: str
    how: How
    handles: tuple[Json, ...] = ()
    span_id: str | None = None
    parent_span_id: str | None = None
    parent_remote: bool | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """What all events of one outside record have in common."""

    #: The record's own stable id, or one made from its bytes.
    original_id: str
    fingerprint: str
    place: Place
    occurred_at: int
    actor: Identity
    #: Further fields of the envelope: agent_id, sponsor, conversation_id, ...
    envelope: Json = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Content:
    """A value of which the capture level says how much is kept."""

    value: Any


# --- reading JSON -----------------------------------------------------------------------------


def malformed(detail: str) -> Rejected:
    """The one error of an adapter; `detail` names a field, never its value."""
    return Rejected("malformed", detail)


def text(record: Mapping[str, Any], *names: str) -> str | None:
    """The first of the fields that is a text with something in it."""
    for name in names:
        value = record.get(name)
        if isinstance(value, str) and value:
            return value
    return None


def number(record: Mapping[str, Any], *names: str) -> int | None:
    """The first of the fields that is a count, as OTLP/JSON has it too: an integer in a text."""
    for name in names:
        found = as_count(record.get(name))
        if found is not None:
            return found
    return None


def as_count(value: object) -> int | None:
    """A non-negative integer of 63 bits, or None."""
    if isinstance(value, str) and len(value) < 20 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value
    return None


def table(record: Mapping[str, Any], name: str) -> Json:
    """The field if it is an object, else an empty one."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def listed(record: Mapping[str, Any], name: str) -> list[Any]:
    """The field if it is an array, else an empty one."""
    value = record.get(name)
    return value if isinstance(value, list) else []


def texts(values: Sequence[object]) -> list[str]:
    """Those of the values that are texts with something in them."""
    return [value for value in values if isinstance(value, str) and value]


def scalar_text(value: object) -> str | None:
    """A text for the attributes map: of texts, numbers and booleans only."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) and value != "" else None


def fingerprint(record: object) -> str:
    """SHA-256 of a JSON value, however it was spaced and ordered."""
    encoded = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(encoded.encode()).hexdigest()


# --- times ------------------------------------------------------------------------------------

_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(?:([Zz])|([+-]\d\d:\d\d))"
)


def time_us(value: object) -> int | None:
    """Microseconds of an RFC 3339 time; None for no time and for a zero one.

    Raises `Rejected` for a text that is no time, or one outside 1970 to 2199.
    """
    if value is None or value == "":
        return None
    found = _RFC3339.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise malformed("a time is not in the RFC 3339 form")
    day, clock, fraction, _, offset = found.groups()
    try:
        whole = datetime.fromisoformat(f"{day}T{clock}{offset or '+00:00'}")
        seconds = int((whole - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    except (ValueError, OverflowError):
        raise malformed("a time has a part out of range") from None
    if whole.year == 1:
        return None  # Go's zero time: the writer had none
    return checked_time(seconds * 1_000_000 + int((fraction or "0").ljust(6, "0")[:6]))


def nanoseconds_us(value: object) -> int | None:
    """Microseconds of OTLP's nanoseconds; None for none and for zero."""
    if value is None or value in ("", 0, "0"):
        return None
    found = as_count(value)
    if found is None:
        raise malformed("a time in nanoseconds is not a whole number")
    return checked_time(found // 1000)


def checked_time(micros: int) -> int:
    """The time; raises `Rejected` outside 1970 to 2199."""
    if not 0 <= micros < TIME_US_MAX:
        raise malformed("a time lies outside 1970 to 2199")
    return micros


# --- identities, hashes, places ---------------------------------------------------------------


NOBODY: Final = Identity("unknown", "unknown")


def named_identity(kind: IdentityKind, subject: str) -> Identity:
    """An asserted identity; a valid SPIFFE ID is a workload's, and its trust domain the issuer."""
    workload = read_spiffe_id(subject)
    if workload is not None:
        return Identity("workload", subject, f"spiffe://{workload.trust_domain}")
    return Identity(kind, subject)


_VAULT_HASH: Final = re.compile(r"hmac-sha256:[0-9a-f]{64}")


def is_vault_hash(value: str) -> bool:
    """Whether a vault hashed the value already, with a salt of its own."""
    return _VAULT_HASH.fullmatch(value) is not None


def handle_hash(context: Context, value: str) -> str | None:
    """What stands for a handle's value in events.

    Without a key only what a vault has hashed already may be shown.
    """
    if context.key is not None:
        return keyed_text_hash(context.key, value)
    return value if is_vault_hash(value) else None


def json_hash(context: Context, value: object) -> str | None:
    """The keyed hash of a JSON value, the same as the recorder's; None where there can be none."""
    if context.key is None or context.capture == "metadata" or value is None:
        return None
    try:
        return keyed_hash(context.key, json_in(value))
    except (ValueError, RecursionError):
        return None  # numbers that RFC 8785 can't write


def json_in(value: object) -> object:
    """The JSON value that a text holds, or the value itself."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _captor(context: Context) -> Captor:
    return Captor(CapturePolicy(context.capture, context.key))


def placed(context: Context, trace_id: str | None, ties: Sequence[Tie], original_id: str) -> Place:
    """The trace an event belongs to: its own, else that of the first tie, else one of its own."""
    hashes = [(tie, handle_hash(context, tie.value)) for tie in ties]
    handles = tuple({"kind": tie.kind, "hash": found} for tie, found in hashes if found)
    if trace_id is not None:
        return Place(trace_id, "exact", handles)
    for tie, found in hashes:
        token = found or (tie.value if tie.open else None)
        if token is not None:
            trace = ids.derived_trace_id(context.tenant, "handle", tie.kind, token)
            return Place(trace, "handle", handles)
    alone = ids.derived_trace_id(context.tenant, context.adapter, original_id)
    return Place(alone, "uncorrelated", handles)


# --- events -----------------------------------------------------------------------------------


def event_id(context: Context, source: Source, name: str, ordinal: int = 0) -> str:
    """The id that this record's event has whenever and wherever it is read."""
    return ids.derived_id(context.tenant, context.adapter, source.original_id, name, str(ordinal))


def make(context: Context, source: Source, name: str, fields: Json, ordinal: int = 0) -> Event:
    """One event of an outside record.

    `fields` are the event's own, and may override the envelope's; a `Content` becomes a text and
    its hash, as far as the capture level allows. Secrets are taken out of every text.
    """
    captor = _captor(context)
    found: Json = {**source.envelope, **fields}
    redactions = found.pop("redactions", [])
    attributes = {**source.attributes, **found.pop("attributes", {})}
    record = _envelope(context, source, name, ordinal)
    for key, value in found.items():
        if isinstance(value, Content):
            record[key], record[f"{key}_hash"] = _kept(context, captor, key, value.value)
        elif key in _NEVER_REDACTED or key.endswith("_hash"):
            record[key] = value
        else:
            record[key] = _safe(captor.redactor, key, value)
    record["actor"] = _safe(captor.redactor, "actor", source.actor)
    record["attributes"] = {
        name: captor.redactor.text("attributes", value) for name, value in attributes.items()
    }
    record["redactions"] = [*redactions, *captor.redactions()]
    return Event(name, record)


def _safe(redactor: Redactor, name: str, value: Any) -> Any:
    """The value without secrets; most are short texts, and ask for no walk through them."""
    if isinstance(value, str):
        return redactor.text(name, value)
    if isinstance(value, Identity):
        safe = redactor.text(name, value.subject)
        return identity_record(value if safe == value.subject else replace(value, subject=safe))
    return redactor.value(name, value) if isinstance(value, dict | list) and value else value


@lru_cache(maxsize=4096)
def identity_record(who: Identity) -> Json:
    """The identity as the schemas have it; shared by all its events, so never to be changed."""
    return who.record()


def _envelope(context: Context, source: Source, name: str, ordinal: int) -> Json:
    place = source.place
    hashed = None
    if context.key is not None:
        hashed = keyed_text_hash(context.key, source.fingerprint)
    return {
        "event_id": event_id(context, source, name, ordinal),
        "trace_id": place.trace_id,
        "tenant": context.tenant,
        "producer_id": f"ingest:{context.adapter}",
        # Translations have no process of their own: another run must give the same bytes.
        "producer_epoch": 0,
        "trace_seq": None,
        "occurred_at": source.occurred_at,
        "span_id": place.span_id,
        "parent_span_id": place.parent_span_id,
        "parent_remote": place.parent_remote,
        "reporter": identity_record(context.reporter),
        "environment": context.environment,
        "capture": context.capture,
        "delayed": True,
        "correlation": {"how": place.how, "handles": list(place.handles)},
        "event_type": name,
        "source": {
            "adapter": context.adapter,
            "original_id": source.original_id,
            "hash": hashed,
        },
    }


def _kept(
    context: Context, captor: Captor, name: str, value: object
) -> tuple[str | None, str | None]:
    """A content's text and hash, each if the capture level has it."""
    try:
        if name in ("arguments", "result"):
            return captor.json(name, value)
        return captor.content(name, value)
    except Rejected:
        # RFC 8785 has no integers above 2^53; a record that somebody else wrote is kept without
        # its hash rather than not at all.
        if context.capture in ("metadata", "hashed"):
            return None, None
        safe = captor.redactor.value(name, value)
        return json.dumps(safe, ensure_ascii=False, separators=(",", ":")), None
