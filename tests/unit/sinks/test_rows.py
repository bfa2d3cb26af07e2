"""Rows glued from raw bytes, held against a generic Avro reader."""

import io
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trailweave.schemas import codec, events
from trailweave.schemas.examples import example
from trailweave.schemas.varint import write_varint
from trailweave.sinks import rows, tables
from trailweave.sinks.load_build import Builder, Built, Record, Source

ENCODER = codec.Encoder()
BUILDER = Builder()


def build(name: str, count: int = 1) -> tuple[Built, list[bytes]]:
    record = example(name)
    kind = {**events.event_types(), **events.record_types()}[name]
    key = record.get("trace_id", "").encode()
    values = [ENCODER.encode(name, record)] * count
    source = Source(kind.topic, "00000000-0000-4000-8000-000000000001", 3)
    headers = [("w", b"join"), ("kind", b"chain")]
    records = [Record(70 + i, 1_795_000_000_000 + i, key, v, headers) for i, v in enumerate(values)]
    return BUILDER.build(source, records), values


def container_rows(layout: rows.Layout, blocks: list[bytes]) -> list[dict[str, Any]]:
    found: Any = fastavro.reader(io.BytesIO(layout.header + b"".join(blocks)))
    return list(found)


def read(data: bytes, schema: Any) -> Any:
    return fastavro.schemaless_reader(io.BytesIO(data), schema, None)


@pytest.mark.parametrize("name", events.event_names())
def test_a_generic_reader_finds_place_bytes_and_fields_of_every_event(name: str) -> None:
    built, values = build(name, 3)
    (insert,) = built.inserts

    found = container_rows(insert.layout, list(insert.only(set(insert.places))))

    assert [row["offset"] for row in found] == [70, 71, 72]
    assert [row["record"] for row in found] == values
    assert {row["event_type"] for row in found} == {name}
    assert {row["event_id"] for row in found} == {example(name)["event_id"]}


def test_all_event_types_share_one_layout() -> None:
    layouts = {build(name)[0].inserts[0].layout.part for name in events.event_names()}

    assert len(layouts) == 1


@pytest.mark.parametrize("name", rows.TABLE_OF)
def test_a_generic_reader_finds_every_field_of_other_records(name: str) -> None:
    built, values = build(name)
    insert = built.inserts[0]
    kind = events.record_types()[name]
    record = read(values[0][10:], kind.schema)

    (found,) = container_rows(insert.layout, insert.rows)

    prefix = "letter_" if name == "dead_letter" else ""
    assert found[f"{prefix}offset"] == 70
    assert {key: found[key] for key in record} == record


def test_a_chain_brings_a_row_per_handle() -> None:
    built, _ = build("chain")
    handles = example("chain")["handles"]

    (insert,) = (insert for insert in built.inserts if insert.layout.table == "handles")

    assert handles
    assert insert.places == [(70, ordinal) for ordinal in range(len(handles))]
    found = container_rows(insert.layout, insert.rows)
    assert [row["hash"] for row in found] == [handle["hash"] for handle in handles]


def test_every_column_has_a_source() -> None:
    def computed(table: str) -> set[str]:
        return {column.name for column in tables.columns(table) if column.default}

    for name, table in rows.TABLE_OF.items():
        listed = set(rows.records_of(name, events.record_types()[name].schema).columns)
        assert listed | computed(table) == {column.name for column in tables.columns(table)}

    listed = set(rows.current_events().columns)
    assert listed | computed("events") == {column.name for column in tables.columns("events")}


def test_a_forged_second_record_stays_in_its_block() -> None:
    built, values = build("tool_requested", 3)
    (insert,) = built.inserts
    kind = events.event_names().index("tool_requested")
    place = rows.place_prefix("topic", "00000000-0000-4000-8000-000000000001", 3)
    columns = place + rows.number(70) + rows.number(1) + rows.number(kind)
    forged = values[0] + values[0][10:]
    made = rows.event_block(columns, forged, 10) + rows.event_block(columns, values[0], 10)

    blocks: Any = fastavro.block_reader(io.BytesIO(insert.layout.header + made))
    ids = [[row["event_id"] for row in block] for block in blocks]

    assert ids == [[example("tool_requested")["event_id"]]] * 2


def test_an_older_schema_reads_into_the_same_columns() -> None:
    kind = events.event_types()["tool_requested"]
    older = {
        **kind.schema,
        "fields": [f for f in kind.schema["fields"] if f["name"] not in ("attempt", "runtime")],
    }

    layout = rows.events_of(older)

    assert set(layout.columns) < set(rows.current_events().columns)
    assert {"body.own.call_id", "body.own.tool", "actor_subject", "record"} < set(layout.columns)
    assert layout.part != rows.current_events().part


def test_a_field_of_another_type_is_not_read_into_its_column() -> None:
    kind = events.event_types()["tool_requested"]
    fields = [{**f, "type": "double"} if f["name"] == "tool" else f for f in kind.schema["fields"]]

    layout = rows.events_of({**kind.schema, "fields": fields})

    assert "body.own.tool" not in layout.columns
    assert "body.own.call_id" in layout.columns


@given(st.integers(min_value=0, max_value=2**62))
def test_numbers_are_read_back(value: int) -> None:
    assert read(rows.number(value), "long") == value


@given(st.integers(min_value=0, max_value=2**13 - 1))
def test_small_numbers_are_as_short_as_can_be(value: int) -> None:
    assert rows.number(value) == write_varint(value)
