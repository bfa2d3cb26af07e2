"""The readers and writers in C against those in Python, which are the reference."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trailweave.schemas import codec
from trailweave.schemas.compiled import compile_reader
from trailweave.schemas.compiled_write import Items
from trailweave.schemas.errors import Rejected
from trailweave.schemas.examples import example
from trailweave.schemas.varint import write_varint

from tests.unit.schemas.test_compiled import READ, TYPES, WRITE, damaged, random_record

ROOT = Path(__file__).parents[2]
HOOK = ROOT / "deploy" / "wheel" / "compile_hook.py"
NAMES = st.sampled_from(sorted(TYPES))
SEEDS = st.integers(0, 2**32 - 1)


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module as a wheel has it."""
    from setuptools.errors import BaseError

    name = "trailweave.schemas.native"
    source = ROOT / "schemas" / "trailweave" / "schemas" / "native.pyx"
    try:
        built = load("compile_hook", HOOK).compiled(name, source, tmp_path_factory.mktemp("native"))
    except BaseError as error:
        pytest.skip(f"no C compiler, or no headers of Python: {error}")
    return load(name, built)


@pytest.fixture(scope="module")
def readers(native: ModuleType) -> dict[str, Any]:
    return {name: native.Reader(kind.schema, None) for name, kind in TYPES.items()}


@pytest.fixture(scope="module")
def writers(native: ModuleType) -> dict[str, Any]:
    return {name: native.Writer(kind.schema) for name, kind in TYPES.items()}


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
def test_some_fields_are_read_as_in_python(native: ModuleType, name: str, seed: int) -> None:
    record = random_record(name, seed)
    rng = random.Random(seed)
    wanted = [field for field in record if rng.random() < 0.3]
    value = WRITE[name](record, b"")
    read = native.Reader(TYPES[name].schema, wanted)

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
    native: ModuleType,
) -> None:
    name = "tool_executed"
    values = [
        WRITE[name](example(name) | {"event_id": other * 36, "call_id": other}, b"")
        for other in "ab"
    ]
    some, every = (
        [native.Reader(TYPES[name].schema, wanted)(value, 0)["actor"] for value in values]
        for wanted in (("event_id", "actor", "delegation"), None)
    )

    assert some[0] is some[1]
    assert every[0] is not every[1]
    assert every == some


@pytest.fixture
def wrapped(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A codec with the module in place."""
    monkeypatch.setattr(codec, "native", native)
    codec._own_reader.cache_clear()
    codec._own_writer.cache_clear()
    yield
    codec._own_reader.cache_clear()
    codec._own_writer.cache_clear()


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
