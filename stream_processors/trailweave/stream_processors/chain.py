"""A session that is about to close, decoded once and indexed for the rules.

Pure. `read` turns the bytes of a session into a `Chain` and the records that are no events;
`verdict` judges the chain. The result does not depend on the order in which events arrived.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NamedTuple, TypeVar

from trailweave.schemas import events, hashing
from trailweave.schemas.codec import Decoder, WriterSchemas
from trailweave.schemas.errors import Rejected
from trailweave.schemas.varint import write_varint
from trailweave.stream_processors.lanes import OFFSET_BITS, OFFSET_MASK, Refused
from trailweave.stream_processors.ranges import (
    ByProducer,
    ProducerRange,
    by_producer,
    ordered,
    producer_ranges,
)
from trailweave.stream_processors.session import Session

try:
    from trailweave.stream_processors import native_session
except ImportError:  # a checkout, or a wheel that was built without a C compiler
    native_session = None  # type: ignore[assignment]

Record = dict[str, Any]

#: The envelope's fields that verdicts read of every event; the others are passed over when a chain
#: is decoded.
HEAD_READ: Final = (
    "event_id",
    "producer_id",
    "producer_epoch",
    "trace_seq",
    "occurred_at",
    "agent_id",
    "actor",
    "sponsor",
    "agent_owner",
    "delegation",
    "workflow_id",
    "parent_trace_id",
    "span_id",
    "parent_span_id",
    "parent_remote",
    "data_class",
    "correlation",
    "event_type",
)

T = TypeVar("T")

_TRACE_ID: Final = re.compile("[0-9a-f]{32}").fullmatch


_CREDENTIAL: Final = ("credential_id", "expires_at", "handles")

#: What rules and verdict read of an event type beside that: a field that is in neither costs no
#: more than being stepped over. A rule that needs another field adds it.
OWN_READ: Final[Mapping[str, tuple[str, ...]]] = {
    "session_started": (
        "expected_sources",
        "environment",
        "purpose",
        "tools_offered",
        "policy_bundles",
    ),
    "prompt_submitted": ("redactions",),
    "context_retrieved": ("derived_from", "trust", "flagged"),
    "memory_accessed": ("derived_from", "store", "memory_key", "operation", "trust"),
    "guardrail_checked": ("call_id", "subject_event_id", "verdict"),
    "model_responded": (
        "redactions",
        "derived_from",
        "request_model",
        "model",
        "model_version",
        "status",
        "finish_reasons",
        "proposed",
        "input_tokens",
        "output_tokens",
        "cost_usd",
    ),
    "policy_decided": (
        "decision_id",
        "call_id",
        "supersedes",
        "engine",
        "policy_id",
        "bundles",
        "mode",
        "effect",
        "error",
        "timed_out",
        "obligations",
        "arguments_hash",
        "modified_arguments_hash",
    ),
    "approval_requested": ("approval_id", "call_id", "requested_by", "expires_at"),
    "approval_decided": (
        "approval_id",
        "call_id",
        "approval_kind",
        "effect",
        "requested_by",
        "by",
        "reason",
        "ticket",
        "arguments_hash",
        "valid_until",
        "requested_at",
    ),
    "credential_issued": (
        *_CREDENTIAL,
        "credential_kind",
        "scopes_granted",
        "issued_at",
        "parent_credential_id",
        "task_id",
    ),
    "credential_used": (
        *_CREDENTIAL,
        "call_id",
        "credential_kind",
        "credential_environment",
        "scopes_granted",
        "scope_exercised",
        "issued_at",
        "issued_trace_id",
        "status",
        "task_id",
    ),
    "credential_renewed": _CREDENTIAL,
    "credential_rotated": (*_CREDENTIAL, "successor_credential_id"),
    "credential_revoked": _CREDENTIAL,
    "tool_requested": (
        "redactions",
        "derived_from",
        "call_id",
        "initiator",
        "tool",
        "definition_hash",
        "arguments_hash",
        "required_scope",
        "resource_environment",
        "record_class",
        "destination",
        "side_effect",
        "attempt",
        "retry_of",
    ),
    "tool_executed": (
        "derived_from",
        "call_id",
        "tool",
        "started_at",
        "status",
        "side_effect",
        "result_data_class",
        "arguments_hash",
    ),
    "downstream_observed": (
        "system",
        "operation",
        "principal",
        "credential_id",
        "call_id",
        "status",
        "source_address",
    ),
    "session_ended": ("outcome", "status", "root", "expected", "expected_exhaustive"),
}


def wanted_fields() -> dict[str, tuple[str, ...]]:
    """Per event type, the fields that are decoded when a session closes."""
    return {name: HEAD_READ + OWN_READ.get(name, ()) for name in events.event_names()}


def event_decoder(schemas: WriterSchemas | None = None) -> Decoder:
    """The decoder that `read` needs."""
    return Decoder(wanted_fields(), schemas)


#: Clocks differ by some seconds without a meaning.
AHEAD_US: Final = 5_000_000

#: Where an event lies: topic, partition, offset, and the leaf that binds it to there.
Place = tuple[str, int, int, bytes]


class lazy(Generic[T]):  # noqa: N801 - used as a decorator
    """`functools.cached_property` without its lock, which Python 3.11 still takes: it costs more
    than most of what is kept here.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> T:
        made = instance.__dict__[self._name] = self._make(instance)
        return made


@dataclass(eq=False)  # without slots: its indexes are kept in it
class Chain:
    """The distinct events of one session by causes and calls; what rules read.

    Records are dicts in the schemas' names and a `place`, ordered by (occurred_at, producer,
    epoch, sequence, event id).
    """

    tenant: str
    trace_id: str
    records: list[Record]
    #: The records of each producer and epoch, in the order of the chain's leaves.
    by_producer: ByProducer
    #: The chain record's evidence, encoded: topic, partition, offset, event id, leaf of each event.
    evidence: bytes
    #: Likewise its ranges: the first and last offset of each topic, and how many events.
    ranges_of_evidence: list[bytes]
    duplicates: int
    conflicts: list[str]
    times: tuple[int, int]
    #: Events that happened, by their reporters' clocks, well after Kafka stored them, with how many
    #: microseconds after.
    ahead: list[tuple[Record, int]] = field(default_factory=list)
    _by_type: dict[str, list[Record]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        by_type = self._by_type
        for record in self.records:
            name = record["event_type"]
            if name in by_type:
                by_type[name].append(record)
            else:
                by_type[name] = [record]

    def of(self, name: str) -> list[Record]:
        """The records of one event type, in order."""
        return self._by_type.get(name, _NONE)

    def kinds(self) -> frozenset[str]:
        """The event types that are there."""
        return frozenset(self._by_type)

    @property
    def types(self) -> dict[str, int]:
        """Events by type."""
        return {name: len(found) for name, found in sorted(self._by_type.items())}

    def by(self, name: str, key: str) -> dict[str, list[Record]]:
        """The records of one event type by a field, those without a value left out."""
        records = self._by_type.get(name, _NONE)
        if len(records) == 1:
            only = records[0][key]
            return {} if only is None else {only: records}
        found: dict[str, list[Record]] = {}
        for record in records:
            value = record[key]
            if value is None:
                continue
            if value in found:
                found[value].append(record)
            else:
                found[value] = [record]
        return found

    @lazy
    def decisions(self) -> dict[str, list[Record]]:
        """Enforced policy decisions by call, superseded ones left out."""
        made = [r for r in self.of("policy_decided") if r["mode"] == "enforced"]
        superseded = {r["supersedes"] for r in made}
        found: dict[str, list[Record]] = {}
        for record in made:
            call = record["call_id"]
            if call is None or record["decision_id"] in superseded:
                continue
            if call in found:
                found[call].append(record)
            else:
                found[call] = [record]
        return found

    @lazy
    def approvals(self) -> dict[str, list[Record]]:
        """Approval decisions by call; one without a call id takes that of its request."""
        found: dict[str, list[Record]] = {}
        answers = self.of("approval_decided")
        if not answers:
            return found
        asked = {r["approval_id"]: r["call_id"] for r in self.of("approval_requested")}
        for record in answers:
            call = record["call_id"] or asked.get(record["approval_id"])
            if call is not None:
                found.setdefault(call, []).append(record)
        return found

    @lazy
    def requests(self) -> dict[str, list[Record]]:
        """Tool requests by call."""
        return self.by("tool_requested", "call_id")

    @lazy
    def executions(self) -> dict[str, list[Record]]:
        """Tool executions by call, refused ones included."""
        return self.by("tool_executed", "call_id")

    @lazy
    def observations(self) -> dict[str, list[Record]]:
        """What downstream systems saw, by call."""
        return self.by("downstream_observed", "call_id")

    @lazy
    def proposals(self) -> dict[str, Record]:
        """The model response that proposed a call, by call."""
        return {
            call["call_id"]: record
            for record in self.of("model_responded")
            for call in record["proposed"]
        }

    @lazy
    def runs(self) -> dict[str, list[Record]]:
        """Executions that did run, whatever came of them, by call."""
        found: dict[str, list[Record]] = {}
        for record in self.of("tool_executed"):
            if record["status"] not in NOT_RUN:
                found.setdefault(record["call_id"], []).append(record)
        return found

    def ran(self, call_id: str) -> list[Record]:
        """These of one call, and what downstream systems saw of it."""
        return self.runs.get(call_id, _NONE) + self.observations.get(call_id, _NONE)

    @lazy
    def delegations(self) -> list[Record]:
        """The first event of each line of delegation."""
        found: dict[int, Record] = {}
        for record in self.records:
            line = record["delegation"]
            # The events of one agent share this object.
            if line and id(line) not in found:
                found[id(line)] = record
        if len(found) < 2:
            return list(found.values())
        lines: dict[str, Record] = {}
        for record in found.values():
            line = [(one["subject"], one["scopes"]) for one in record["delegation"]]
            lines.setdefault(repr(line), record)
        return list(lines.values())

    @lazy
    def promised(self) -> frozenset[str]:
        """Authorities of which `session_started` said that they report."""
        return frozenset(s for r in self.of("session_started") for s in r["expected_sources"])

    @lazy
    def expected(self) -> dict[str, int] | None:
        """Counts per producer that an exhaustive root end promised; None without one."""
        found: dict[str, int] = {}
        ends = [r for r in self.of("session_ended") if r["root"] and r["expected_exhaustive"]]
        for record in ends:
            for producer, count in record["expected"].items():
                found[producer] = max(found.get(producer, 0), count)
        return found if ends else None

    @lazy
    def counts(self) -> dict[str, int]:
        """Distinct events per producer."""
        return {
            producer: sum(part.events for part in parts) for producer, parts in self.ranges.items()
        }

    @lazy
    def ranges(self) -> dict[str, list[ProducerRange]]:
        """Sequence ranges by producer, those included that were announced and sent nothing."""
        return producer_ranges(self.by_producer, self.expected or ())

    @lazy
    def flawed(self) -> dict[str, list[ProducerRange]]:
        """The ranges of those producers of whom a number is missing, doubled, or was announced and
        never came.
        """
        expected, counts = self.expected or {}, self.counts
        return {
            producer: parts
            for producer, parts in self.ranges.items()
            if counts[producer] < expected.get(producer, 0)
            or any(part.missing or part.conflicting for part in parts)
        }

    def whole(self) -> bool:
        """Whether every promised count has arrived."""
        promised = self.expected
        counts = self.counts
        return promised is not None and all(counts.get(p, 0) >= n for p, n in promised.items())


_NONE: Final[list[Record]] = []

#: Statuses of `tool_executed` that say the tool did not run.
NOT_RUN: Final = frozenset({"denied", "cancelled"})


class Reading(NamedTuple):
    """A decoded session: its chain, and its records that are no events."""

    chain: Chain
    refused: list[Refused]


_BUILT_IN: Final = events.fingerprints()


class _Part(NamedTuple):
    """A topic's part of the lane, and what the places of its events begin with."""

    topic: str
    partition: int
    leaf: bytes
    #: An item of the chain record's evidence, or of the ranges of it.
    evidence: bytes


@dataclass(frozen=True, slots=True)
class Source:
    """What a reading needs to know of the lane."""

    topics: tuple[str, ...]
    partition: int
    decoder: Decoder
    #: (key of another version's schema, broker time) -> does it count? See `standing`.
    admits: Callable[[bytes, int], bool]
    parts: tuple[_Part, ...] = ()
    #: Reads sessions without a flaw in C; None where that is missing.
    native: "native_session.SessionReader | None" = None

    def __post_init__(self) -> None:
        partition = self.partition
        found = tuple(
            _Part(
                topic,
                partition,
                hashing.leaf_prefix(topic, partition),
                write_varint(len(topic)) + topic.encode() + write_varint(partition),
            )
            for topic in self.topics
        )
        object.__setattr__(self, "parts", found)
        readers = self.decoder.native_readers()
        if native_session is not None and readers:
            types = {
                kind.fingerprint: (name, kind.topic, readers[name])
                for name, kind in events.event_types().items()
            }
            object.__setattr__(self, "native", native_session.SessionReader(found, types, AHEAD_US))


def read(session: Session, source: Source) -> Reading:
    """Decode and check every event of a session; duplicates collapse, other bytes don't.

    An event is refused on the same grounds as in `validity`, which load asks: whatever gets no
    row there becomes a dead letter here. Of equal events the one with the lowest place stays.
    """
    key = session.key[:32]
    native, found = source.native, None
    if native is not None:
        found = native(key, session.places, session.times, session.values)
    distinct = _distinct(session, key, source) if found is None else _Distinct(*found)
    chain = Chain(
        session.tenant,
        key.decode("ascii", "replace"),
        distinct.records,
        distinct.by_producer,
        distinct.evidence,
        distinct.ranges_of_evidence,
        distinct.duplicates,
        sorted(distinct.conflicts),
        (min(session.times), max(session.times)),
        distinct.ahead,
    )
    return Reading(chain, list(distinct.refused))


class _Distinct(NamedTuple):
    """What `read` finds in a session's bytes; the names are those of `Chain`."""

    records: list[Record]
    by_producer: ByProducer
    evidence: bytes
    ranges_of_evidence: list[bytes]
    ahead: list[tuple[Record, int]]
    duplicates: int = 0
    conflicts: Collection[str] = ()
    refused: Sequence[Refused] = ()


def _distinct(session: Session, key: bytes, source: Source) -> _Distinct:
    key_digest = hashlib.sha256(key).digest()
    is_trace = _TRACE_ID(key.decode("latin-1")) is not None
    seen: dict[str, bytes] = {}
    others: set[tuple[str, bytes]] = set()
    evidence: list[bytes] = []
    offsets: list[list[int]] = [[] for _ in source.topics]
    ahead: list[tuple[Record, int]] = []
    records, refused, duplicates = [], [], 0
    for place, recorded_ms, value in sorted(
        zip(session.places, session.times, session.values, strict=True)
    ):
        number, offset = place >> OFFSET_BITS, place & OFFSET_MASK
        part = source.parts[number]
        try:
            record = _event(part.topic, recorded_ms, value, source)
            if not is_trace:
                raise Rejected("not_an_event", "trace_id is not 32 lower-case hex digits")
        except Rejected as error:
            refused.append(Refused(number, offset, recorded_ms, key, value, error.reason))
            continue
        event_id = record["event_id"]
        before = seen.get(event_id)
        if before is None:
            seen[event_id] = value
        elif before == value or (event_id, value) in others:
            duplicates += 1
            continue
        else:
            others.add((event_id, value))
        ahead_us = record["occurred_at"] - recorded_ms * 1000
        if ahead_us > AHEAD_US:
            ahead.append((record, ahead_us))
        leaf = hashing.leaf_behind(part.leaf, offset, key_digest, value)
        record["place"] = (part.topic, part.partition, offset, leaf)
        records.append(record)
        offsets[number].append(offset)
        id_at = 10 if value[0] else 5
        # The event id is copied with its length byte.
        event_id_item = value[id_at : id_at + 37]
        evidence += (part.evidence, write_varint(offset), event_id_item, _LEAF_BYTES, leaf)
    records = ordered(
        records, "occurred_at", "producer_id", "producer_epoch", "trace_seq", "event_id"
    )
    return _Distinct(
        records,
        by_producer(records),
        b"".join(evidence),
        [
            part.evidence + write_varint(at[0]) + write_varint(at[-1]) + write_varint(len(at))
            for part, at in zip(source.parts, offsets, strict=True)
            if at
        ],
        ahead,
        duplicates,
        {event_id for event_id, _ in others},
        refused,
    )


#: The length of a leaf, as Avro writes it before its 32 bytes.
_LEAF_BYTES: Final = write_varint(32)


def _event(topic: str, recorded_ms: int, value: bytes, source: Source) -> Record:
    """One decoded event; raises `Rejected`."""
    # `lanes.group_key` let no other framing into a session.
    key, start = (value[2:10], 10) if value[0] else (value[1:5], 5)
    if key not in _BUILT_IN and not source.admits(key, recorded_ms):
        raise Rejected("unknown_schema", f"nobody has published the schema {key.hex()} in time")
    name, record = source.decoder.decode_behind(key, start, value)
    if _TOPIC_OF.get(name) != topic:
        raise Rejected("wrong_topic", f"a record of type {name} does not belong in this topic")
    if not record["event_id"].isascii():
        raise Rejected("not_an_event", "event_id is not ASCII")
    return record


_TOPIC_OF: Final[Mapping[str, str]] = {n: k.topic for n, k in events.event_types().items()}


def values(records: Iterable[Record], key: str) -> list[str]:
    """The sorted distinct values of one field."""
    return sorted({record[key] for record in records if record.get(key)})
