"""Framing, and what the codec says of bytes that are not exactly one event."""

from typing import Any

import pytest
from trailweave.schemas import events
from trailweave.schemas.codec import (
    CONFLUENT,
    SINGLE_OBJECT,
    Decoder,
    Encoder,
    Head,
    event_checker,
    frame,
    head,
)
from trailweave.schemas.errors import Rejected
from trailweave.schemas.examples import example

ENCODER = Encoder()
REGISTERED = Encoder({kind.name: number for number, kind in enumerate(events.all_types())})
DECODER = Decoder()
CHECKER = event_checker()
TOOL = ENCODER.encode("tool_requested", example("tool_requested"))
SECRET = "hunter2-the-secret"


class Published:
    """Schemas of another version, by key."""

    def __init__(self, schemas: dict[bytes, Any]) -> None:
        self.schemas = schemas
        self.asked = 0

    def schema_of(self, key: bytes) -> Any:
        """See `codec.WriterSchemas`."""
        self.asked += 1
        return self.schemas.get(key)


def refused(decoder: Decoder, value: bytes) -> str:
    """The code with which bytes are refused."""
    with pytest.raises(Rejected) as error:
        decoder.decode(value)
    return error.value.reason.code


def changed(name: str, *, without: str = "", **fields: Any) -> dict[str, Any]:
    """The example with other fields, or without one."""
    record = {**example(name), **fields}
    record.pop(without, None)
    return record


def newer(name: str, *fields: dict[str, Any]) -> events.RecordType:
    """The type as a later version may have it: with more fields at its end."""
    schema = events.event_types()[name].schema
    return events.record_type(name, "", {**schema, "fields": [*schema["fields"], *fields]})


def test_the_framing_names_the_schema_and_where_the_record_starts() -> None:
    assert frame(TOOL) == (events.event_types()["tool_requested"].fingerprint, 10)
    assert frame(CONFLUENT + b"\x00\x00\x00\x07rest") == (b"\x00\x00\x00\x07", 5)


@pytest.mark.parametrize(
    "value", [b"", b"\x00", b"\xc3", SINGLE_OBJECT + b"1234567", b"{}", b"\x01abcdef"]
)
def test_bytes_without_framing_are_refused(value: bytes) -> None:
    assert refused(DECODER, value) == "not_framed"


@pytest.mark.parametrize("name", events.event_names())
def test_every_event_shows_its_identity_without_being_decoded(name: str) -> None:
    record = example(name)
    expected = Head(record["event_id"], record["trace_id"], record["tenant"])
    assert head(ENCODER.encode(name, record)) == expected
    assert head(REGISTERED.encode(name, record)) == expected


@pytest.mark.parametrize(
    "value",
    [TOOL[:10], TOOL[:79], TOOL[:10] + b"\x02" + TOOL[11:], TOOL[:80] + b"\x80" + TOOL[81:]],
)
def test_bytes_that_start_like_no_event_have_no_identity(value: bytes) -> None:
    with pytest.raises(Rejected) as error:
        head(value)

    assert error.value.reason.code == "not_an_event"


def test_a_second_forged_record_behind_the_first_is_refused() -> None:
    forged = ENCODER.encode("tool_executed", example("tool_executed"))

    assert refused(DECODER, TOOL + forged) == "trailing_bytes"
    assert refused(CHECKER, TOOL + TOOL[10:]) == "trailing_bytes"


def test_an_event_that_says_it_is_another_is_refused() -> None:
    record = changed("tool_requested", event_type="tool_executed")

    assert refused(CHECKER, ENCODER.encode("tool_requested", record)) == "kind_mismatch"


def test_an_unpublished_schema_is_unknown() -> None:
    assert refused(DECODER, SINGLE_OBJECT + b"12345678" + TOOL[10:]) == "unknown_schema"


def test_a_newer_version_is_read_as_ours() -> None:
    kind = newer(
        "tool_requested",
        {"name": "colour", "type": ["null", "string"], "default": None, "doc": "-"},
    )
    value = SINGLE_OBJECT + kind.fingerprint + TOOL[10:] + b"\x02\x06red"
    decoder = Decoder(schemas=Published({kind.fingerprint: kind.schema}))

    assert decoder.decode(value) == DECODER.decode(TOOL)


def test_a_published_schema_that_ours_cannot_read_is_refused_and_asked_for_once() -> None:
    kind = newer("tool_requested", {"name": "colour", "type": "float", "doc": "-"})
    published = Published({kind.fingerprint: kind.schema})
    decoder = Decoder(schemas=published)
    value = SINGLE_OBJECT + kind.fingerprint + TOOL[10:] + b"\x00" * 4

    assert [refused(decoder, value) for _ in range(3)] == ["foreign_schema"] * 3
    assert published.asked == 1


@pytest.mark.parametrize(
    "schema", [{}, {"name": 5}, {"name": "tool_requested"}, {"type": "record", "name": "other"}]
)
def test_a_published_schema_of_nothing_known_is_refused(schema: dict[str, Any]) -> None:
    decoder = Decoder(schemas=Published({b"12345678": schema}))

    assert refused(decoder, SINGLE_OBJECT + b"12345678" + TOOL[10:]) == "foreign_schema"


def test_only_wanted_fields_are_built() -> None:
    decoder = Decoder({"tool_requested": ("call_id", "trace_id")})

    assert decoder.decode(TOOL) == (
        "tool_requested",
        {"trace_id": example("tool_requested")["trace_id"], "call_id": "call_71"},
    )
    assert decoder.decode(ENCODER.encode("tool_executed", example("tool_executed")))[1] == {}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (changed("tool_requested", without="tool"), "'tool'"),
        (changed("tool_requested", tool=[SECRET]), "tool"),
        (changed("tool_requested", arguments={"key": SECRET}), "arguments"),
        (changed("tool_requested", attributes={SECRET: 1}), "attributes"),
        (changed("tool_requested", attributes={"key": [SECRET]}), "attributes"),
        (changed("tool_requested", initiator=SECRET), "initiator"),
        (changed("tool_requested", data_categories=SECRET), "data_categories"),
        (
            changed("tool_requested", actor={"kind": "agent", "subject": [SECRET]}),
            "Identity.subject",
        ),
        (changed("tool_requested", attempt=2**40), "attempt"),
        (changed("tool_requested", side_effect="false"), "side_effect"),
        (changed("tool_requested", arguments=SECRET + "\ud800"), "tool_requested"),
        (changed("model_responded", cost_usd=SECRET), "cost_usd"),
        (changed("model_responded", input_tokens=2**70), "input_tokens"),
    ],
)
def test_a_wrong_field_is_named_and_its_value_is_not(record: dict[str, Any], says: str) -> None:
    with pytest.raises(Rejected) as error:
        ENCODER.encode(record["event_type"], record)

    assert error.value.reason.code == "invalid_record"
    assert says in error.value.reason.detail
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "fields", [{"event_id": "short"}, {"trace_id": "ab" * 15}, {"tenant": "t" * 64}]
)
def test_an_identity_that_every_worker_would_refuse_is_not_written(fields: dict[str, str]) -> None:
    with pytest.raises(Rejected, match="invalid_record"):
        ENCODER.encode("tool_requested", changed("tool_requested", **fields))


def test_the_longest_tenant_is_written_and_read() -> None:
    value = ENCODER.encode("tool_requested", changed("tool_requested", tenant="t" * 63))

    assert head(value).tenant == "t" * 63


@pytest.mark.parametrize("cut", range(0, len(TOOL), 41))
def test_a_truncated_event_is_refused(cut: int) -> None:
    assert refused(CHECKER, TOOL[:cut]) in ("not_framed", "truncated")
