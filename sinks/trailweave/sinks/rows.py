"""Rows for ClickHouse: the bytes of a Kafka record glued behind the columns of its place.

An Avro record's encoding is the concatenation of its fields' encodings. So a row is the encoded
columns (topic, offset, ...) followed by the record's own bytes, and one schema describes both:
nothing is decoded here. For events, the index of the enum `event_type`, where the envelope's head
ends, is also the branch number of a union of all types' own fields; one layout reads every type.

Each row is an Avro block of its own. A block carries its size, so whatever an event's bytes hold
behind or short of one record can never be read as, or from, another event's row.
Pure; called by `load_plan`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final, Literal

from trailweave.schemas import events
from trailweave.schemas.compiled import Json, named_types, short_name
from trailweave.schemas.varint import write_varint
from trailweave.sinks import tables

#: Separates blocks of a container; its content means nothing.
SYNC: Final = bytes(range(16))

_PRIMITIVE: Final = frozenset(
    ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
)
#: Records whose fields become fields of the row: `actor.subject` is the column `actor_subject`.
_FLAT: Final = {
    "actor": "actor",
    "reporter": "reporter",
    "correlation": "correlation",
    "by": "approver",
    "requested_by": "requester",
}
#: Fields of different types that answer the same question in one column.
_RENAMED: Final = {"downstream_request_id": "request_id"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How ClickHouse reads a container: into which columns, by which schema.

    `part` names the layout within a range. It is the fingerprint of the schema, so that a token
    never stands for two layouts, not even across an upgrade between an intent and its redo.
    """

    table: str
    part: str
    columns: tuple[str, ...]
    #: The start of every container of this layout: of Avro, a file header.
    header: bytes
    format: Literal["Avro", "Native"] = "Avro"

    def statement(self) -> str:
        """The INSERT that the container's bytes follow."""
        names = ", ".join(f"`{name}`" for name in self.columns)
        return f"INSERT INTO {self.table} ({names}) FORMAT {self.format}"


# --- the bytes of one row --------------------------------------------------------------------

#: The two low groups of a varint that has more than two.
_LOW: Final = tuple(bytes((n & 127 | 128, n >> 7 | 128)) for n in range(1 << 14))
_SHORT: Final = tuple(write_varint(n) for n in range(1 << 13))


@lru_cache(maxsize=4096)  # offsets and times of one range share their high bits
def _high(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def number(value: int) -> bytes:
    """Avro's encoding of a long that is not negative."""
    if value < 1 << 13:
        return _SHORT[value]
    zigzag = value << 1
    return _LOW[zigzag & 0x3FFF] + _high(zigzag >> 14)


def text(value: bytes) -> bytes:
    """Avro's encoding of a string or of bytes."""
    return number(len(value)) + value


def place_prefix(topic: str, topic_id: str, partition: int) -> bytes:
    """The columns that all rows of a partition share."""
    return text(topic.encode()) + text(topic_id.encode()) + number(partition)


def block(columns: bytes, record: bytes) -> bytes:
    """The block of one row: its columns, then the record without its framing."""
    return b"".join((_ONE, number(len(columns) + len(record)), columns, record, SYNC))


def event_block(columns: bytes, value: bytes, start: int) -> bytes:
    """The same for an event: all of its bytes are a column, too; its record begins at `start`."""
    columns += number(len(value))
    size = number(len(columns) + 2 * len(value) - start)
    return b"".join((_ONE, size, columns, value, value[start:], SYNC))


#: Rows of a block.
_ONE: Final = number(1)


# --- layouts ---------------------------------------------------------------------------------

_LONG: Final = "long"
_MILLIS: Final = {"type": "long", "logicalType": "timestamp-millis"}
_PLACE: Final = {
    "topic": "string",
    "topic_id": "string",
    "partition": _LONG,
    "offset": _LONG,
    "recorded_at": _MILLIS,
}
#: The columns in front of the glued record, in the order in which `load_plan` writes them.
_ROW_FIELDS: Final[dict[str, Json]] = {
    "events": {
        **_PLACE,
        "event_type": {
            "type": "enum",
            "name": "trailweave.RowEventType",
            "symbols": list(events.event_names()),
        },
        "record": "bytes",
    },
    "chains": {**_PLACE, "w": "string", "kind": "string"},
    "findings": _PLACE,
    "heartbeats": _PLACE,
    "dead_letters": {f"letter_{name}": kind for name, kind in _PLACE.items()},
    "handles": {
        **_PLACE,
        "ordinal": _LONG,
        "tenant": "string",
        "trace_id": "string",
        "kind": "string",
        "hash": "string",
        "event_id": "string",
    },
}

#: The table of every record type that is not an event.
TABLE_OF: Final = {
    "chain": "chains",
    "finding": "findings",
    "producer_heartbeat": "heartbeats",
    "dead_letter": "dead_letters",
}


@cache
def current_events() -> Layout:
    """The layout of every event type of this version."""
    body = [
        _record(f"t{index}.own", _own(events.own_fields(name), our_types()))
        for index, name in enumerate(events.event_names())
    ]
    head = _own(events.envelope_fields("head")[:-1], our_types())
    return _layout("events", [*head, {"name": "body", "type": body}])


def events_of(schema: Json) -> Layout:
    """The layout of one event type as another version or program wrote it."""
    known = named_types(schema)
    names = [field["name"] for field in schema["fields"]]
    ends = names.index("event_type") + 1 if "event_type" in names else len(names)
    head = _own(schema["fields"][:ends], known)
    own = _record("t.own", _own(schema["fields"][ends:], known))
    # Nested as deep as in the union, so that ClickHouse finds the fields at the same paths.
    body = {"name": "body", "type": _record("t.body", [{"name": "own", "type": own}])}
    return _layout("events", [*head, body])


def records_of(name: str, schema: Json) -> Layout:
    """The layout of a record type that is not an event."""
    fields = [
        {"name": field["name"], "type": _expand(field["type"], named_types(schema))}
        for field in schema["fields"]
    ]
    return _layout(TABLE_OF[name], fields)


@cache
def handles() -> Layout:
    """The layout of the rows that `load_plan` makes of a chain's handles."""
    return _layout("handles", [])


def _layout(table: str, fields: list[Json]) -> Layout:
    own = [{"name": name, "type": kind} for name, kind in _ROW_FIELDS[table].items()]
    taken = set(_ROW_FIELDS[table])
    # A writer's field may have the name of a row column; no column is read from it.
    free = [
        {**field, "name": f"writer_{field['name']}"} if field["name"] in taken else field
        for field in fields
    ]
    row = _record("trailweave.row", [*own, *free])
    schema = dict(events.named_once(row))
    listed = tuple(
        column.name
        for column in tables.columns(table)
        if (kinds := list(_at(row, column.name.split("."))))
        and all(_fits(kind, column.type) for kind in kinds)
    )
    return Layout(table, events.fingerprint_of(schema).hex(), listed, _container_header(schema))


def _container_header(schema: Json) -> bytes:
    written = json.dumps(schema, separators=(",", ":")).encode()
    entries = text(b"avro.schema") + text(written) + text(b"avro.codec") + text(b"null")
    return b"Obj\1" + number(2) + entries + b"\0" + SYNC


def _record(name: str, fields: list[Json]) -> Json:
    return {"type": "record", "name": name, "fields": fields}


@cache
def our_types() -> dict[str, Json]:
    """The named types of this version's events."""
    found: dict[str, Json] = {}
    for kind in events.event_types().values():
        named_types(kind.schema, found)
    return found


def _expand(schema: Any, known: dict[str, Any]) -> Any:
    """The same binary layout, every name replaced by its definition, every int a long.

    Our checker reads an int as a long, ClickHouse would refuse one that needs more than 32 bits:
    with one type in both, what the checker accepts is accepted there.
    """
    if isinstance(schema, list):
        return [_expand(part, known) for part in schema]
    if isinstance(schema, str):
        if schema in _PRIMITIVE:
            return _LONG if schema == "int" else schema
        return _expand(known[short_name(schema)], known)
    kind = schema["type"]
    if kind == "record":
        fields = [
            {"name": field["name"], "type": _expand(field["type"], known)}
            for field in schema["fields"]
        ]
        return _record(_full_name(schema), fields)
    if kind == "enum":
        return {"type": "enum", "name": _full_name(schema), "symbols": schema["symbols"]}
    if kind == "fixed":
        return {"type": "fixed", "name": _full_name(schema), "size": schema["size"]}
    if kind == "array":
        return {"type": "array", "items": _expand(schema["items"], known)}
    if kind == "map":
        return {"type": "map", "values": _expand(schema["values"], known)}
    if kind in ("int", "long"):
        logical = {"logicalType": schema["logicalType"]} if "logicalType" in schema else {}
        return {"type": _LONG, **logical}
    return _expand(kind, known)


def _full_name(schema: Json) -> str:
    return f"{events.NAMESPACE}.{schema['name'].rpartition('.')[2]}"


def _own(fields: Iterable[Json], known: dict[str, Any]) -> list[Json]:
    """Expanded fields, under the names and at the depth at which columns look for them."""
    out: list[Json] = []
    for field in fields:
        name = _RENAMED.get(field["name"], field["name"])
        kind = _expand(field["type"], known)
        if name in _FLAT and isinstance(kind, dict) and kind["type"] == "record":
            # A record is its fields one after the other: taking it apart changes no byte.
            out += [{**part, "name": f"{_FLAT[name]}_{part['name']}"} for part in kind["fields"]]
        else:
            out.append({"name": name, "type": kind})
    return out


def places(field: Json, known: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The path of each value of a field, and the path at which columns look for it: see `_own`."""
    name = _RENAMED.get(field["name"]) or str(field["name"])
    kind = _expand(field["type"], known)
    for branch in kind if isinstance(kind, list) else [kind]:
        if isinstance(branch, dict) and branch["type"] == "record":
            prefix = f"{name}.{short_name(branch['name'])}." if branch is not kind else f"{name}."
            if name in _FLAT and branch is kind:
                prefix = f"{_FLAT[name]}_"
            for part in branch["fields"]:
                yield (field["name"], part["name"]), prefix + part["name"]
        else:
            yield (field["name"],), name


def _at(schema: Any, path: list[str]) -> Iterator[Any]:
    """The types that ClickHouse's reader finds at a column's path: by field, then by branch."""
    if not path:
        yield schema
    elif isinstance(schema, list):
        for branch in schema:
            if isinstance(branch, dict) and branch.get("name", "").endswith(f".{path[0]}"):
                yield from _at(branch, path[1:])
    elif isinstance(schema, dict) and schema["type"] == "record":
        for field in schema["fields"]:
            if field["name"] == path[0]:
                yield from _at(field["type"], path[1:])


_SCALARS: Final = {
    "String": ("string", "bytes", "enum", "fixed"),
    "UUID": ("string",),
    "Int32": ("long",),
    "Int64": ("long",),
    "UInt32": ("long",),
    "Float64": ("double", "float"),
    "Bool": ("boolean",),
}


def _fits(kind: Any, column: str) -> bool:
    """Whether ClickHouse reads the Avro type into the column type."""
    if isinstance(kind, list):
        return len(kind) == 2 and kind[0] == "null" and _fits(kind[1], column)
    outer, _, inner = column.partition("(")
    arguments = tables.split_arguments(inner.removesuffix(")")) if inner else []
    name = kind["type"] if isinstance(kind, dict) else kind
    if outer in ("LowCardinality", "Nullable"):
        return _fits(kind, arguments[0])
    if outer == "DateTime64":
        logical = {"3": "timestamp-millis", "6": "timestamp-micros"}[arguments[0]]
        return isinstance(kind, dict) and kind.get("logicalType") == logical
    if outer == "Array":
        return name == "array" and _fits(kind["items"], arguments[0])
    if outer == "Map":
        return name == "map" and _fits(kind["values"], arguments[1])
    if outer == "Tuple":
        fields = {f["name"]: f["type"] for f in kind["fields"]} if name == "record" else {}
        wanted = [element.split(None, 1) for element in arguments]
        return all(key in fields and _fits(fields[key], type_) for key, type_ in wanted)
    return name in _SCALARS[outer]
