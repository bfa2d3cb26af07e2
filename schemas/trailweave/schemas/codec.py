"""Bytes on the wire: framing, encoding, and decoding whatever version wrote them.

Two framings, told apart by the first byte: Avro single-object encoding (C3 01, then the schema's
fingerprint) and the Confluent wire format (00, then the registry's schema id). Behind either come
event_id, trace_id and tenant at fixed places, so an event can be grouped without decoding it.
Pure: what a fingerprint or an id stands for is asked of a `WriterSchemas`.
"""

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Protocol

from trailweave.schemas import events
from trailweave.schemas.compatibility import incompatibility
from trailweave.schemas.compiled import Json, Reader, compile_reader, short_name
from trailweave.schemas.compiled_write import Writer, compile_writer
from trailweave.schemas.errors import Rejected
from trailweave.schemas.layouts import remembering

try:
    from trailweave.schemas.native import reading, writing
except ImportError:  # a checkout, or a wheel that was built without a C compiler
    reading = writing = None  # type: ignore[assignment]

SINGLE_OBJECT: Final = b"\xc3\x01"
CONFLUENT: Final = b"\x00"

#: What follows an event's framing: length 36, event id, length 32, trace id, length of the tenant.
EVENT_ID_BYTES: Final = 36
TRACE_ID_BYTES: Final = 32
TENANT_BYTES_MAX: Final = 63  # so that its length is one byte and its place fixed
_HEAD_BYTES: Final = 1 + EVENT_ID_BYTES + 1 + TRACE_ID_BYTES + 1

#: An event larger than this is refused by the producer. Kafka's default broker limit is 1,048,588
#: bytes for a batch of records, and the framing of batch and record needs a few hundred of them.
EVENT_BYTES_MAX: Final = 1_000_000


class WriterSchemas(Protocol):
    """Schemas of other versions and other programs, by what frames carry.

    `schema_of` gives the schema behind a fingerprint (8 bytes) or registry id (4 bytes), or None
    if nobody has published it. It may block on the network and raises `Retryable` if it is away.
    """

    def schema_of(self, key: bytes) -> Json | None: ...


class NoSchemas:
    """Knows only what this version writes."""

    def schema_of(self, key: bytes) -> Json | None:  # noqa: ARG002 - the protocol's argument
        return None


def frame(value: bytes) -> tuple[bytes, int]:
    """What names the writer's schema (8 or 4 bytes), and where the record starts.

    Raises `Rejected` (`not_framed`) for bytes with neither framing.
    """
    if value[:2] == SINGLE_OBJECT and len(value) >= 10:
        return value[2:10], 10
    if value[:1] == CONFLUENT and len(value) >= 5:
        return value[1:5], 5
    raise Rejected("not_framed", "neither Avro single-object encoding nor Confluent framing")


@dataclass(frozen=True, slots=True)
class Head:
    """What every event shows without being decoded."""

    event_id: str
    trace_id: str
    tenant: str


def head(value: bytes) -> Head:
    """The identity of an event; raises `Rejected` when the bytes can't be an event's."""
    _, start = frame(value)
    end = start + _HEAD_BYTES
    if len(value) < end or value[start] != 72 or value[start + 37] != 64:
        raise Rejected("not_an_event", "event_id and trace_id are not where an event has them")
    length = value[end - 1]
    if length & 1 or length > 2 * TENANT_BYTES_MAX or len(value) < end + (length >> 1):
        raise Rejected("not_an_event", f"the tenant is missing or over {TENANT_BYTES_MAX} bytes")
    try:
        return Head(
            value[start + 1 : start + 37].decode("ascii"),
            value[start + 38 : start + 70].decode("ascii"),
            value[end : end + (length >> 1)].decode(),
        )
    except UnicodeDecodeError:
        raise Rejected("not_an_event", "event_id, trace_id or tenant is not text") from None


#: What a compiled writer raises for a value of another type.
UNWRITABLE: Final = (
    KeyError,
    AttributeError,
    TypeError,
    ValueError,
    OverflowError,
    struct.error,
)


class Encoder:
    """Writes every type of this version, framed.

    `schema_ids` (type name -> Confluent schema id) switches to Confluent framing; see `registry`.
    """

    def __init__(self, schema_ids: Mapping[str, int] | None = None) -> None:
        self._writers: dict[str, tuple[Writer, bytes, events.RecordType]] = {}
        self._events = frozenset(events.event_names())
        for kind in events.all_types():
            prefix = SINGLE_OBJECT + kind.fingerprint
            if schema_ids is not None:
                prefix = CONFLUENT + schema_ids[kind.name].to_bytes(4, "big")
            self._writers[kind.name] = (_own_writer(kind.name), prefix, kind)

    def encode(self, name: str, record: Mapping[str, Any]) -> bytes:
        """The framed bytes of one record; fields with a default may be missing.

        Raises `Rejected` (`invalid_record`) naming the field that is missing or of another type.
        """
        writer, prefix, kind = self._writers[name]
        try:
            value = writer(record, prefix)  # type: ignore[arg-type]
        except UNWRITABLE as error:
            raise _explain(kind, record, error) from None
        if name in self._events:
            _check_head(value, len(prefix))
        return value


def _check_head(value: bytes, start: int) -> None:
    """Refuse here, where the author is told, what every worker would refuse: see `head`."""
    if value[start] != 72 or value[start + 37] != 64:
        raise Rejected("invalid_record", "event_id has 36 characters and trace_id 32")
    if value[start + _HEAD_BYTES - 1] > 2 * TENANT_BYTES_MAX:
        raise Rejected("invalid_record", f"tenant is over {TENANT_BYTES_MAX} bytes")


def _explain(kind: events.RecordType, record: Mapping[str, Any], error: Exception) -> Rejected:
    """Which field it was: found by fastavro's validation, off the hot path."""
    from fastavro.validation import ValidationError, validate

    for field in kind.schema["fields"]:
        if "default" not in field and field["name"] not in record:
            return Rejected("invalid_record", f"{kind.name} needs the field {field['name']!r}")
    try:
        validate(dict(record), kind.parsed)
    except ValidationError as invalid:
        # The field only: its value may be a secret.
        return Rejected("invalid_record", f"{invalid.errors[0].field} has a value of another type")
    except Exception as other:  # noqa: BLE001 - validation of odd values fails in many ways
        error = other
    return Rejected("invalid_record", f"{kind.name} couldn't be written: {type(error).__name__}")


# Compiling all of this version's schemas takes a tenth of a second, and a process has several
# encoders and decoders: they share what is compiled. What others wrote is compiled once for each.


@cache
def _own_schemas() -> dict[str, Json]:
    return {kind.name: kind.schema for kind in events.all_types()}


@cache
def _own_writer(name: str) -> Writer:
    schema = _own_schemas()[name]
    if writing is None:
        return compile_writer(schema)
    write, careful = writing.Writer(schema), cache(lambda: compile_writer(schema))

    def write_natively(record: dict[str, Any], prefix: bytes) -> bytes:
        value = write(record, prefix)
        return careful()(record, prefix) if value is None else value

    return write_natively


@cache
def _native_reader(name: str, wanted: frozenset[str] | None) -> "reading.Reader | None":
    return None if reading is None else reading.Reader(_own_schemas()[name], wanted)


@cache
def _own_reader(name: str, wanted: frozenset[str] | None) -> Reader:
    schema = _own_schemas()[name]
    fast = _native_reader(name, wanted)
    if fast is None:
        read = compile_reader(schema, wanted)
        return read if wanted is None else remembering(schema, wanted, read)
    careful = cache(lambda: compile_reader(schema, wanted))

    def read_natively(buf: bytes, p: int) -> dict[str, Any]:
        record = fast(buf, p)
        return careful()(buf, p) if record is None else record

    return read_natively


@dataclass(frozen=True, slots=True)
class _Known:
    name: str
    read: Reader


class Decoder:
    """Reads every type that this or another version wrote.

    `wanted` limits which top-level fields are built (None: all). Fields that only this version
    has come with their defaults, fields that only the writer's has are passed over.
    """

    def __init__(
        self,
        wanted: Mapping[str, Collection[str]] | None = None,
        schemas: WriterSchemas | None = None,
    ) -> None:
        self._wanted = wanted
        self._schemas: WriterSchemas = schemas or NoSchemas()
        self._types = {kind.name: kind for kind in events.all_types()}
        self._known: dict[bytes, _Known] = {}
        self._foreign: dict[bytes, Rejected] = {}
        for kind in self._types.values():
            self._known[kind.fingerprint] = self._compile(kind.name, kind.schema)

    def _compile(self, name: str, schema: Json) -> _Known:
        ours = self._types[name].schema
        if schema == ours:  # a registry gives a copy
            return _Known(name, _own_reader(name, self._wanted_of(name)))
        return _Known(name, compile_reader(schema, self._wanted_of(name), ours))

    def _wanted_of(self, name: str) -> frozenset[str] | None:
        return None if self._wanted is None else frozenset(self._wanted.get(name, ()))

    def native_readers(self) -> "dict[str, reading.Reader]":
        """By type, what reads the usual records of this version in C; none where it is missing."""
        found = {name: _native_reader(name, self._wanted_of(name)) for name in self._types}
        return {name: reader for name, reader in found.items() if reader is not None}

    def knows(self, key: bytes) -> bool:
        """Whether `key`'s schema can be had; asks the schema source for an unknown one.

        Raises `Rejected` (`foreign_schema`) for a schema that is none of ours.
        """
        if key in self._known:
            return True
        if key in self._foreign:
            raise self._foreign[key]
        schema = self._schemas.schema_of(key)
        if schema is None:
            return False
        name = short_name(str(schema.get("name", "")))
        known = self._types.get(name)
        problem = (
            "of no type known here" if known is None else incompatibility(schema, known.schema)
        )
        if problem is not None:
            # Kept, or every event of it would be compared again; the sources bound the number.
            detail = f"the schema {key.hex()} is published, but {problem}"
            self._foreign[key] = Rejected("foreign_schema", detail)
            raise self._foreign[key]
        self._known[key] = self._compile(name, schema)
        return True

    @property
    def known(self) -> Collection[bytes]:
        """Keys that need no asking; grows as `knows` learns."""
        return self._known

    def name_of(self, key: bytes) -> str:
        """The type behind a key that `knows` has said yes to."""
        return self._known[key].name

    def decode(self, value: bytes) -> tuple[str, dict[str, Any]]:
        """The type and the wanted fields of bytes that are exactly one record.

        Raises `Rejected`: `not_framed`, `unknown_schema`, `foreign_schema`, `truncated`,
        `trailing_bytes`, `not_avro`, `kind_mismatch`.
        """
        return self.decode_behind(*frame(value), value)

    def decode_behind(self, key: bytes, start: int, value: bytes) -> tuple[str, dict[str, Any]]:
        """`decode` for who has looked at the frame: its key, and where the record starts."""
        known = self._known.get(key)
        if known is None:
            if not self.knows(key):
                raise Rejected("unknown_schema", f"nobody has published the schema {key.hex()}")
            known = self._known[key]
        record = known.read(value, start)
        if record.get("event_type", known.name) != known.name:
            raise Rejected("kind_mismatch", f"bytes of {known.name} say they are another event")
        return known.name, record


def event_checker(schemas: WriterSchemas | None = None) -> Decoder:
    """A decoder that builds nothing but the event type: is this exactly one event?"""
    return Decoder(dict.fromkeys(events.event_names(), ("event_type",)), schemas)
