"""Confluent framing against Confluent's own client: its registry, serializer and deserializer."""

import io
import json
import uuid
from collections.abc import Iterator
from typing import Any

import fastavro
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext
from fastavro.schema import parse_schema
from trailweave.schemas import events
from trailweave.schemas.codec import CONFLUENT, Decoder, Encoder, frame
from trailweave.schemas.errors import Fatal, Retryable
from trailweave.schemas.examples import example
from trailweave.schemas.registry import RegistrySchemas, register_all, subject_of
from trailweave.schemas.standing import CLOCK_SLACK_MS, StandingRule

TYPES = {kind.name: kind for kind in events.all_types()}
PLAIN = Encoder()
LATE = 60_001 + CLOCK_SLACK_MS


@pytest.fixture(scope="module")
def client() -> Iterator[SchemaRegistryClient]:
    """Confluent's registry in memory."""
    with SchemaRegistryClient.new_client({"url": f"mock://{uuid.uuid4()}"}) as registry:
        yield registry


@pytest.fixture(scope="module")
def ids(client: SchemaRegistryClient) -> dict[str, int]:
    """Ids of all our types in it."""
    return register_all(client)


@pytest.fixture(scope="module")
def encoder(ids: dict[str, int]) -> Encoder:
    """Writes with the registry's ids."""
    return Encoder(ids)


@pytest.fixture(scope="module")
def decoder(client: SchemaRegistryClient) -> Decoder:
    """Reads with the registry's schemas."""
    return Decoder(schemas=RegistrySchemas(client))


class Broken:
    """A registry whose every answer is one error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def get_schema(self, _schema_id: int) -> Schema:
        """As the client's."""
        raise self.error

    def register_schema(self, _subject: str, _schema: Schema) -> int:
        """As the client's."""
        raise self.error


def _context(name: str) -> SerializationContext:
    return SerializationContext(TYPES[name].topic, MessageField.VALUE)


def test_subjects_are_named_by_topic_and_record(
    client: SchemaRegistryClient, ids: dict[str, int]
) -> None:
    assert set(client.get_subjects()) == {subject_of(kind) for kind in TYPES.values()}
    assert subject_of(TYPES["tool_requested"]) == "trailweave.tools-trailweave.tool_requested"
    assert register_all(client) == ids


@pytest.mark.parametrize("name", ["tool_requested", "session_ended", "chain", "dead_letter"])
def test_confluents_deserializer_reads_our_bytes(
    name: str, client: SchemaRegistryClient, encoder: Encoder
) -> None:
    value = encoder.encode(name, example(name))
    # Both make datetime objects of times.
    expected = fastavro.schemaless_reader(
        io.BytesIO(value[5:]), parse_schema(TYPES[name].schema), None
    )

    assert AvroDeserializer(client)(value, _context(name)) == expected


@pytest.mark.parametrize("name", events.event_names())
def test_we_read_the_bytes_of_confluents_serializer(
    name: str, client: SchemaRegistryClient, decoder: Decoder
) -> None:
    settings = {"auto.register.schemas": True, "subject.name.strategy": _subject}
    write = AvroSerializer(client, json.dumps(TYPES[name].schema), conf=settings)
    value = write(example(name), _context(name))

    assert decoder.decode(value) == decoder.decode(PLAIN.encode(name, example(name)))


def _subject(context: SerializationContext, record_name: str, *_more: Any) -> str:
    return f"{context.topic}-{record_name}"


def test_our_bytes_name_the_registrys_id(encoder: Encoder, ids: dict[str, int]) -> None:
    value = encoder.encode("tool_requested", example("tool_requested"))

    assert frame(value) == (ids["tool_requested"].to_bytes(4, "big"), 5)


def test_an_id_that_the_registry_has_not_is_waited_for_and_then_unknown(
    client: SchemaRegistryClient,
) -> None:
    schemas = RegistrySchemas(client, rule=StandingRule(wait_ms=60_000))
    key = (9_999).to_bytes(4, "big")

    assert schemas.schema_of(key) is None
    assert schemas.standing(key, 0, 30_000) == "wait"
    assert schemas.standing(key, 0, LATE) == "unknown"
    assert schemas.standing(key, 0, 30_000) == "unknown"


def test_a_registered_id_and_a_built_in_fingerprint_are_known(
    client: SchemaRegistryClient, ids: dict[str, int]
) -> None:
    schemas = RegistrySchemas(client)

    assert schemas.standing(ids["chain"].to_bytes(4, "big"), 0, LATE) == "known"
    assert schemas.standing(TYPES["chain"].fingerprint, 0, 0) == "known"
    assert schemas.standing(b"12345678", 0, LATE) == "unknown"


def test_a_schema_of_somebody_else_is_ignored(client: SchemaRegistryClient) -> None:
    theirs = Schema(
        '{"type": "record", "name": "order", "fields": [{"name": "a", "type": "int"}]}', "AVRO"
    )
    key = client.register_schema("orders-value", theirs).to_bytes(4, "big")
    schemas = RegistrySchemas(client)

    assert schemas.schema_of(key) is None
    assert schemas.standing(key, 0, LATE) == "unknown"


@pytest.mark.parametrize(
    ("error", "reaction"),
    [
        (SchemaRegistryError(500, 50001, "store"), Retryable),
        (SchemaRegistryError(429, 42901, "slow down"), Retryable),
        (SchemaRegistryError(401, 40101, "who"), Fatal),
        (SchemaRegistryError(403, 40301, "no"), Fatal),
        (SchemaRegistryError(409, 40901, "incompatible"), Fatal),
        (ConnectionRefusedError(), Retryable),
        (TimeoutError(), Retryable),
    ],
)
def test_errors_are_translated_by_the_reaction_to_them(
    error: Exception, reaction: type[Exception]
) -> None:
    broken: Any = Broken(error)

    with pytest.raises(reaction, match="couldn't read the schema 7"):
        RegistrySchemas(broken).schema_of((7).to_bytes(4, "big"))
    with pytest.raises(reaction, match="couldn't register"):
        register_all(broken)


def test_a_registry_that_is_away_is_tried_again() -> None:
    settings = {"url": "http://127.0.0.1:1", "max.retries": 0, "timeout": 2}
    with SchemaRegistryClient(settings) as away, pytest.raises(Retryable):
        RegistrySchemas(away).schema_of(CONFLUENT * 4)
