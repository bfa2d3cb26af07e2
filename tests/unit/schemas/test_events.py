"""The schema files and their examples, as a set."""

import sys
from importlib import resources
from typing import Any

import fastavro
import pytest
from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form
from trailweave.schemas import events
from trailweave.schemas.examples import example
from trailweave.schemas.topics import load_topics

TYPES = {kind.name: kind for kind in events.all_types()}


def _files(folder: str, suffix: str) -> set[str]:
    entries = resources.files("trailweave.schemas").joinpath(folder).iterdir()
    return {entry.name.removesuffix(suffix) for entry in entries if entry.name.endswith(suffix)}


def _fields(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [field for part in schema for field in _fields(part)]
    if not isinstance(schema, dict):
        return []
    own = list(schema.get("fields", ()))
    inner = [schema.get(key) for key in ("type", "items", "values")]
    return own + [f for part in [*inner, *[o["type"] for o in own]] for f in _fields(part)]


def test_every_schema_file_is_a_type_or_the_envelope() -> None:
    assert _files("avro", ".avsc") == {*TYPES, "envelope"}


def test_every_type_has_an_example_and_every_example_a_type() -> None:
    assert _files("examples", ".json") == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_the_example_is_valid_and_uses_known_fields_only(name: str) -> None:
    record = example(name)
    names = {field["name"] for field in TYPES[name].schema["fields"]}

    assert set(record) <= names
    assert fastavro.validate(
        {**{f["name"]: f.get("default") for f in TYPES[name].schema["fields"]}, **record},
        TYPES[name].parsed,
    )


@pytest.mark.parametrize("name", TYPES)
def test_every_field_at_every_depth_says_what_it_is(name: str) -> None:
    assert TYPES[name].schema["doc"]
    assert [field["name"] for field in _fields(TYPES[name].schema) if not field.get("doc")] == []


@pytest.mark.parametrize("name", TYPES)
def test_every_field_that_may_be_missing_has_a_default_of_its_type(name: str) -> None:
    for field in _fields(TYPES[name].schema):
        nullable = isinstance(field["type"], list)

        assert not nullable or field.get("default", "none") is None, field["name"]


@pytest.mark.parametrize("name", events.event_names())
def test_an_event_starts_with_its_identity_and_says_its_type(name: str) -> None:
    fields = events.event_types()[name].schema["fields"]

    assert [field["name"] for field in fields[:3]] == ["event_id", "trace_id", "tenant"]
    assert example(name)["event_type"] == name


@pytest.mark.parametrize("name", events.event_names())
def test_content_comes_after_everything_that_verdicts_read(name: str) -> None:
    content = [bool(field.get("content")) for field in events.own_fields(name)]
    # A task is short, and named first because people look for it first.

    assert name == "session_started" or content == sorted(content)


@pytest.mark.parametrize("name", TYPES)
def test_the_fingerprint_is_the_specifications(name: str) -> None:
    parsed = parse_schema(TYPES[name].schema)
    digest = fingerprint(to_parsing_canonical_form(parsed), "CRC-64-AVRO")

    assert TYPES[name].fingerprint == bytes.fromhex(str(digest))[::-1]


def test_no_two_types_share_a_fingerprint() -> None:
    assert len({kind.fingerprint for kind in TYPES.values()}) == len(TYPES)


def test_every_type_is_carried_by_the_topic_it_names() -> None:
    carried = {schema: topic.name for topic in load_topics() for schema in topic.schemas}

    assert carried == {name: kind.topic for name, kind in TYPES.items()}


def test_names_and_symbols_are_the_objects_that_literals_are() -> None:
    schema = events.event_types()["tool_executed"].schema
    (status,) = [field for field in schema["fields"] if field["name"] == "status"]

    for text in (status["name"], *status["type"]["symbols"]):
        # A text of its own, as one that was read: interned, it is the one that was before.
        assert text is sys.intern(bytes(text, "ascii").decode())
