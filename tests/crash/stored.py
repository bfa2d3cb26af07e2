"""What the checker reads: Kafka's topics and ClickHouse's tables, as any outsider would.

Read in full and kept, so that a test may damage what was read and see the checker notice.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import fastavro
from trailweave.schemas import events

from tests.integration.join_kafka import Place, read_all

Row = tuple[Any, ...]
#: Marker and fingerprint of Avro single-object encoding.
_MAGIC: Final = b"\xc3\x01"
_HEAD: Final = 10
_SCHEMAS: Final = {kind.fingerprint: kind for kind in events.all_types()}

#: Per table: topic, partition, offset, ordinal, and then what must agree with the record there.
QUERIES: Final = {
    "events": "topic, partition, offset, ordinal, hex(SHA256(record))",
    "chains": "topic, partition, offset, ordinal, tenant, trace_id, events, duplicates, hex(root)",
    "handles": "topic, partition, offset, ordinal, kind, hash, event_id",
    "findings": "topic, partition, offset, ordinal, finding_id",
    "dead_letters": "letter_topic, letter_partition, letter_offset, ordinal, hex(SHA256(value))",
}


@dataclass(frozen=True, slots=True)
class Input:
    """A record of an event topic."""

    key: bytes
    value: bytes
    recorded_ms: int


@dataclass(frozen=True, slots=True)
class Output:
    """A committed record of the join's, and where it lies."""

    place: Place
    record: dict[str, Any]
    headers: dict[str, bytes]


@dataclass(frozen=True)
class Read:
    """Everything that was read."""

    inputs: dict[Place, Input] = field(default_factory=dict)
    chains: list[Output] = field(default_factory=list)
    findings: list[Output] = field(default_factory=list)
    letters: list[Output] = field(default_factory=list)
    tables: dict[str, list[Row]] = field(default_factory=dict)


def decode(value: bytes) -> tuple[str, dict[str, Any]]:
    """Name and record, by the reference reader; raises KeyError for a schema that is not ours."""
    assert value[:2] == _MAGIC
    kind = _SCHEMAS[value[2:_HEAD]]
    record = fastavro.schemaless_reader(io.BytesIO(value[_HEAD:]), kind.parsed, None)
    assert isinstance(record, dict)
    return kind.name, record


def read_everything(address: str, rows: Callable[[str], list[Row]]) -> Read:
    """From both engines; `rows` asks ClickHouse."""
    found = Read()
    for message in read_all(address, list(events.event_topics())):
        place = (message.topic(), message.partition(), message.offset())
        found.inputs[place] = Input(message.key(), message.value(), message.timestamp()[1])
    outputs = {
        events.SESSIONS_TOPIC: found.chains,
        events.FINDINGS_TOPIC: found.findings,
        events.DEAD_LETTERS_TOPIC: found.letters,
    }
    for message in read_all(address, list(outputs)):
        place = (message.topic(), message.partition(), message.offset())
        _, record = decode(message.value())
        headers = dict(message.headers() or ())
        outputs[message.topic()].append(Output(place, record, headers))
    for table, columns in QUERIES.items():
        found.tables[table] = rows(f"SELECT {columns} FROM {table}")  # noqa: S608 - our own text
    return found


# --- hashes, made anew from the definition and not by `schemas/hashing.py` -----------------------


def leaf_of(place: Place, record: Input) -> bytes:
    """SHA-256 over 0x00, length of the topic (2 bytes), topic, partition (4), offset (8), SHA-256
    of the key, SHA-256 of the value."""
    topic, partition, offset = place
    name = topic.encode()
    where = len(name).to_bytes(2, "big") + name
    where += partition.to_bytes(4, "big") + offset.to_bytes(8, "big")
    what = hashlib.sha256(record.key).digest() + hashlib.sha256(record.value).digest()
    return hashlib.sha256(b"\x00" + where + what).digest()


def root_of(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, as it is written there."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    left = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + root_of(leaves[:left]) + root_of(leaves[left:])).digest()
