"""A session that is about to close, decoded once and indexed for the rules.

Pure. `read` turns the bytes of a session into a `Chain` and the records that are no events;
`verdict` judges the chain. The result does not depend on the order in which events arrived.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any, Final, NamedTuple

from trailweave.schemas import events, hashing
from trailweave.schemas.codec import Decoder, WriterSchemas
from trailweave.schemas.errors import Rejected
from trailweave.schemas.varint import write_varint
from trailweave.stream_processors.lanes import OFFSET_BITS, OFFSET_MASK, Refused
from trailweave.stream_processors.ranges import ProducerRange, producer_ranges
from trailweave.stream_processors.session import Session

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
    "workflow_id",
    "parent_trace_id",
    "data_class",
    "correlation",
    "event_type",
)

_TRACE_ID: Final = re.compile("[0-9a-f]{32}").fullmatch


_CREDENTIAL: Final = ("credential_id", "expires_at", "scope_exercised", "handles")

#: What rules and verdict read of an event type beside that: a field that is in neither costs no
#: more than being stepped over. A rule that needs another field adds it.
OWN_READ: Final[Mapping[str, tuple[str, ...]]] = {
    "session_started": ("expected_sources", "environment", "purpose"),
    "model_responded": (
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
        "mode",
        "effect",
    ),
    "approval_requested": ("approval_id", "call_id", "expires_at"),
    "approval_decided": (
        "approval_id",
        "call_id",
        "approval_kind",
        "effect",
        "by",
        "valid_until",
        "requested_at",
    ),
    "credential_issued": _CREDENTIAL,
    "credential_used": (*_CREDENTIAL, "status", "task_id"),
    "credential_renewed": _CREDENTIAL,
    "credential_rotated": _CREDENTIAL,
    "credential_revoked": _CREDENTIAL,
    "tool_requested": ("call_id", "initiator", "tool", "record_class", "side_effect", "retry_of"),
    "tool_executed": ("call_id", "tool", "started_at", "status", "result_data_class"),
    "downstream_observed": ("operation", "call_id", "status"),
    "session_ended": ("outcome", "status", "root", "expected", "expected_exhaustive"),
}


def wanted_fields() -> dict[str, tuple[str, ...]]:
    """Per event type, the fields that are decoded when a session closes."""
    return {name: HEAD_READ + OWN_READ.get(name, ()) for name in events.event_names()}


def event_decoder(schemas: WriterSchemas | None = None) -> Decoder:
    """The decoder that `read` needs."""
    return Decoder(wanted_fields(), schemas)


#: Where an event lies: topic, partition, offset, and the leaf that binds it to there.
Place = tuple[str, int, int, bytes]


@dataclass(eq=False)  # without slots: its indexes are cached properties
class Chain:
    """The distinct events of one session by causes and calls; what rules read.

    Records are dicts in the schemas' names and a `place`, ordered by (occurred_at, producer,
    epoch, sequence, event id).
    """

    tenant: str
    trace_id: str
    records: list[Record]
    #: The chain record's evidence, encoded: topic, partition, offset, event id, leaf of each event.
    evidence: bytes
    #: Likewise its ranges: the first and last offset of each topic, and how many events.
    ranges_of_evidence: list[bytes]
    duplicates: int
    conflicts: list[str]
    times: tuple[int, int]
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

    @property
    def types(self) -> dict[str, int]:
        """Events by type."""
        return {name: len(found) for name, found in sorted(self._by_type.items())}

    def by(self, name: str, key: str) -> dict[str, list[Record]]:
        """The records of one event type by a field, those without a value left out."""
        found: dict[str, list[Record]] = defaultdict(list)
        for record in self._by_type.get(name, ()):
            if record[key] is not None:
                found[record[key]].append(record)
        return found

    @cached_property
    def decisions(self) -> dict[str, list[Record]]:
        """Enforced policy decisions by call, superseded ones left out."""
        made = [r for r in self.of("policy_decided") if r["mode"] == "enforced"]
        superseded = {r["supersedes"] for r in made}
        found: dict[str, list[Record]] = defaultdict(list)
        for record in made:
            if record["call_id"] is not None and record["decision_id"] not in superseded:
                found[record["call_id"]].append(record)
        return found

    @cached_property
    def approvals(self) -> dict[str, list[Record]]:
        """Approval decisions by call; one without a call id takes that of its request."""
        asked = {r["approval_id"]: r["call_id"] for r in self.of("approval_requested")}
        found: dict[str, list[Record]] = defaultdict(list)
        for record in self.of("approval_decided"):
            call = record["call_id"] or asked.get(record["approval_id"])
            if call is not None:
                found[call].append(record)
        return found

    @cached_property
    def requests(self) -> dict[str, list[Record]]:
        """Tool requests by call."""
        return self.by("tool_requested", "call_id")

    @cached_property
    def executions(self) -> dict[str, list[Record]]:
        """Tool executions by call, refused ones included."""
        return self.by("tool_executed", "call_id")

    @cached_property
    def observations(self) -> dict[str, list[Record]]:
        """What downstream systems saw, by call."""
        return self.by("downstream_observed", "call_id")

    @cached_property
    def proposals(self) -> dict[str, Record]:
        """The model response that proposed a call, by call."""
        return {
            call["call_id"]: record
            for record in self.of("model_responded")
            for call in record["proposed"]
        }

    def ran(self, call_id: str) -> list[Record]:
        """Executions that did run, whatever came of them, and downstream traces of the call."""
        ran = [r for r in self.executions.get(call_id, ()) if r["status"] not in NOT_RUN]
        return ran + self.observations.get(call_id, [])

    @cached_property
    def promised(self) -> frozenset[str]:
        """Authorities of which `session_started` said that they report."""
        return frozenset(s for r in self.of("session_started") for s in r["expected_sources"])

    @cached_property
    def expected(self) -> dict[str, int] | None:
        """Counts per producer that an exhaustive root end promised; None without one."""
        found: dict[str, int] = {}
        ends = [r for r in self.of("session_ended") if r["root"] and r["expected_exhaustive"]]
        for record in ends:
            for producer, count in record["expected"].items():
                found[producer] = max(found.get(producer, 0), count)
        return found if ends else None

    @cached_property
    def counts(self) -> dict[str, int]:
        """Distinct events per producer."""
        return {
            producer: sum(part.events for part in parts) for producer, parts in self.ranges.items()
        }

    @cached_property
    def ranges(self) -> dict[str, list[ProducerRange]]:
        """Sequence ranges by producer, those included that were announced and sent nothing."""
        return producer_ranges(self.records, self.expected or ())

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

#: The order of events within their producers.
SEQUENCE: Final = ("producer_id", "producer_epoch", "trace_seq", "event_id")


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


def ordered(records: list[Record], *fields: str) -> list[Record]:
    """The records by these fields; a sequence that is not known comes first."""
    try:
        return sorted(records, key=itemgetter(*fields))
    except TypeError:  # two that are equal up to their sequences, of which one is not known

        def key(record: Record) -> tuple[Any, ...]:
            return tuple(-1 if record[field] is None else record[field] for field in fields)

        return sorted(records, key=key)


def read(session: Session, source: Source) -> Reading:
    """Decode and check every event of a session; duplicates collapse, other bytes don't.

    An event is refused on the same grounds as in `validity`, which load asks: whatever gets no
    row there becomes a dead letter here. Of equal events the one with the lowest place stays.
    """
    key = session.key[:32]
    key_digest = hashlib.sha256(key).digest()
    is_trace = _TRACE_ID(key.decode("latin-1")) is not None
    seen: dict[str, bytes] = {}
    others: set[tuple[str, bytes]] = set()
    evidence: list[bytes] = []
    offsets: list[list[int]] = [[] for _ in source.topics]
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
        leaf = hashing.leaf_behind(part.leaf, offset, key_digest, value)
        record["place"] = (part.topic, part.partition, offset, leaf)
        records.append(record)
        offsets[number].append(offset)
        id_at = 10 if value[0] else 5
        # The event id is copied with its length byte.
        event_id_item = value[id_at : id_at + 37]
        evidence += (part.evidence, write_varint(offset), event_id_item, _LEAF_BYTES, leaf)
    chain = Chain(
        session.tenant,
        key.decode("ascii", "replace"),
        ordered(records, "occurred_at", *SEQUENCE),
        b"".join(evidence),
        [
            part.evidence + write_varint(at[0]) + write_varint(at[-1]) + write_varint(len(at))
            for part, at in zip(source.parts, offsets, strict=True)
            if at
        ],
        duplicates,
        sorted({event_id for event_id, _ in others}),
        (min(session.times), max(session.times)),
    )
    return Reading(chain, refused)


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
