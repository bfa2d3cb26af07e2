"""When a schema that this version doesn't know counts, and which published ones can be trusted.

Pure. Join and load both judge an event of another version by it, each in its own time and process;
their answers must agree, or an event would end in two places or in none. So the answer hangs on
broker timestamps only: a schema counts for an event if it was published by the time that the event
was recorded, or at most `wait_ms` later. Whoever asks earlier is told to wait.
"""

import json
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from trailweave.schemas import events
from trailweave.schemas.codec import WriterSchemas
from trailweave.schemas.compatibility import incompatibility
from trailweave.schemas.compiled import short_name
from trailweave.schemas.errors import Rejected

#: known: decode it. wait: ask again later. unknown: dead-letter it, for good.
Standing = Literal["known", "wait", "unknown"]

#: How long an event's schema may follow the event.
UNKNOWN_SCHEMA_WAIT_S: Final = 60.0

#: Our clock decides when the broker's clock is surely past the deadline: it may be this far ahead.
CLOCK_SLACK_MS: Final = 5_000

#: What Confluent's framing carries to name a schema.
REGISTRY_ID_BYTES: Final = 4

#: Ours have 11,000 bytes; more is no schema of ours, and parsing it would cost every worker.
SCHEMA_BYTES_MAX: Final = 256 * 1024


class WriterStandings(WriterSchemas, Protocol):
    """A source of schemas that also says whether one counts for an event."""

    def standing(self, key: bytes, recorded_at_ms: int, now_ms: int) -> Standing:
        """Whether the schema `key` counts for an event that the broker recorded at a time.

        `now_ms` is wall clock. May block for a stated time; raises `Retryable` if the source is
        away. `wait` becomes one of the others once `recorded_at_ms` is long enough ago.
        """
        ...


@dataclass(frozen=True, slots=True)
class ByFraming:
    """Asks a registry for its ids (4 bytes) and the topic for fingerprints (8 bytes)."""

    published: WriterStandings
    registered: WriterStandings

    def schema_of(self, key: bytes) -> events.Json | None:
        """As the one of both whose key it is."""
        return self._source(key).schema_of(key)

    def standing(self, key: bytes, recorded_at_ms: int, now_ms: int) -> Standing:
        """As the one of both whose key it is."""
        return self._source(key).standing(key, recorded_at_ms, now_ms)

    def _source(self, key: bytes) -> WriterStandings:
        return self.registered if len(key) == REGISTRY_ID_BYTES else self.published


@dataclass(frozen=True, slots=True)
class StandingRule:
    """The rule with its one setting."""

    wait_ms: int = int(UNKNOWN_SCHEMA_WAIT_S * 1000)

    def last_chance_ms(self, recorded_at_ms: int) -> int:
        """Broker time until which a schema may be published for an event."""
        return recorded_at_ms + self.wait_ms

    def settled(self, recorded_at_ms: int, read_at_ms: int) -> bool:
        """Whether a source read to its end at our `read_at_ms` held all that can ever count."""
        return read_at_ms > self.last_chance_ms(recorded_at_ms) + CLOCK_SLACK_MS

    def standing(
        self, published_at_ms: int | None, recorded_at_ms: int, read_at_ms: int | None
    ) -> Standing:
        """The answer, from the first publication of the schema and the last reading to the end."""
        if published_at_ms is not None and published_at_ms <= self.last_chance_ms(recorded_at_ms):
            return "known"
        if read_at_ms is not None and self.settled(recorded_at_ms, read_at_ms):
            return "unknown"
        return "wait"


def verified_schema(key: bytes, value: bytes) -> events.Json:
    """The schema that `value` holds, if it is what `key` says and can be one of an event's.

    Raises `Rejected` (`bad_schema`): anybody who may write events may write schemas, and one that
    lies about its fingerprint or lays an event's head out differently would misread every event.
    """
    if len(key) != 8:
        raise Rejected("bad_schema", f"a fingerprint has 8 bytes, this key has {len(key)}")
    schema = checked_schema(value)
    # The parsing canonical form leaves defaults and docs out, so they are not bound by the key;
    # decoding needs neither of them.
    found = events.fingerprint_of(schema)
    if found != key:
        raise Rejected("bad_schema", f"its fingerprint is {found.hex()}, not {key.hex()}")
    return schema


def checked_schema(value: bytes | str) -> events.Json:
    """A record schema from JSON; raises `Rejected` (`bad_schema`) for anything else."""
    if len(value) > SCHEMA_BYTES_MAX:
        raise Rejected("bad_schema", f"{len(value)} bytes are over {SCHEMA_BYTES_MAX}")
    try:
        schema = json.loads(value)
        problem = _problem(schema)
    except (Exception, RecursionError) as error:  # noqa: BLE001 - foreign input fails in many ways
        raise Rejected("bad_schema", f"it does not parse: {type(error).__name__}") from None
    if problem is not None:
        raise Rejected("bad_schema", problem)
    return dict(schema)


def _problem(schema: Any) -> str | None:
    """Why parsed JSON can't be a writer's schema; fails in any way for what is none at all."""
    if not isinstance(schema, dict) or schema.get("type") != "record" or not _named(schema):
        return "it is not the schema of a record"
    kind = events.record_type(schema["name"], "", schema)
    known = {known.name: known for known in events.all_types()}.get(short_name(kind.name))
    if known is not None:
        found = incompatibility(schema, known.schema)
        return None if found is None else f"this version can't read it: {found}"
    return None if _has_event_head(schema) else "its first fields are not those of an event"


def _named(schema: events.Json) -> bool:
    return isinstance(schema.get("name"), str)


def _has_event_head(schema: events.Json) -> bool:
    head = [(field.get("name"), field.get("type")) for field in schema["fields"][:3]]
    return head == [("event_id", "string"), ("trace_id", "string"), ("tenant", "string")]
