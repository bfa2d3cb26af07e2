"""The readers and writers in C against those in Python, which are the reference."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from array import array
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trailweave.schemas import codec, hashing
from trailweave.schemas.compiled import compile_reader
from trailweave.schemas.compiled_write import Items
from trailweave.schemas.errors import Rejected
from trailweave.schemas.examples import example
from trailweave.schemas.varint import write_varint
from trailweave.stream_processors import chain
from trailweave.stream_processors.chain import Source, read
from trailweave.stream_processors.session import Session

from tests.integration.native import compiled
from tests.unit.schemas.test_compiled import READ, TYPES, WRITE, damaged, random_record
from tests.unit.stream_processors import builders

NAMES = st.sampled_from(sorted(TYPES))
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    with compiled("schemas", "stream_processors", out=tmp_path_factory.mktemp("native")) as found:
        yield found


@pytest.fixture(scope="module")
def readers(native: dict[str, ModuleType]) -> dict[str, Any]:
    return {name: native["reading"].Reader(kind.schema, None) for name, kind in TYPES.items()}


@pytest.fixture(scope="module")
def writers(native: dict[str, ModuleType]) -> dict[str, Any]:
    return {name: native["writing"].Writer(kind.schema) for name, kind in TYPES.items()}


def by_python(name: str, value: bytes) -> dict[str, Any] | None:
    try:
        return READ[name](value, 0)
    except Rejected:
        return None


@pytest.mark.parametrize("name", TYPES)
def test_the_example_is_written_and_read_as_in_python(
    readers: dict[str, Any], writers: dict[str, Any], name: str
) -> None:
    value = WRITE[name](example(name), b"prefix")

    assert writers[name](example(name), b"prefix") == value
    assert readers[name](value, 6) == READ[name](value, 6)


@settings(max_examples=5 * settings().max_examples)
@given(NAMES, SEEDS)
def test_a_random_record_is_written_and_read_as_in_python(
    readers: dict[str, Any], writers: dict[str, Any], name: str, seed: int
) -> None:
    record = random_record(name, seed)
    value = WRITE[name](record, b"prefix")

    assert writers[name](record, b"prefix") == value
    assert readers[name](value, 6) == record


@settings(max_examples=2 * settings().max_examples)
@given(NAMES, SEEDS)
def test_some_fields_are_read_as_in_python(
    native: dict[str, ModuleType], name: str, seed: int
) -> None:
    record = random_record(name, seed)
    rng = random.Random(seed)
    wanted = [field for field in record if rng.random() < 0.3]
    value = WRITE[name](record, b"")
    read = native["reading"].Reader(TYPES[name].schema, wanted)

    assert [read(value, 0) for _ in range(2)] == [{field: record[field] for field in wanted}] * 2


@settings(max_examples=10 * settings().max_examples)
@given(NAMES, SEEDS)
def test_damaged_bytes_that_are_read_are_read_as_in_python(
    readers: dict[str, Any], name: str, seed: int
) -> None:
    rng = random.Random(seed)
    value = damaged(WRITE[name](random_record(name, seed), b""), rng)
    found = readers[name](value, 0)

    # By their texts, for a damaged double may be no number, which equals nothing.
    assert found is None or repr(sorted(found.items())) == repr(
        sorted((by_python(name, value) or {}).items())
    )


@pytest.mark.parametrize(
    "change",
    [
        {"trace_seq": True},
        {"producer_epoch": 2**63},
        {"occurred_at": 1.5},
        {"tool": b"shell"},
        {"tool": "\ud800"},
        {"side_effect": 1},
        {"attempt": 2**31},
        {"data_categories": "abc"},
        {"attributes": {1: "a"}},
        {"attributes": [("a", "b")]},
        {"initiator": "nobody"},
        {"initiator": ["model"]},
        {"actor": None},
        {"signature": "bytes"},
    ],
)
def test_a_value_of_another_type_is_left_to_python(
    writers: dict[str, Any], change: dict[str, Any]
) -> None:
    assert writers["tool_requested"](example("tool_requested") | change, b"") is None


def test_a_field_without_a_default_that_is_missing_is_left_to_python(
    writers: dict[str, Any],
) -> None:
    whole = example("tool_requested")
    lacking = {name: value for name, value in whole.items() if name != "tool"}

    assert writers["tool_requested"](lacking, b"") is None
    assert writers["tool_requested"]([], b"") is None


def test_items_that_are_encoded_already_are_written_as_they_are(writers: dict[str, Any]) -> None:
    text = write_varint(1) + b"a"
    encoded = example("tool_requested") | {"derived_from": Items(write_varint(2) + text + text)}
    plain = example("tool_requested") | {"derived_from": ["a", "a"]}

    assert writers["tool_requested"](encoded, b"") == writers["tool_requested"](plain, b"")


def test_fields_that_repeat_come_as_the_same_objects_to_who_wants_some_only(
    native: dict[str, ModuleType],
) -> None:
    name = "tool_executed"
    values = [
        WRITE[name](example(name) | {"event_id": other * 36, "call_id": other}, b"")
        for other in "ab"
    ]
    some, every = (
        [
            native["reading"].Reader(TYPES[name].schema, wanted)(value, 0)["actor"]
            for value in values
        ]
        for wanted in (("event_id", "actor", "delegation"), None)
    )

    assert some[0] is some[1]
    assert every[0] is not every[1]
    assert every == some


@pytest.fixture
def wrapped(native: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A codec with the module in place."""
    monkeypatch.setattr(codec, "reading", native["reading"])
    monkeypatch.setattr(codec, "writing", native["writing"])
    for kept in (codec._native_reader, codec._own_reader, codec._own_writer):
        kept.cache_clear()
    yield
    for kept in (codec._native_reader, codec._own_reader, codec._own_writer):
        kept.cache_clear()


def test_what_is_left_to_python_is_decided_there(wrapped: None) -> None:
    whole = example("prompt_submitted") | {"derived_from": ["a"]}
    usual = codec.Encoder().encode("prompt_submitted", whole)
    item = write_varint(1) + b"\x02a"
    # The same array in a block that says its size, as other writers have it.
    sized = usual.replace(item, write_varint(-1) + write_varint(2) + b"\x02a", 1)

    assert sized != usual
    assert codec.Decoder().decode(sized) == codec.Decoder().decode(usual)
    with pytest.raises(Rejected, match="bytes follow the record"):
        codec.Decoder().decode(usual + b"\0")
    with pytest.raises(Rejected, match="has a value of another type"):
        codec.Encoder().encode("prompt_submitted", whole | {"role": 1})


def test_some_fields_are_decoded_alike_with_and_without_it(wrapped: None) -> None:
    for name in TYPES:
        value = codec.Encoder().encode(name, example(name))
        wanted = tuple(example(name))[::3]

        _, found = codec.Decoder({name: wanted}).decode(value)
        assert found == compile_reader(TYPES[name].schema, wanted)(value, 10)


# --- hashes --------------------------------------------------------------------------------------


def test_a_root_is_the_one_that_python_finds(native: dict[str, ModuleType]) -> None:
    leaves = [hashlib.sha256(bytes([number])).digest() for number in range(70)]
    root = native["hashing"].merkle_root

    assert [root(leaves[:count]) for count in range(1, 71)] == [
        hashing._merkle_root(leaves[:count]) for count in range(1, 71)
    ]
    assert root([]) is None
    assert root([b"short"]) is None


#: Loads the extension where `hashlib` has no OpenSSL of its own file, as in some Pythons.
WITHOUT_OPENSSL = """
import hashlib, importlib.util, sys, types
sys.modules["_hashlib"] = types.ModuleType("_hashlib")
spec = importlib.util.spec_from_file_location("trailweave.schemas.native.hashing", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
leaves = [bytes(32), bytes([1]) * 32]
print(module.merkle_root(leaves) == hashlib.sha256(b"\\1" + b"".join(leaves)).digest())
"""


def test_hashlib_is_asked_where_its_library_is_not_to_be_found(
    native: dict[str, ModuleType],
) -> None:
    command = [sys.executable, "-c", WITHOUT_OPENSSL, str(native["hashing"].__file__)]

    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


# --- sessions ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_native(native: dict[str, ModuleType]) -> Source:
    """A source that reads sessions in C."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(codec, "reading", native["reading"])
        patched.setattr(chain, "native_session", native["native_session"])
        codec._native_reader.cache_clear()
        made = Source(builders.TOPICS, 0, builders.DECODER, builders.no_other_schemas)
    codec._native_reader.cache_clear()
    assert made.native is not None
    return made


def in_c(session: Session, source: Source) -> Any:
    assert source.native is not None
    return source.native(session.key[:32], session.places, session.times, session.values)


def random_session(seed: int) -> Session:
    """Events of several producers and epochs, some of one time, some without a number."""
    rng = random.Random(seed)
    trace = builders.Trace()
    made = [
        trace.event(
            rng.choice(sorted(builders.REQUIRED)),
            at_s=rng.choice([0, 1, 2, 9_999]),
            producer_id=rng.choice(["agent-1", "agent-2", "ägent", "a"]),
            producer_epoch=rng.choice([1, 1, 2]),
            trace_seq=rng.choice([None, 0, 0, 7, rng.randrange(100)]),
            call_id="c",
            call_id_source="provider",
        )
        for _ in range(rng.randrange(1, 40))
    ]
    rng.shuffle(made)
    session = builders.session_of(made, at_ms=builders.STORED_MS)
    # As a session has them whose chunks came back: not in the order of their places.
    order = list(range(len(made)))
    rng.shuffle(order)
    session.values[:] = [session.values[at] for at in order]
    for column in (session.places, session.times):
        column[:] = array("q", [column[at] for at in order])
    return session


@settings(max_examples=5 * settings().max_examples)
@given(SEEDS)
def test_a_session_is_read_as_in_python(with_native: Source, seed: int) -> None:
    session = random_session(seed)
    found = in_c(session, with_native)
    reference = chain._distinct(session, session.key[:32], builders.source())

    assert found == tuple(reference)[:5]
    assert list(found[1]) == list(reference.by_producer)


FLAWS = {
    "an event twice": lambda made: [*made, made[0]],
    "two events of one id": lambda made: [
        *made,
        builders.Trace().event(made[0].name, **made[0].record | {"agent_id": "another"}),
    ],
    "trailing bytes": lambda made: [*made[1:], replace(made[0], value=made[0].value + b"\0")],
    "a schema of others": lambda made: [
        *made[1:],
        replace(made[0], value=b"\xc3\x01newer!!!" + made[0].value[10:]),
    ],
    "another framing": lambda made: [
        *made[1:],
        replace(made[0], value=b"\0\0\0\0\x07" + made[0].value[10:]),
    ],
    "an id that is no ASCII": lambda made: [
        *made[1:],
        replace(made[0], value=made[0].value[:11] + "é".encode() + made[0].value[13:]),
    ],
    "another topic": lambda made: [*made[1:], replace(made[0], name="tool_executed")],
    "another type": lambda made: [
        *made,
        replace(
            made[0],
            name="credential_renewed",
            value=builders.Trace(number=90).event("credential_renewed").value[:10]
            + builders.Trace(number=91).event("credential_issued").value[10:],
        ),
    ],
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_session_with_a_flaw_is_left_to_python(with_native: Source, flaw: str) -> None:
    made = builders.Trace().whole()

    assert in_c(builders.session_of(made), with_native) is not None
    assert in_c(builders.session_of(FLAWS[flaw](made)), with_native) is None


def test_a_session_of_no_trace_is_left_to_python(with_native: Source) -> None:
    made = builders.Trace(builders.TRACE[:-1] + "G").whole()

    assert in_c(builders.session_of(made), with_native) is None


@pytest.mark.parametrize("occurred_at", [-(2**63), 2**63 - 1])
def test_a_time_whose_difference_overflows_is_left_to_python(
    with_native: Source, occurred_at: int
) -> None:
    trace = builders.Trace()
    session = builders.session_of([trace.event("session_started", occurred_at=occurred_at)])

    assert in_c(session, with_native) is None
    assert bool(read(session, with_native).chain.ahead) is (occurred_at > 0)


def test_a_time_of_the_broker_that_overflows_is_left_to_python(with_native: Source) -> None:
    session = builders.session_of([builders.Trace().event("session_started")], at_ms=2**62)

    assert in_c(session, with_native) is None


def test_what_is_left_to_python_is_read_there(with_native: Source) -> None:
    made = builders.Trace().whole()
    session = builders.session_of([*made, made[0]])

    assert read(session, with_native).chain.duplicates == 1
