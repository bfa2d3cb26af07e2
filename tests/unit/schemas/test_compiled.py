"""The compiled readers and writers against fastavro, which is the reference."""

import io
import random
import string
from typing import Any

import fastavro
import pytest
from fastavro.schema import parse_schema
from hypothesis import given, settings
from hypothesis import strategies as st
from trailweave.schemas import events
from trailweave.schemas.compiled import (
    Json,
    Reader,
    compile_reader,
    definition,
    named_types,
)
from trailweave.schemas.compiled_write import Items, compile_writer
from trailweave.schemas.errors import Rejected
from trailweave.schemas.examples import example
from trailweave.schemas.varint import write_varint

TYPES = {kind.name: kind for kind in events.all_types()}
WRITE = {name: compile_writer(kind.schema) for name, kind in TYPES.items()}
READ = {name: compile_reader(kind.schema) for name, kind in TYPES.items()}
#: What a worker asks of an event that it has not looked at: nothing, but that it is one.
FIRST = {name: kind.schema["fields"][0]["name"] for name, kind in TYPES.items()}
CHECK = {name: compile_reader(kind.schema, (FIRST[name],)) for name, kind in TYPES.items()}

LETTERS = string.ascii_letters + "äß漢🙂\x00"
names = st.sampled_from(sorted(TYPES))
seeds = st.integers(0, 2**32 - 1)


def random_value(schema: Any, types: dict[str, Json], rng: random.Random) -> Any:
    """A value of the schema: small, but with the edges of every type."""
    schema = definition(schema, types)
    if isinstance(schema, list):
        return None if rng.random() < 0.5 else random_value(schema[1], types, rng)
    if isinstance(schema, dict):
        count = rng.choice((0, 0, 1, 2))
        if schema["type"] == "record":
            return {f["name"]: random_value(f["type"], types, rng) for f in schema["fields"]}
        if schema["type"] == "enum":
            return rng.choice(schema["symbols"])
        if schema["type"] == "array":
            return [random_value(schema["items"], types, rng) for _ in range(count)]
        return {f"k{i}": random_value(schema["values"], types, rng) for i in range(count)}
    return PRIMITIVES[schema](rng)


PRIMITIVES: dict[str, Any] = {
    "string": lambda rng: "".join(rng.choices(LETTERS, k=rng.choice((0, 1, 7, 63, 64, 130)))),
    "bytes": lambda rng: rng.randbytes(rng.choice((0, 1, 32, 64))),
    "long": lambda rng: rng.choice((0, -1, 63, 64, rng.randrange(-(2**63), 2**63), 2**63 - 1)),
    "int": lambda rng: rng.choice((0, -1, rng.randrange(-(2**31), 2**31), 2**31 - 1)),
    "boolean": lambda rng: rng.random() < 0.5,
    "double": lambda rng: rng.choice((0.0, -1.5, rng.uniform(-1e300, 1e300))),
}


def random_record(name: str, seed: int) -> Json:
    """A record of a type, with no default left out."""
    schema = TYPES[name].schema
    return dict(random_value(schema, named_types(schema), random.Random(seed)))


def by_fastavro(name: str, record: Json) -> bytes:
    """What the reference writes."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, TYPES[name].parsed, record)
    return out.getvalue()


def read_by_fastavro(name: str, value: bytes) -> tuple[Any, int]:
    """What the reference reads, and how many bytes it left over."""
    source = io.BytesIO(value)
    record = fastavro.schemaless_reader(source, TYPES[name].parsed, None)
    return record, len(value) - source.tell()


@pytest.mark.parametrize("name", TYPES)
def test_the_example_is_written_byte_for_byte_as_fastavro_writes_it(name: str) -> None:
    assert WRITE[name](example(name), b"") == by_fastavro(name, example(name))


@pytest.mark.parametrize("name", TYPES)
def test_the_example_is_read_as_fastavro_reads_it(name: str) -> None:
    value = by_fastavro(name, example(name))

    assert READ[name](value, 0) == read_by_fastavro(name, value)[0]


@settings(max_examples=2 * settings().max_examples)
@given(names, seeds)
def test_a_random_record_is_written_and_read_as_by_fastavro(name: str, seed: int) -> None:
    record = random_record(name, seed)
    value = WRITE[name](record, b"prefix")

    assert value[6:] == by_fastavro(name, record)
    assert READ[name](value, 6) == record


@settings(max_examples=settings().max_examples // 2)
@given(names, seeds)
def test_some_fields_read_the_same_as_all(name: str, seed: int) -> None:
    record = random_record(name, seed)
    rng = random.Random(seed)
    wanted = [field for field in record if rng.random() < 0.3]
    value = WRITE[name](record, b"")

    assert compile_reader(TYPES[name].schema, wanted)(value, 0) == {
        field: record[field] for field in wanted
    }


def damaged(value: bytes, rng: random.Random) -> bytes:
    """The bytes with one thing wrong, mostly."""
    place = rng.randrange(len(value))
    how = rng.randrange(5)
    if how == 0:
        return value[:place]
    if how == 1:
        return value + rng.randbytes(rng.randint(1, 12))
    if how == 2:
        return value + value
    if how == 3:
        return value[:place] + rng.randbytes(rng.randint(1, 3)) + value[place:]
    changed = bytearray(value)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] = rng.choice(
            (0, 1, 2, 127, 128, 255, rng.getrandbits(8))
        )
    return bytes(changed)


def _answer(read: Reader, value: bytes) -> tuple[dict[str, Any] | None, str]:
    """What was read, and the code of the refusal or `accepted`."""
    try:
        return read(value, 0), "accepted"
    except Rejected as error:
        return None, error.reason.code


@settings(max_examples=6 * settings().max_examples)
@given(names, seeds)
def test_damaged_bytes_are_rejected_or_read_as_fastavro_reads_them(name: str, seed: int) -> None:
    rng = random.Random(seed)
    value = damaged(WRITE[name](random_record(name, seed), b""), rng)
    found, code = _answer(READ[name], value)

    assert code in ("accepted", "truncated", "trailing_bytes", "not_avro")
    assert (_answer(CHECK[name], value)[0] is None) is (found is None)
    if found is not None:
        # By repr, for a damaged double may have become a NaN.
        assert repr(read_by_fastavro(name, value)) == repr((found, 0))


# --- by hand: what no writer here writes -----------------------------------------------------


def _record(*types: Any) -> Json:
    fields = [{"name": f"f{i}", "type": kind, "doc": "-"} for i, kind in enumerate(types)]
    return {"type": "record", "name": "r", "namespace": "trailweave", "fields": fields}


STRINGS = {"type": "array", "items": "string"}
LONGS = {"type": "map", "values": "long"}
COLOUR = {"type": "enum", "name": "Colour", "symbols": ["red", "blue"]}


def _codes(schema: Json, value: bytes) -> set[str]:
    """The answers of a reader of all fields, of none, and of none that looks at all text."""
    return {_answer(compile_reader(schema, wanted), value)[1] for wanted in (None, ())}


def test_a_block_with_a_negative_count_and_its_size_is_read() -> None:
    items = b"\x02a\x02b"
    value = write_varint(-2) + write_varint(len(items)) + items + b"\x02\x02c" + b"\x00"

    assert compile_reader(_record(STRINGS))(value, 0) == {"f0": ["a", "b", "c"]}
    assert compile_reader(_record(STRINGS), ())(value, 0) == {}
    assert fastavro.schemaless_reader(io.BytesIO(value), parse_schema(_record(STRINGS)), None) == {
        "f0": ["a", "b", "c"]
    }


@pytest.mark.parametrize("size", [0, 3, 5, -4, 2**62])
def test_a_block_whose_size_is_not_that_of_its_items_is_refused(size: int) -> None:
    value = write_varint(-2) + write_varint(size) + b"\x02a\x02b" + b"\x00"

    assert _codes(_record(STRINGS), value) == {"not_avro"}


def test_a_zero_count_in_two_bytes_is_refused() -> None:
    assert _codes(_record(STRINGS), b"\x80\x00\x00") == {"not_avro"}


@pytest.mark.parametrize("count", [2**40, -(2**40), -(2**63)])
def test_a_block_of_more_items_than_bytes_is_refused_at_once(count: int) -> None:
    value = write_varint(count) + write_varint(2) + b"\x02a"

    assert _codes(_record(STRINGS), value) == {"truncated"}
    assert _codes(_record(LONGS), value) == {"truncated"}


@pytest.mark.parametrize(
    ("kind", "value", "code"),
    [
        ("long", b"\xff" * 9 + b"\x01", "accepted"),
        ("long", b"\xff" * 9 + b"\x02", "not_avro"),
        ("long", b"\x80" * 10 + b"\x00", "not_avro"),
        ("long", b"\x80\x80\x00", "accepted"),
        ("long", b"\x80" * 4, "truncated"),
        ("int", b"\xff\xff\xff\xff\x0f", "accepted"),
        ("int", b"\xff\xff\xff\xff\x1f", "not_avro"),
        ("int", b"\x80" * 6 + b"\x01", "not_avro"),
        ("boolean", b"\x02", "not_avro"),
        ("string", b"\x01", "not_avro"),
        ("string", b"\x04a", "truncated"),
        ("string", b"\x82\x00a", "accepted"),
        ("string", b"\x02\xff", "not_avro"),
        ("string", b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01a", "truncated"),
        ("bytes", b"\x02\xff", "accepted"),
        ("double", b"\x00" * 7, "truncated"),
        (COLOUR, b"\x04", "not_avro"),
        (COLOUR, b"\x01", "not_avro"),
        (COLOUR, b"\x82\x00", "accepted"),
        (["null", "string"], b"\x04", "not_avro"),
        (["null", "string"], b"\x80\x00", "not_avro"),
        (["null", "string"], b"\x00\x00", "trailing_bytes"),
        (["null", "string"], b"", "truncated"),
    ],
)
def test_an_odd_value_gets_the_same_answer_however_little_is_read(
    kind: Any, value: bytes, code: str
) -> None:
    assert _codes(_record(kind), value) == {code}


def test_unwanted_text_that_is_not_utf_8_is_refused_by_a_check() -> None:
    schema = _record("string", "string", "long")
    long_time = write_varint(1_772_442_000_000_000)

    assert _codes(schema, b"\x02\xc3\x02b" + long_time) == {"not_avro"}
    assert _codes(schema, b"\x04\xc3\xa4\x02b" + long_time) == {"accepted"}


def test_fields_of_no_concern_are_skipped_in_one_go_only_if_all_are_empty() -> None:
    schema = _record("string", *[["null", "string"]] * 4, "string")
    read = compile_reader(schema, ("f0", "f5"))

    assert read(b"\x02a\x00\x00\x00\x00\x02b", 0) == {"f0": "a", "f5": "b"}
    assert read(b"\x02a\x00\x02\x02x\x00\x00\x02b", 0) == {"f0": "a", "f5": "b"}
    with pytest.raises(Rejected):
        read(b"\x02a\x00\x00\x00", 0)


def test_defaults_of_missing_fields_are_not_shared_between_records() -> None:
    theirs = _record("string")
    ours = {
        **theirs,
        "fields": [*theirs["fields"], {"name": "more", "type": STRINGS, "default": []}],
    }
    read = compile_reader(theirs, None, ours)
    first, second = read(b"\x00", 0), read(b"\x00", 0)
    first["more"].append("changed")

    assert second == {"f0": "", "more": []}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("long", 2**63),
        ("long", -(2**63) - 1),
        ("int", 2**31),
        ("boolean", "false"),
        ("double", "1.5"),
        ("string", b"bytes"),
        ("string", "\ud800"),
        ("bytes", "text"),
        (COLOUR, "green"),
        (STRINGS, "letters"),
        (STRINGS, {"a": 1}),
        (LONGS, ["a"]),
    ],
)
def test_a_value_of_another_type_is_not_written(kind: Any, value: Any) -> None:
    from trailweave.schemas.codec import UNWRITABLE

    with pytest.raises(UNWRITABLE):
        compile_writer(_record(kind))({"f0": value}, b"")


def test_items_that_are_encoded_already_are_written_as_they_are() -> None:
    chain = example("chain")
    places = chain["evidence"]
    ready = b"".join(
        write_string(place["topic"])
        + write_varint(place["partition"])
        + write_varint(place["offset"])
        + write_string(place["event_id"])
        + write_varint(len(place["leaf"]))
        + place["leaf"]
        for place in places
    )

    written = WRITE["chain"]({**chain, "evidence": Items(write_varint(len(places)) + ready)}, b"")

    assert written == WRITE["chain"](chain, b"")


def write_string(text: str) -> bytes:
    return write_varint(len(text.encode())) + text.encode()
