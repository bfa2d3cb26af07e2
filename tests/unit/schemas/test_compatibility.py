"""Version 1 and the current version read each other.

`tests/golden/schemas-1` holds the schemas of version 1 as released, written by
`python -m trailweave.schemas.export tests/golden/schemas-1`; a later version gets its own folder.
"""

import copy
import io
import json
from pathlib import Path
from typing import Any

import fastavro
import pytest
from trailweave.schemas import events
from trailweave.schemas.codec import SINGLE_OBJECT, Decoder
from trailweave.schemas.compatibility import incompatibility
from trailweave.schemas.compiled import Json, compile_reader
from trailweave.schemas.compiled_write import compile_writer
from trailweave.schemas.examples import example
from trailweave.schemas.export import export

GOLDEN = Path(__file__).parents[2] / "golden" / "schemas-1"
TYPES = {kind.name: kind for kind in events.all_types()}
RELEASED = {
    path.stem: events.record_type(path.stem, "", json.loads(path.read_text("utf-8")))
    for path in sorted(GOLDEN.glob("*.avsc"))
}


class Released:
    """Version 1's schemas as a schema source gives them."""

    def schema_of(self, key: bytes) -> Json | None:
        """See `codec.WriterSchemas`."""
        return next((k.schema for k in RELEASED.values() if k.fingerprint == key), None)


DECODER = Decoder(schemas=Released())


def test_no_released_type_is_gone() -> None:
    assert set(RELEASED) <= set(TYPES)


def test_the_export_writes_every_type_whole(tmp_path: Path) -> None:
    paths = export(tmp_path / "out")

    assert [path.stem for path in paths] == list(TYPES)
    for path in paths:
        schema = json.loads(path.read_text("utf-8"))
        assert events.fingerprint_of(schema) == TYPES[path.stem].fingerprint


@pytest.mark.parametrize("name", RELEASED)
def test_both_versions_can_read_each_other_by_their_schemas(name: str) -> None:
    assert incompatibility(RELEASED[name].schema, TYPES[name].schema) is None
    assert incompatibility(TYPES[name].schema, RELEASED[name].schema) is None


@pytest.mark.parametrize("name", RELEASED)
def test_we_read_what_version_1_wrote_as_fastavro_resolves_it(name: str) -> None:
    known = {field["name"] for field in RELEASED[name].schema["fields"]}
    record = {key: value for key, value in example(name).items() if key in known}
    bare = compile_writer(RELEASED[name].schema)(record, b"")
    framed = SINGLE_OBJECT + RELEASED[name].fingerprint + bare

    resolved = fastavro.schemaless_reader(
        io.BytesIO(bare), RELEASED[name].parsed, TYPES[name].parsed
    )
    assert DECODER.decode(framed) == (name, resolved)


@pytest.mark.parametrize("name", RELEASED)
def test_version_1_reads_what_we_write_as_fastavro_resolves_it(name: str) -> None:
    value = compile_writer(TYPES[name].schema)(example(name), b"")
    read = compile_reader(TYPES[name].schema, None, RELEASED[name].schema)

    resolved = fastavro.schemaless_reader(
        io.BytesIO(value), TYPES[name].parsed, RELEASED[name].parsed
    )
    assert read(value, 0) == resolved


# --- what may change, and what may not -------------------------------------------------------


def _field(name: str, kind: Any, **more: Any) -> Json:
    return {"name": name, "type": kind, "doc": "-", **more}


def _ours() -> Json:
    return copy.deepcopy(TYPES["tool_requested"].schema)


def _place(schema: Json, name: str) -> int:
    return [field["name"] for field in schema["fields"]].index(name)


def _with(name: str, **changes: Any) -> Json:
    schema = _ours()
    schema["fields"][_place(schema, name)].update(changes)
    return schema


def _without(name: str) -> Json:
    schema = _ours()
    del schema["fields"][_place(schema, name)]
    return schema


def _swapped(first: str, second: str) -> Json:
    schema = _ours()
    fields, a, b = schema["fields"], _place(schema, first), _place(schema, second)
    fields[a], fields[b] = fields[b], fields[a]
    return schema


def _plus(*fields: Json, at: int | None = None) -> Json:
    schema = _ours()
    place = len(schema["fields"]) if at is None else at
    schema["fields"][place:place] = fields
    return schema


def _within_actor(**more: Any) -> Json:
    schema = _ours()
    actor = schema["fields"][_place(schema, "actor")]["type"]
    actor["fields"].append(_field("rank", "string", **more))
    return schema


def _nested(levels: int) -> Any:
    kind: Any = "string"
    for _ in range(levels):
        kind = {"type": "array", "items": kind}
    return kind


def _bomb() -> Json:
    records: list[Json] = [
        {
            "type": "record",
            "name": f"B{i}",
            "fields": [_field(f"x{j}", f"B{i + 1}") for j in range(9)],
        }
        for i in range(8)
    ]
    kind: Any = "string"
    for record in reversed(records):
        record["fields"][0]["type"] = kind
        for field in record["fields"][1:]:
            field["type"] = kind if isinstance(kind, str) else kind["name"]
        kind = record
    return _plus(_field("bomb", kind))


COLOURS = {"type": "enum", "name": "Colour", "symbols": ["red"]}


@pytest.mark.parametrize(
    "theirs",
    [
        _ours(),
        _plus(_field("more", "string")),
        _plus(_field("more", COLOURS), at=5),
        _without("server"),
        _without("correlation"),
        _with("attempt", type="int"),
        _with("tool", type="string", doc="another text"),
        _within_actor(default=""),
    ],
)
def test_what_a_version_may_change(theirs: Json) -> None:
    assert incompatibility(theirs, _ours()) is None


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        (_without("tool"), "tool is missing and has no default"),
        (_with("tool", type="long"), "tool is long, not string"),
        (_with("tool", type="bytes"), "tool is bytes, not string"),
        (_with("tool", type=["null", "string"]), "tool may be null"),
        (_with("server", type=["string", "null"]), "server is a union"),
        (_with("server", type=["null", "long"]), "server is long, not string"),
        (_with("attempt", type="long"), "attempt is long, not int"),
        (_with("actor", type="string"), "actor is string, not record"),
        (_with("event_type", type=COLOURS), "event_type has other symbols"),
        (_swapped("event_id", "trace_id"), "another order"),
        (_swapped("producer_id", "environment"), "another order"),
        (_plus(_field("zeroth", "string"), at=0), "first fields"),
        (_plus(_field("more", "float")), "float"),
        (_plus(_field("more", ["null", "int", "string"])), "a union"),
        (_plus(_field("more", {"type": "fixed", "name": "F", "size": 4})), "fixed"),
        (_plus(_field("more", {"type": "record", "name": "E", "fields": []})), "no fields"),
        (_plus(_field("more", _nested(20))), "nested too deeply"),
        (_plus(_field("more", "tool_requested")), "nested too deeply"),
        (_bomb(), "nested too deeply"),
        ({**_ours(), "name": "tool_executed"}, "not the schema of a tool_requested"),
        ({**_ours(), "namespace": "elsewhere"}, "not the schema of a tool_requested"),
        ({"type": "record", "name": "trailweave.tool_requested"}, "not laid out"),
        ({**_ours(), "fields": "none"}, "not laid out"),
    ],
)
def test_what_a_version_may_not_change(theirs: Json, why: str) -> None:
    assert why in str(incompatibility(theirs, _ours()))


def test_a_new_field_without_a_default_cannot_be_read_from_version_1() -> None:
    ours = _plus(_field("more", "string"))

    assert "more is missing" in str(incompatibility(RELEASED["tool_requested"].schema, ours))


def test_a_new_symbol_reads_as_our_default_and_a_new_inner_field_is_left_out() -> None:
    theirs = _within_actor(default="")
    actor = theirs["fields"][_place(theirs, "actor")]["type"]
    actor["fields"][0]["type"]["symbols"].append("swarm")
    record = example("tool_requested")
    record["actor"] = {**record["actor"], "kind": "swarm", "rank": "high"}
    record["reporter"] = {**record["reporter"], "rank": "low"}
    record["sponsor"] = {**record["sponsor"], "rank": "low"}
    value = compile_writer(theirs)(record, b"")
    found = compile_reader(theirs, ("actor",), _ours())(value, 0)["actor"]

    assert incompatibility(theirs, _ours()) is None
    assert found["kind"] == "unknown"
    assert "rank" not in found
