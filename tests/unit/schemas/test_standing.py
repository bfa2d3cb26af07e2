"""When a schema counts for an event, and which published schemas are trusted."""

import copy
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trailweave.schemas import events
from trailweave.schemas.codec import Decoder
from trailweave.schemas.errors import Rejected
from trailweave.schemas.schema_topic import schema_messages
from trailweave.schemas.standing import (
    CLOCK_SLACK_MS,
    SCHEMA_BYTES_MAX,
    StandingRule,
    checked_schema,
    verified_schema,
)

RULE = StandingRule(wait_ms=60_000)
AT = 1_000_000
TOOL = events.event_types()["tool_requested"]


def _bytes(schema: Any) -> bytes:
    return json.dumps(schema).encode()


def _refusal(key: bytes, value: bytes) -> str:
    with pytest.raises(Rejected) as error:
        verified_schema(key, value)
    assert error.value.reason.code == "bad_schema"
    return error.value.reason.detail


@pytest.mark.parametrize(
    ("published", "read_at", "standing"),
    [
        (AT - 5, None, "known"),
        (AT + 60_000, None, "known"),
        (AT + 60_000, AT + 900_000, "known"),
        (AT + 60_001, AT + 60_001, "wait"),
        (AT + 60_001, AT + 60_000 + CLOCK_SLACK_MS, "wait"),
        (AT + 60_001, AT + 60_001 + CLOCK_SLACK_MS, "unknown"),
        (None, None, "wait"),
        (None, AT + 60_000 + CLOCK_SLACK_MS, "wait"),
        (None, AT + 60_001 + CLOCK_SLACK_MS, "unknown"),
    ],
)
def test_a_schema_counts_if_it_was_published_in_time(
    published: int | None, read_at: int | None, standing: str
) -> None:
    assert RULE.standing(published, AT, read_at) == standing


@given(
    published=st.integers(0, 200_000),
    recorded=st.integers(0, 100_000),
    reads=st.lists(st.integers(0, 400_000), min_size=1),
)
def test_whoever_asks_and_whenever_no_two_final_answers_differ(
    published: int, recorded: int, reads: list[int]
) -> None:
    answers = {RULE.standing(published if published <= at else None, recorded, at) for at in reads}

    assert len(answers - {"wait"}) <= 1


@pytest.mark.parametrize("number", range(len(schema_messages())))
def test_what_we_publish_is_accepted(number: int) -> None:
    key, value = schema_messages()[number]

    assert events.fingerprint_of(verified_schema(key, value)) == key


def test_a_schema_under_another_fingerprint_is_refused() -> None:
    assert "its fingerprint is" in _refusal(b"12345678", _bytes(TOOL.schema))
    assert "8 bytes" in _refusal(b"1234", _bytes(TOOL.schema))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "does not parse"),
        (b"\xff", "does not parse"),
        (b"[]", "not the schema of a record"),
        (b'"string"', "not the schema of a record"),
        (_bytes({"type": "enum", "name": "E", "symbols": ["a"]}), "not the schema of a record"),
        (_bytes({"type": "record"}), "not the schema of a record"),
        (_bytes({"type": "record", "name": "r", "fields": 5}), "does not parse"),
        (_bytes({"type": "record", "name": "r"}), "does not parse"),
        (_bytes({"type": "record", "name": "tool_requested"}), "this version can't read it"),
        (_bytes({**TOOL.schema, "fields": [{"name": "a", "type": "nothing"}]}), "does not parse"),
        (b'{"type":"record","fields":' + b"[" * 100_000, "does not parse"),
        (b" " * (SCHEMA_BYTES_MAX + 1), "are over"),
    ],
)
def test_what_is_no_schema_is_refused(value: bytes, why: str) -> None:
    assert why in _refusal(b"12345678", value)


def test_a_schema_that_this_version_cannot_read_is_refused() -> None:
    fields = [field for field in TOOL.schema["fields"] if field["name"] != "tool"]
    kind = events.record_type("tool_requested", "", {**TOOL.schema, "fields": fields})

    assert "tool is missing" in _refusal(kind.fingerprint, _bytes(kind.schema))


def test_an_event_type_of_a_later_version_needs_an_events_head() -> None:
    later = {**TOOL.schema, "name": "tool_discovered"}
    kind = events.record_type("tool_discovered", "", later)
    headless = events.record_type("x", "", {**later, "fields": later["fields"][1:]})

    assert verified_schema(kind.fingerprint, _bytes(later))["name"] == "tool_discovered"
    assert "first fields" in _refusal(headless.fingerprint, _bytes(headless.schema))


JUNK: tuple[Any, ...] = (None, 5, "", "string", "Identity", [], {}, ["null"], {"type": "record"})


def _spoiled(schema: Any, rng: random.Random) -> Any:
    """The schema with one part, somewhere, replaced by junk, removed or repeated."""
    path: list[Any] = [copy.deepcopy(schema)]
    root = path[0]
    while rng.random() < 0.9 and isinstance(path[-1], (dict, list)) and path[-1]:
        node = path[-1]
        key = rng.choice(sorted(node)) if isinstance(node, dict) else rng.randrange(len(node))
        if not isinstance(node[key], (dict, list)) or rng.random() < 0.15:
            node[key] = rng.choice(JUNK)
            break
        path.append(node[key])
    if isinstance(path[-1], list) and path[-1] and rng.random() < 0.5:
        path[-1].append(rng.choice(path[-1]))
    return root


class _Spoiled:
    """A source that checks what it has, as all sources do."""

    def schema_of(self, key: bytes) -> Any:
        """See `codec.WriterSchemas`."""
        try:
            return checked_schema(_bytes(_spoiled(TOOL.schema, random.Random(key))))
        except Rejected:
            return None


DECODER = Decoder({"tool_requested": ("event_id", "actor", "event_type")}, _Spoiled())


@given(st.binary(min_size=8, max_size=8))
def test_a_spoiled_schema_is_refused_or_can_be_read(key: bytes) -> None:
    try:
        DECODER.knows(key)
    except Rejected as error:
        assert error.reason.code == "foreign_schema"  # noqa: PT017 - either answer is right
