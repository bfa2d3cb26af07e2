"""Events, lanes and chains for tests of the join: the real codec, the real lane, no Kafka."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from trailweave.schemas import events
from trailweave.schemas.codec import Decoder, Encoder
from trailweave.stream_processors.chain import Chain, Reading, Source, event_decoder, read
from trailweave.stream_processors.lanes import FOLD_READ, OFFSET_BITS, Lane
from trailweave.stream_processors.session import ClosingTimes, Session
from trailweave.stream_processors.verdict import RulesConfig

Record = dict[str, Any]

ENCODER: Final = Encoder()
DECODER: Final = event_decoder()
FOLD_DECODER: Final = Decoder(FOLD_READ)
WHOLE_DECODER: Final = Decoder()
TOPICS: Final = events.event_topics()
TOPIC_OF: Final = {name: TOPICS.index(kind.topic) for name, kind in events.event_types().items()}
#: For lanes whose broker times are small numbers, long before the events' own times.
CLOCKS_APART: Final = RulesConfig(off=frozenset({"clock_skew"}))
TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
START_US: Final = 1_750_000_000_000_000
#: When Kafka stored them, in sessions that are made at once: a while after the last.
STORED_MS: Final = START_US // 1000 + 3_600_000
TIMES: Final = ClosingTimes(
    grace_ms=100, idle_ms=1000, approval_hold_max_ms=10_000, unknown_schema_wait_ms=500
)

AGENT: Final = {"kind": "agent", "subject": "spiffe://acme/agent", "assurance": "verified"}
HUMAN: Final = {"kind": "human", "subject": "ann@acme"}

#: What each type can't be without.
REQUIRED: Final[dict[str, Record]] = {
    "model_responded": {"provider": "openai", "model": "gpt"},
    "policy_decided": {"decision_id": "d"},
    "tool_requested": {"tool": "shell"},
    "tool_executed": {"status": "ok"},
    "approval_requested": {"approval_id": "a", "requested_by": AGENT},
    "approval_decided": {"approval_id": "a", "by": HUMAN},
    "downstream_observed": {"system": "db", "operation": "write"},
    "credential_issued": {"credential_id": "k"},
    "credential_used": {"credential_id": "k"},
    "credential_renewed": {"credential_id": "k"},
    "credential_revoked": {"credential_id": "k"},
}


@dataclass(frozen=True)
class Made:
    """An event as it stands in Kafka."""

    name: str
    record: Record
    value: bytes

    @property
    def topic(self) -> int:
        return TOPIC_OF[self.name]

    @property
    def key(self) -> bytes:
        return str(self.record["trace_id"]).encode()


@dataclass
class Trace:
    """Makes the events of one session: ids and sequences count up, `at_s` is after the start."""

    trace_id: str = TRACE
    tenant: str = "acme"
    number: int = 0
    sequences: dict[tuple[str, int], int] = field(default_factory=dict)

    def event(self, name: str, at_s: float | None = None, **fields: Any) -> Made:
        producer = fields.get("producer_id", "agent-1")
        epoch = fields.get("producer_epoch", 1)
        sequence = self.sequences.get((producer, epoch), 0)
        if fields.get("trace_seq", 0) is not None:
            self.sequences[producer, epoch] = sequence + 1
        self.number += 1
        record = {
            "event_id": f"00000000-0000-7000-8000-{self.number:012x}",
            "trace_id": self.trace_id,
            "tenant": self.tenant,
            "producer_id": producer,
            "producer_epoch": epoch,
            "trace_seq": sequence,
            "occurred_at": START_US + int((self.number if at_s is None else at_s) * 1_000_000),
            "event_type": name,
            "actor": AGENT,
            "reporter": AGENT,
            "sponsor": HUMAN,
            **REQUIRED.get(name, {}),
            **fields,
        }
        return Made(name, record, ENCODER.encode(name, record))

    def ended(self, expected: dict[str, int] | None = None, **fields: Any) -> Made:
        """The root's end; with `expected`, an exhaustive one."""
        exhaustive: Record = {"expected": expected, "expected_exhaustive": True} if expected else {}
        return self.event("session_ended", **exhaustive, **fields)

    def whole(self, calls: int = 1, **started: Any) -> list[Made]:
        """A session with a start, tool calls as they should be, and an exhaustive end."""
        made = [self.event("session_started", **started)]
        for number in range(calls):
            call = f"c{number}"
            made += [
                self.event("model_responded", proposed=[{"call_id": call, "tool": "shell"}]),
                self.event("policy_decided", call_id=call, effect="allow", decision_id=call),
                self.event("tool_requested", call_id=call, call_id_source="provider"),
                self.event("tool_executed", call_id=call, tool="shell"),
            ]
        return [*made, self.ended({"agent-1": len(made) + 1})]


def lane(times: ClosingTimes = TIMES, decoder: Decoder = FOLD_DECODER) -> Lane:
    return Lane(0, [0] * len(TOPICS), times, decoder)


def feed(
    to: Lane, *made: Made, at_ms: int = 1, key: bytes | None = None, value: bytes | None = None
) -> None:
    """Append events to their topics and fold them at once; key or value in place of their own."""
    for event in made:
        stored = event.value if value is None else value
        to.fold(event.topic, to.positions[event.topic], at_ms, key or event.key, stored)


def confirm(to: Lane, at_ms: int) -> None:
    """The broker says that nothing more is there in any topic."""
    for topic in range(len(TOPICS)):
        to.confirm(topic, at_ms)


def closed(to: Lane) -> list[tuple[bytes, str]]:
    """Close what is due; keys and reasons."""
    found = []
    for session, reason in to.due():
        to.close(session)
        found.append((session.key, reason))
    return found


def no_other_schemas(_key: bytes, _recorded_ms: int) -> bool:
    return False


def source(decoder: Decoder = DECODER) -> Source:
    return Source(TOPICS, 0, decoder, no_other_schemas)


def session_of(made: Iterable[Made], at_ms: int = 1) -> Session:
    """The one session that the events form."""
    folded = lane()
    feed(folded, *made, at_ms=at_ms)
    (found,) = folded.sessions.values()
    return found


def reading(made: Iterable[Made]) -> Reading:
    return read(session_of(made, STORED_MS), source())


def chain(*made: Made) -> Chain:
    return reading(made).chain


def places(session: Session) -> set[tuple[int, int]]:
    """(topic, offset) of everything that a session holds."""
    return {(place >> OFFSET_BITS, place & ((1 << OFFSET_BITS) - 1)) for place in session.places}


def as_stored(record: Record) -> Record:
    """A chain record as whoever reads the sessions topic has it."""
    return WHOLE_DECODER.decode(ENCODER.encode("chain", record))[1]
