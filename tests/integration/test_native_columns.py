"""Events by column against the same events as Avro, which ClickHouse reads: the reference."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trailweave.schemas import codec, events
from trailweave.schemas.examples import example
from trailweave.sinks import columns, tables
from trailweave.sinks.clickhouse import Store, apply_tables, connect
from trailweave.sinks.load_build import DAY_MS, Builder, Built, Record, Source

from tests.integration.native import compiled
from tests.unit.schemas.test_compiled import TYPES, WRITE, damaged, random_record
from tests.unit.sinks import load_world, test_load_model
from tests.unit.sinks.native_format import rows_of

ENCODER = codec.Encoder()
NOW_MS = int(time.time() * 1000)
SEEDS = st.integers(0, 2**32 - 1)
EVENTS = st.sampled_from(events.event_names())


@pytest.fixture(scope="module", autouse=True)
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with (
        compiled("schemas", "sinks", out=tmp_path_factory.mktemp("native")) as found,
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setattr(columns, "native_columns", found["native_columns"])
        forget_the_plan()
        yield found["native_columns"]
    forget_the_plan()


def forget_the_plan() -> None:
    for kept in (columns.layout, columns._plan):
        kept.cache_clear()


def source_of(name: str) -> Source:
    return Source(events.event_types()[name].topic, "00000000-0000-4000-8000-00000000000f", 2)


def record_of(name: str, offset: int, changes: dict[str, Any] | None = None) -> Record:
    made = example(name) | (changes or {})
    return Record(offset, NOW_MS, made["trace_id"].encode(), ENCODER.encode(name, made))


def random_event(name: str, seed: int) -> Record:
    """Any values in the fields that may have any."""
    rng = random.Random(seed)
    trace = f"{rng.getrandbits(128):032x}"
    fixed = {"event_id": f"{rng.getrandbits(128):036x}", "trace_id": trace, "event_type": name}
    made = (
        random_record(name, seed) | fixed | {"tenant": rng.choice(("", "acme", "Größe", "a" * 63))}
    )
    framed = codec.SINGLE_OBJECT + TYPES[name].fingerprint
    return Record(rng.getrandbits(40), NOW_MS, trace.encode(), WRITE[name](made, framed))


def by_avro(source: Source, records: list[Record]) -> Built:
    """What is built where nothing was compiled."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(columns, "native_columns", None)
        return Builder().build(source, records)


def is_by_column(built: Built) -> list[bool]:
    return [insert.by_column is not None for insert in built.inserts]


# --- what ClickHouse makes of it -------------------------------------------------------------


@pytest.fixture
def both(database: str) -> Iterator[tuple[Any, Store, Store]]:
    """A client, and two sets of tables: for columns, and for Avro."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(connect(database)))
        stores = []
        for name in (f"{database}_columns", f"{database}_avro"):
            client.command(f"CREATE DATABASE {name.rpartition('/')[2]}")
            stack.callback(client.command, f"DROP DATABASE {name.rpartition('/')[2]} SYNC")
            with contextlib.closing(connect(name)) as own:
                apply_tables(own, tables.PROFILES["ai_act"])
            stores.append(stack.enter_context(contextlib.closing(Store(name, 20.0))))
        yield client, *stores


def rows_in(client: Any, database: str) -> list[tuple[Any, ...]]:
    """All of them, the hash of the record that ClickHouse makes with them."""
    name = database.rpartition("/")[2]
    sql = f"SELECT * FROM {name}.events ORDER BY topic, offset"  # noqa: S608 - our own name
    return list(client.query(sql, query_formats={"DateTime*": "int"}).result_rows)


def test_clickhouse_has_the_same_rows_either_way(
    both: tuple[Any, Store, Store], database: str
) -> None:
    client, by_column, as_avro = both
    for name in events.event_names():
        source = source_of(name)
        # No event has the offset of another.
        first = events.event_names().index(name) << 50
        records = [record_of(name, first)]
        records += [random_event(name, first + seed) for seed in range(40)]
        records += [
            record_of(name, first + 1, {"occurred_at": at, "trace_seq": None})
            for at in (-(2**63), -1, 0, 2**63 - 1)
        ]
        built = Builder().build(source, records)
        assert is_by_column(built) == [True]
        for number, insert in enumerate(built.inserts):
            by_column.insert(*insert.whole(), f"{name} {number}")
        for number, insert in enumerate(by_avro(source, records).inserts):
            as_avro.insert(*insert.whole(), f"{name} {number}")

    found = rows_in(client, f"{database}_columns")
    assert len(found) == 45 * len(events.event_names())
    assert found == rows_in(client, f"{database}_avro")


def test_one_token_stands_for_both(both: tuple[Any, Store, Store], database: str) -> None:
    """An insert as Avro may have been left behind by a version or a build without columns."""
    client, store, _ = both
    records = [record_of("tool_requested", offset) for offset in range(5)]
    (insert,) = Builder().build(source_of("tool_requested"), records).inserts
    (old,) = by_avro(source_of("tool_requested"), records).inserts

    assert insert.part == old.part
    store.insert(*old.whole(), insert.part)
    store.insert(*insert.whole(), insert.part)

    assert len(rows_in(client, f"{database}_columns")) == 5


# --- what goes by column ---------------------------------------------------------------------


def test_every_type_goes_by_column_and_all_of_its_columns_are_in_the_table() -> None:
    for name in events.event_names():
        built = Builder().build(source_of(name), [record_of(name, 7)])

        (insert,) = built.inserts
        layout, block = insert.whole()
        (row,) = rows_of(block)
        assert layout.format == "Native"
        assert tuple(row) == layout.columns
        assert (row["event_type"], row["offset"], row["partition"]) == (name, 7, 2)
        # What is left out has a default.
        left_out = {c.name for c in tables.columns("events") if "." not in c.name} - set(row)
        assert left_out == {"ordinal", "record_hash"}


@settings(max_examples=3 * settings().max_examples)
@given(EVENTS, SEEDS)
def test_rows_alone_are_what_they_are_as_avro(name: str, seed: int) -> None:
    records = [random_event(name, seed + n) for n in range(3)]
    (insert,) = Builder().build(source_of(name), records).inserts
    (reference,) = by_avro(source_of(name), records).inserts
    places = {insert.places[0], insert.places[2]}

    assert insert.by_column is not None
    assert list(insert.only(places)) == list(reference.only(places))


@settings(max_examples=20 * settings().max_examples)
@given(EVENTS, SEEDS)
def test_damaged_bytes_leave_no_trace_in_the_rows_around_them(name: str, seed: int) -> None:
    before, good, after = (random_event(name, seed + n) for n in range(3))
    bad = good._replace(value=damaged(good.value or b"", random.Random(seed)))
    records = [before, bad, after]
    built, reference = Builder().build(source_of(name), records), by_avro(source_of(name), records)

    assert built.rejected == reference.rejected
    assert [insert.places for insert in built.inserts] == [i.places for i in reference.inserts]
    (insert,) = built.inserts
    if built.rejected:
        (without,) = Builder().build(source_of(name), [before, after]).inserts
        assert is_by_column(built) == [True]
        assert rows_of(insert.whole()[1]) == rows_of(without.whole()[1])
    elif insert.by_column is None:
        assert insert.rows == reference.inserts[0].rows


def oddly_encoded(offset: int) -> Record:
    """An event whose array says how many bytes it has, as Avro allows."""
    record = record_of("tool_requested", offset, {"data_categories": ["pii"]})
    usual, odd = b"\x02\x06pii\x00", b"\x01\x08\x06pii\x00"
    assert (record.value or b"").count(usual) == 1
    return record._replace(value=(record.value or b"").replace(usual, odd))


@pytest.mark.parametrize("odd_at", [0, 1, 2])
def test_an_event_that_is_left_to_python_takes_all_rows_of_its_insert_along(odd_at: int) -> None:
    """A token stands for the same rows whoever makes them."""
    records = [record_of("tool_requested", offset) for offset in range(3)]
    records[odd_at] = oddly_encoded(odd_at)
    source = source_of("tool_requested")

    built = Builder().build(source, records)

    assert is_by_column(built) == [False]
    assert built == by_avro(source, records)


REFUSED: dict[str, Callable[[Any], Record]] = {
    "wrong_key": lambda record: record._replace(key=b"0" * 32),
    "wrong_topic": lambda _: record_of("prompt_submitted", 1),
    "no_value": lambda record: record._replace(value=None),
    "not_framed": lambda record: record._replace(value=b"hello"),
    "kind_mismatch": lambda record: record._replace(
        value=WRITE["tool_requested"](
            example("tool_requested") | {"event_type": "tool_executed"}, record.value[:10]
        )
    ),
    "not_an_event": lambda record: record._replace(
        key=b"X" * 32, value=record.value.replace(record.key, b"X" * 32)
    ),
}


@pytest.mark.parametrize("code", REFUSED)
def test_what_python_refuses_is_in_no_column(code: str) -> None:
    records = [record_of("tool_requested", offset) for offset in range(3)]
    records[1] = REFUSED[code](records[1])
    source = source_of("tool_requested")

    built = Builder().build(source, records)

    assert built.rejected == by_avro(source, records).rejected
    assert [insert.places for insert in built.inserts] == [[(0, 0), (2, 0)]]
    assert is_by_column(built) == [True]


def test_every_day_has_columns_of_its_own() -> None:
    records = [
        record_of("tool_requested", n)._replace(recorded_at=n % 2 * DAY_MS) for n in range(6)
    ]

    built = Builder().build(source_of("tool_requested"), records)

    offsets = [[row["offset"] for row in rows_of(insert.whole()[1])] for insert in built.inserts]
    assert offsets == [[0, 2, 4], [1, 3, 5]]


def test_many_terms_are_told_apart() -> None:
    """Numbers of one, of two and of four bytes."""
    for count in (3, 300, 70_000):
        records = [
            record_of(
                "tool_requested", n, {"agent_id": f"agent-{n}"} if n % 30 else {"agent_id": None}
            )
            for n in range(count)
        ]

        (insert,) = Builder().build(source_of("tool_requested"), records).inserts

        found = [row["agent_id"] for row in rows_of(insert.whole()[1])]
        assert found == [f"agent-{n}" if n % 30 else "" for n in range(count)]


def test_a_field_of_another_type_is_refused_when_the_plan_is_made(native: ModuleType) -> None:
    schema = {"type": "record", "name": "t", "fields": [{"name": "tool", "type": "long"}]}

    with pytest.raises(TypeError, match="the field tool does not go into"):
        native.Plan({"t": (schema, {("tool",): "tool"})}, [("tool", "String")])


def test_the_protocol_holds_by_column() -> None:
    load_world.pool.cache_clear()
    try:
        wrong = [seed for seed in range(60) if test_load_model.fails(seed, test_load_model.Rules())]
    finally:
        load_world.pool.cache_clear()

    assert wrong == []
