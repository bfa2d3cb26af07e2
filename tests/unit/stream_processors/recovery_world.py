"""What lies around a lane in the runs of `test_recovery_model`: arrivals, what a broker keeps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache

from trailweave.stream_processors.chain import Record
from trailweave.stream_processors.lanes import Lane
from trailweave.stream_processors.memory import Memory, _events_away
from trailweave.stream_processors.session import Session

from tests.unit.stream_processors.builders import ENCODER, TOPICS, WHOLE_DECODER, Trace

Place = tuple[int, int]
Stored = tuple[int, bytes, bytes]
Headers = dict[str, bytes]
Offsets = list[tuple[str, int, str | None]]


@cache
def pool() -> list[tuple[int, bytes, bytes]]:
    """(topic, key, value) of all that arrives: few traces, so that they come again and again."""
    found: list[tuple[int, bytes, bytes]] = []
    for letter in "ab":
        for tenant in ("t", "u"):
            trace = Trace(letter * 32, tenant)
            made = [
                trace.event("session_started"),
                trace.event("prompt_submitted"),
                trace.event("tool_requested", call_id="c"),
                trace.event("tool_executed", call_id="c"),
                trace.event("approval_requested", approval_id="x", expires_at=9_000),
                trace.event("approval_decided", approval_id="x"),
                trace.event("credential_used"),
                trace.event("downstream_observed"),
                trace.ended(),
                trace.ended({"agent-1": 3}),
            ]
            found += [(event.topic, event.key, event.value) for event in made]
            last = made[-1]
            unknown = last.value[:2] + b"newer!!!" + last.value[10:]
            found.append((last.topic, last.key, last.value[:-1]))
            found.append((last.topic, last.key, unknown))
    found.append((2, b"k", b"garbage"))
    found.append((1, b"wrong", found[2][2]))
    return found


@dataclass
class Broker:
    """What outlives a crash. None stands for a marker or an aborted record: never delivered."""

    inputs: list[list[Stored | None]] = field(default_factory=lambda: [[] for _ in TOPICS])
    sessions: list[Headers | None] = field(default_factory=list)
    #: The chunks that a compaction leaves at least, their offsets, and the next one.
    chunks: dict[bytes, Record] = field(default_factory=dict)
    chunks_at: dict[bytes, int] = field(default_factory=dict)
    chunks_end: int = 0
    committed: Offsets = field(default_factory=lambda: [(topic, -1, None) for topic in TOPICS])
    taken: Counter[Place] = field(default_factory=Counter)
    evidence: set[Place] = field(default_factory=set)
    now_ms: int = 1
    #: What a recovery has to bring back: the lane as the last commit left it.
    after: tuple[object, ...] | None = None
    #: Offsets of earlier commits: a broker that comes back may answer with them.
    older: list[Offsets] = field(default_factory=list)
    #: Dead letters of no session, and whether older offsets were believed once: they come twice.
    alone: set[Place] = field(default_factory=set)
    went_back: bool = False

    def store(self, key: bytes, chunk: Record) -> None:
        """Append a chunk, as it is read again."""
        self.chunks[key] = WHOLE_DECODER.decode(ENCODER.encode("session_chunk", chunk))[1]
        self.chunks_at[key] = self.chunks_end
        self.chunks_end += 1


class ChunksOf(Memory):
    """Brings back what is away from this broker's chunks."""

    def __init__(self, broker: Broker, bytes_max: int) -> None:
        super().__init__({}, bytes_max)
        self._broker = broker

    def _read(self, _: int, offsets: list[int]) -> dict[int, bytes]:
        if -1 in offsets:
            return {}  # a name of the log's end, where nothing is
        live = self._broker.chunks
        found = {at: live[key] for key, at in self._broker.chunks_at.items() if key in live}
        return {at: ENCODER.encode("session_chunk", found[at]) for at in offsets if at in found}


class AllChunksOf(ChunksOf):
    """Asks for those, too, of which it does not know where they are."""

    def _bring_back(self, sessions: list[tuple[Lane, Session]]) -> None:
        for lane, session in sessions:
            found = self._read(lane.index, [*session.chunks.values()])
            session.come_back(_events_away(session, found))
