"""OTLP/JSON traces and logs -> the records of an agent's work. Pure.

`records` takes an export request apart into spans and log records, each read by `events_of`; what
the spans say of models, agents and tools is in `genai`, log records in `otlp_logs`. Besides OTLP it
takes JavaScript SDK span objects, and bare attribute maps of one span (uncorrelated, without time).
What is no GenAI span is passed over and counted.
"""

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from trailweave.producers.adapters import genai, otlp_logs
from trailweave.producers.adapters.record import (
    Context,
    Translated,
    as_count,
    checked_time,
    fingerprint,
    listed,
    malformed,
    nanoseconds_us,
    table,
    text,
)
from trailweave.producers.adapters.spans import Log, Span
from trailweave.producers.adapters.trace_ids import hex_id
from trailweave.schemas.errors import Rejected
from trailweave.schemas.events import Json

#: Bits of a span's flags that say whether its parent is another process's.
_REMOTE_KNOWN: Final = 0x100
_REMOTE: Final = 0x200

_KINDS: Final = ("unspecified", "internal", "server", "client", "producer", "consumer")


@dataclass(frozen=True, slots=True)
class Part:
    """One span or log record of an export request, with what is said once for many."""

    kind: str
    record: Any
    resource: Json = field(default_factory=dict)
    scope: Json = field(default_factory=dict)

    def as_json(self) -> Json:
        """The part as an export request of its own, for the dead letters."""
        if self.kind not in ("span", "log"):
            return {self.kind: self.record}
        name, scopes, rows = _PATHS[self.kind]
        inner = {"scope": self.scope, rows: [self.record]}
        return {name: [{"resource": self.resource, scopes: [inner]}]}


_PATHS: Final = {
    "span": ("resourceSpans", "scopeSpans", "spans"),
    "log": ("resourceLogs", "scopeLogs", "logRecords"),
}


def records(document: object) -> Iterator[Part | Rejected]:
    """The spans and log records of one document, in order; a broken branch is an error in it."""
    if not isinstance(document, dict):
        yield malformed("an export request is an object")
        return
    kinds = [kind for kind, (name, _, _) in _PATHS.items() if name in document]
    for kind in kinds:
        yield from _branch(document, kind)
    if kinds:
        return
    if "resourceMetrics" in document:
        yield Part("metrics", {})
    elif isinstance(document.get("spanContext"), dict):
        yield Part("sdk_span", document)
    elif any(name.startswith(("gen_ai.", "mcp.", "llm.")) for name in document):
        yield Part("attributes", document)
    else:
        yield malformed("neither resourceSpans, nor resourceLogs, nor a span's attributes")


def _branch(document: Json, kind: str) -> Iterator[Part | Rejected]:
    name, scopes, rows = _PATHS[kind]
    for resource in _rows(document, name):
        if isinstance(resource, Rejected):
            yield resource
            continue
        for scope in _rows(resource, scopes):
            if isinstance(scope, Rejected):
                yield scope
                continue
            for record in _rows(scope, rows):
                if isinstance(record, Rejected):
                    yield record
                else:
                    yield Part(kind, record, table(resource, "resource"), table(scope, "scope"))


def _rows(parent: Json, name: str) -> Iterator[Json | Rejected]:
    rows = parent.get(name, [])
    if not isinstance(rows, list):
        yield malformed(f"{name} is not an array")
        return
    for row in rows:
        yield (
            row if isinstance(row, dict) else malformed(f"{name} has an element that is no object")
        )


def events_of(part: Part, context: Context) -> Translated:
    """The events of one span or log record; raises `Rejected` for one that can't be read."""
    if part.kind == "log":
        return otlp_logs.events_of(log_of(part), context)
    if part.kind == "metrics":
        return Translated(skipped=("metrics",))
    return genai.events_of(span_of(part), context)


# --- values -----------------------------------------------------------------------------------


def any_value(value: object) -> Any:
    """The plain JSON value of an OTLP `AnyValue`; raises `Rejected` for what is none."""
    if not isinstance(value, dict):
        raise malformed("an attribute's value is no object")
    for name, found in value.items():
        if name in ("stringValue", "boolValue"):
            return found
        if name == "intValue":
            return found if isinstance(found, int) else _integer(found)
        if name == "doubleValue":
            return found
        if name == "arrayValue":
            return [any_value(each) for each in listed(_object(found), "values")]
        if name == "kvlistValue":
            return attributes_of(listed(_object(found), "values"))
        if name == "bytesValue":
            return _bytes_text(found)
    return None


def _object(value: object) -> Json:
    if not isinstance(value, dict):
        raise malformed("an array or map value is no object")
    return value


def _integer(value: object) -> int:
    negative = isinstance(value, str) and value.startswith("-")
    found = as_count(value[1:] if negative and isinstance(value, str) else value)
    if found is None:
        raise malformed("an integer value is not a whole number of 64 bits")
    return -found if negative else found


def _bytes_text(value: object) -> str | None:
    try:
        return base64.b64decode(value, validate=True).decode() if isinstance(value, str) else None
    except (binascii.Error, ValueError):
        return None


def attributes_of(rows: list[Any]) -> Json:
    """Attributes by name; the first of a name counts, as the specification forbids a second."""
    made: Json = {}
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("key"), str):
            raise malformed("an attribute has no key")
        made.setdefault(row["key"], any_value(row.get("value", {})))
    return made


# --- spans and log records --------------------------------------------------------------------


def span_of(part: Part) -> Span:
    """One span, whatever form it came in; raises `Rejected`."""
    if part.kind == "attributes":
        return Span(None, None, None, None, part.record, fingerprint=fingerprint(part.record))
    if part.kind == "sdk_span":
        return _sdk_span(part.record)
    record, flags = part.record, as_count(part.record.get("flags")) or 0
    trace_id, span_id = hex_id(record.get("traceId"), 16), hex_id(record.get("spanId"), 8)
    if trace_id is None:
        raise malformed("traceId is neither 32 hex digits nor base64 of 16 bytes, or all zero")
    if span_id is None:
        raise malformed("spanId is neither 16 hex digits nor base64 of 8 bytes, or all zero")
    status = table(record, "status")
    code = status.get("code")
    return Span(
        trace_id,
        span_id,
        hex_id(record.get("parentSpanId"), 8),
        bool(flags & _REMOTE) if flags & _REMOTE_KNOWN else None,
        attributes_of(listed(record, "attributes")),
        resource=attributes_of(listed(part.resource, "attributes")),
        scope=text(part.scope, "name"),
        name=text(record, "name") or "",
        kind=_kind(record.get("kind")),
        started_at=nanoseconds_us(record.get("startTimeUnixNano")),
        ended_at=nanoseconds_us(record.get("endTimeUnixNano")),
        failed=code in (2, "STATUS_CODE_ERROR"),
        events=tuple(_span_events(record)),
        fingerprint=fingerprint(record),
    )


def _kind(value: object) -> str:
    if isinstance(value, str):
        return value.removeprefix("SPAN_KIND_").lower()
    known = isinstance(value, int) and 0 <= value < len(_KINDS)
    return _KINDS[value] if known and isinstance(value, int) else _KINDS[0]


def _span_events(record: Json) -> Iterator[tuple[str, Json]]:
    for event in listed(record, "events"):
        if isinstance(event, dict) and (name := text(event, "name")):
            yield name, attributes_of(listed(event, "attributes"))


def _sdk_span(record: Json) -> Span:
    """A span as the JavaScript SDK holds it: ids under spanContext, times as [seconds, nanos]."""
    own = table(record, "spanContext")
    trace_id, span_id = hex_id(own.get("traceId"), 16), hex_id(own.get("spanId"), 8)
    if trace_id is None or span_id is None:
        raise malformed("spanContext has no valid traceId and spanId")
    parent = record.get("parentSpanId") or table(record, "parentSpanContext").get("spanId")
    return Span(
        trace_id,
        span_id,
        hex_id(parent, 8),
        None,
        table(record, "attributes"),
        resource=table(table(record, "resource"), "attributes"),
        name=text(record, "name") or "",
        # The SDK counts kinds from 0 = internal, one less than the protocol.
        kind=_kind(kind + 1 if isinstance(kind := record.get("kind"), int) else None),
        started_at=_seconds_and_nanos(record.get("startTime")),
        ended_at=_seconds_and_nanos(record.get("endTime")),
        failed=table(record, "status").get("code") == 2,
        fingerprint=fingerprint(record),
    )


def _seconds_and_nanos(value: object) -> int | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    seconds, nanos = as_count(value[0]), as_count(value[1])
    if seconds is None or nanos is None:
        raise malformed("a time is not [seconds, nanoseconds]")
    return checked_time(seconds * 1_000_000 + nanos // 1000)


def log_of(part: Part) -> Log:
    """One log record; raises `Rejected`."""
    record = part.record
    attributes = attributes_of(listed(record, "attributes"))
    body = any_value(record["body"]) if isinstance(record.get("body"), dict) else None
    at = nanoseconds_us(record.get("timeUnixNano"))
    seen = nanoseconds_us(record.get("observedTimeUnixNano"))
    return Log(
        hex_id(record.get("traceId"), 16),
        hex_id(record.get("spanId"), 8),
        text(record, "eventName") or text(attributes, "event.name"),
        body,
        attributes,
        attributes_of(listed(part.resource, "attributes")),
        text(part.scope, "name"),
        seen if at is None else at,
        fingerprint(record),
    )
