"""The event types and record types, read from the `.avsc` files beside this module.

An event schema is composed: the envelope's `head` fields, the event's own fields, the envelope's
`tail` fields. Every event therefore starts with the same fields, and ends its head with
`event_type`, whose Avro encoding is also the branch number of a union of all own fields: that is
how ClickHouse can read every event type from one container without anybody decoding it before.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

#: A schema, or a part of one, as JSON.
Json = dict[str, Any]

#: Topic of the compacted registry of writer schemas, key = fingerprint.
SCHEMAS_TOPIC: Final = "trailweave.schemas"
SESSIONS_TOPIC: Final = "trailweave.sessions"
FINDINGS_TOPIC: Final = "trailweave.findings"
DEAD_LETTERS_TOPIC: Final = "trailweave.dead-letters"
HEARTBEATS_TOPIC: Final = "trailweave.heartbeats"
OPEN_SESSIONS_TOPIC: Final = "trailweave.open-sessions"
SEALS_TOPIC: Final = "trailweave.seals"

#: Records that are not events of a trace.
RECORD_NAMES: Final = ("chain", "finding", "dead_letter", "producer_heartbeat", "session_chunk")

NAMESPACE: Final = "trailweave"


@dataclass(frozen=True, slots=True)
class RecordType:
    """One Avro record type: its whole schema, and the eight bytes that name it on the wire."""

    name: str
    topic: str
    schema: Json
    #: CRC-64-AVRO of the parsing canonical form, little endian, as single-object encoding has it.
    fingerprint: bytes
    #: `schema` as fastavro wants it, logical types left out: times stay integers (micros, millis).
    parsed: Any


@dataclass(frozen=True, slots=True)
class Event:
    """An event before it is bytes: its type and its fields; those with a default may be missing."""

    name: str
    record: Json


def _read(name: str) -> Json:
    text = resources.files(__package__).joinpath("avro", f"{name}.avsc").read_text("utf-8")
    return dict(_interned(json.loads(text)))


def _interned(part: Any) -> Any:
    """With every text as the same object that a literal in the code is: records are asked for their
    fields, and the values of enums compared, by identity then.
    """
    if isinstance(part, dict):
        return {sys.intern(key): _interned(value) for key, value in part.items()}
    if isinstance(part, list):
        return list(map(_interned, part))
    return sys.intern(part) if isinstance(part, str) else part


@cache
def _envelope() -> Json:
    return _read("envelope")


def envelope_fields(place: str) -> list[Json]:
    """The envelope's fields that come before (`head`) or after (`tail`) an event's own."""
    return [field for field in _envelope()["fields"] if field["place"] == place]


@cache
def event_names() -> tuple[str, ...]:
    """Every event type, in the order of the `event_type` enum."""
    return tuple(envelope_fields("head")[-1]["type"]["symbols"])


def own_fields(name: str) -> list[Json]:
    """The fields that only event type `name` has."""
    return list(_read(name)["fields"])


def strip_logical_types(schema: Any) -> Any:
    """The same binary layout without logical types, so that decoding builds no datetime objects."""
    if isinstance(schema, dict):
        return {k: strip_logical_types(v) for k, v in schema.items() if k != "logicalType"}
    if isinstance(schema, list):
        return [strip_logical_types(part) for part in schema]
    return schema


def named_once(schema: Any, seen: set[str] | None = None) -> Any:
    """The schema with every repeated definition of a named type replaced by its name."""
    seen = set() if seen is None else seen
    if isinstance(schema, list):
        return [named_once(part, seen) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in ("record", "enum", "fixed"):
        if schema["name"] in seen:
            return schema["name"]
        seen.add(schema["name"])
    return {
        key: named_once(value, seen) if key in ("type", "items", "values", "fields") else value
        for key, value in schema.items()
    }


def fingerprint_of(schema: Json) -> bytes:
    """The eight bytes that stand for `schema` in single-object encoding."""
    digest = fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")
    return bytes.fromhex(digest)[::-1] if isinstance(digest, str) else bytes(digest)


def record_type(name: str, topic: str, schema: Json) -> RecordType:
    """A type from its schema; `schema` may be one that another version wrote."""
    return RecordType(
        name, topic, schema, fingerprint_of(schema), parse_schema(strip_logical_types(schema))
    )


def event_schema(name: str) -> Json:
    """The whole schema of one event type, as producers in any language need it."""
    own = _read(name)
    fields = [*envelope_fields("head"), *own["fields"], *envelope_fields("tail")]
    schema = {
        "type": "record",
        "name": name,
        "namespace": NAMESPACE,
        "doc": own["doc"],
        "fields": fields,
    }
    return dict(named_once(schema))


@cache
def event_types() -> dict[str, RecordType]:
    """All event types by name."""
    return {
        name: record_type(name, _read(name)["topic"], event_schema(name)) for name in event_names()
    }


@cache
def record_types() -> dict[str, RecordType]:
    """The record types that are not events of a trace, by name."""
    return {
        name: record_type(name, _read(name)["topic"], dict(named_once(_read(name))))
        for name in RECORD_NAMES
    }


def all_types() -> Iterator[RecordType]:
    """Every type that this version writes."""
    yield from event_types().values()
    yield from record_types().values()


@cache
def fingerprints() -> frozenset[bytes]:
    """Of the schemas that this version writes."""
    return frozenset(kind.fingerprint for kind in all_types())


@cache
def event_topics() -> tuple[str, ...]:
    """The event topics in a fixed order: a lane's partitions are numbered by it."""
    return tuple(dict.fromkeys(kind.topic for kind in event_types().values()))
