"""One lane: partition i of every event topic, its open sessions, its clock and its closings.

Pure: no Kafka, no wall clock. The worker folds whole batches, then asks `due` which sessions
close; both orders matter (closing inside a batch would put two events of one batch on both sides
of a cut). `turn` ends a batch: it holds what that batch's transaction says, so that the next one
may be folded before the commit. A recovery goes through `recovery.replay`.
"""

import heapq
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from trailweave.schemas import events
from trailweave.schemas.codec import CONFLUENT, SINGLE_OBJECT, TENANT_BYTES_MAX, Decoder
from trailweave.schemas.errors import Reason, Rejected
from trailweave.stream_processors.session import NEVER_MS, ClosingTimes, Session

#: Bits of a packed place that hold the offset; the topic's index stands above them.
OFFSET_BITS: Final = 48
OFFSET_MASK: Final = (1 << OFFSET_BITS) - 1

#: Below so many entries, beside two for each open session, a queue is not worth sweeping.
_SWEPT_MIN: Final = 1_000

#: The event types that are decoded as they are folded, and what is read of them: three decide when
#: their session closes, two that it is watched until then.
FOLD_READ: Final[Mapping[str, tuple[str, ...]]] = {
    "session_ended": ("event_type", "root", "expected", "expected_exhaustive"),
    "approval_requested": ("event_type", "approval_id", "expires_at"),
    "approval_decided": ("event_type", "approval_id"),
    "policy_decided": ("event_type", "mode", "effect"),
    "credential_revoked": ("event_type",),
}


@dataclass(frozen=True, slots=True)
class Refused:
    """Bytes that belong to no session: dead-lettered in the transaction that consumed them."""

    topic: int
    offset: int
    recorded_ms: int
    key: bytes | None
    value: bytes
    reason: Reason


@dataclass(frozen=True, slots=True)
class Committed:
    """What one committed transaction of the lane said, as far as later `O` bounds need it."""

    #: Positions after it, per topic.
    positions: tuple[int, ...]
    #: End of the lane's own sessions partition as known before it.
    sessions_end: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What a batch's transaction says of its lane, whatever is folded after it."""

    #: Number of the transaction.
    number: int
    #: Positions after the batch, per topic: the cut of its records.
    positions: tuple[int, ...]
    #: The lane's clock.
    clock_ms: int
    refused: list[Refused]
    #: Whether there is anything that a commit must carry, closings apart.
    moved: bool


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is stored with every committed offset: `v1;n;L;O`."""

    number: int
    low: int
    sessions_from: int

    def text(self) -> str:
        """As stored."""
        return f"v1;{self.number};{self.low};{self.sessions_from}"

    @classmethod
    def parse(cls, text: str) -> "Metadata | None":
        """None for metadata that this protocol did not write."""
        parts = text.split(";")
        if len(parts) != 4 or parts[0] != "v1" or not all(p.isdecimal() for p in parts[1:]):
            return None
        return cls(int(parts[1]), int(parts[2]), int(parts[3]))


def group_key(key: bytes | None, value: bytes | None) -> bytes:
    """The session of an event: trace id, length byte and tenant, as they stand in its bytes.

    Raises `Rejected` for bytes that can't be an event's, or whose Kafka key is not their trace id.
    """
    if not value:
        raise Rejected("empty", "the record has no bytes")
    if value[:2] == SINGLE_OBJECT:
        start = 10
    elif value[:1] == CONFLUENT:
        start = 5
    else:
        raise Rejected("not_framed", "neither Avro single-object encoding nor Confluent framing")
    if len(value) < start + 71 or value[start] != 72 or value[start + 37] != 64:
        raise Rejected("not_an_event", "event_id and trace_id are not where an event has them")
    length = value[start + 70]
    end = start + 71 + (length >> 1)
    if length & 1 or length > 2 * TENANT_BYTES_MAX or len(value) < end:
        raise Rejected("not_an_event", f"the tenant is missing or over {TENANT_BYTES_MAX} bytes")
    if value[start + 38 : start + 70] != key:
        raise Rejected("wrong_key", "the Kafka key is not the event's trace id")
    return value[start + 38 : end]


def denies(record: Mapping[str, Any]) -> bool:
    """Whether a policy decision forbids, and not only as a trial."""
    return bool(record["mode"] == "enforced" and record["effect"] == "deny")


def _schema_key(value: bytes) -> bytes:
    """What names the schema of bytes that `group_key` has let through."""
    return value[2:10] if value[:2] == SINGLE_OBJECT else value[1:5]


@dataclass(eq=False)
class Lane:
    """State of one lane between two commits."""

    index: int
    #: Next offset to fold, per topic.
    positions: list[int]
    times: ClosingTimes
    #: Decodes `FOLD_READ` at least.
    decoder: Decoder
    #: Number of the last turn, and of the last one that was committed.
    number: int = 0
    committed_number: int = 0
    sessions: dict[bytes, Session] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    #: Offset below which session `key` has been put into records, per topic: replay only.
    cuts: dict[bytes, list[int]] = field(default_factory=dict)
    #: Newest broker timestamp read, or moment at which the broker confirmed the end; -1: neither.
    newest_ms: list[int] = field(default_factory=list)
    history: deque[Committed] = field(default_factory=deque)
    #: End of the lane's own sessions partition, as far as delivery reports told.
    sessions_end: int = 0
    #: Events whose schema nobody has published yet, by the schema's key.
    unknown: dict[bytes, list[tuple[Session, int, bytes]]] = field(default_factory=dict)
    #: Events in open sessions, and the bytes of those that are in memory.
    held_events: int = 0
    held_bytes: int = 0
    #: Whether something happened that a commit must carry.
    moved: bool = False
    _lows: list[deque[tuple[int, Session]]] = field(default_factory=list)
    _deadlines: list[tuple[int, int, Session]] = field(default_factory=list)
    #: Sessions by the time of their first event outside of chunks; those of other times are stale.
    _outside: deque[tuple[int, Session]] = field(default_factory=deque)
    _ended: dict[bytes, Session] = field(default_factory=dict)
    #: Sessions to be looked at before they close, the longest waiting first.
    _stirred: dict[bytes, Session] = field(default_factory=dict)
    _serial: int = 0
    _special: dict[bytes, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.positions)
        self.newest_ms = self.newest_ms or [-1] * count
        self._lows = [deque() for _ in range(count)]

    # --- folding: every event passes here ---

    def fold(
        self, topic: int, offset: int, recorded_ms: int, key: bytes | None, value: bytes | None
    ) -> None:
        """Take one record of topic index `topic`; offsets of one topic must increase."""
        self.positions[topic] = offset + 1
        self.moved = True
        if recorded_ms > self.newest_ms[topic]:
            self.newest_ms[topic] = recorded_ms
        try:
            group = group_key(key, value)
        except Rejected as error:
            refused = Refused(topic, offset, recorded_ms, key, value or b"", error.reason)
            self.refused.append(refused)
            return
        assert value is not None
        session = self.sessions.get(group)
        if session is None:
            session = self._open(group, recorded_ms)
        if session.first[topic] < 0:
            session.first[topic] = offset
            self._lows[topic].append((offset, session))
            if session.outside_ms < 0:
                session.outside_ms = recorded_ms
                self._outside.append((recorded_ms, session))
        session.values.append(value)
        session.places.append(topic << OFFSET_BITS | offset)
        session.times.append(recorded_ms)
        session.size += len(value)
        self.held_events += 1
        self.held_bytes += len(value)
        if recorded_ms > session.last_ms:
            session.last_ms = recorded_ms
        special = self._special.get(value[2:10], "")
        if special is not None:
            self._look(session, special, recorded_ms, value)
        if session.expected_total:
            self._ended[group] = session
        if session.watched_ms >= 0:
            self._stirred[group] = session

    def _open(self, group: bytes, recorded_ms: int) -> Session:
        session = Session(group, [-1] * len(self.positions), last_ms=recorded_ms)
        self.sessions[group] = session
        self._schedule(session)
        return session

    def _schedule(self, session: Session) -> None:
        """Look at the session again at its deadline; a later deadline is seen to then."""
        deadline = session.deadline_ms(self.times)
        if deadline < session.scheduled_ms:
            session.scheduled_ms = deadline
            self._serial += 1
            heapq.heappush(self._deadlines, (deadline, self._serial, session))

    def _look(self, session: Session, special: str, recorded_ms: int, value: bytes) -> None:
        """An event that is decoded as it comes, or of a schema not met before."""
        special = special or self._classify(session, recorded_ms, value)
        if special not in FOLD_READ:
            return
        try:
            _, record = self.decoder.decode(value)
        except Rejected:
            return  # undecodable: dead-lettered when the session closes
        if special == "session_ended":
            session.note_end(record, recorded_ms)
        elif special == "approval_requested":
            session.note_approval_requested(record, recorded_ms, self.times)
        elif special == "approval_decided":
            session.note_approval_decided(record)
        else:
            if session.watched_ms < 0 and (special == "credential_revoked" or denies(record)):
                session.watched_ms = recorded_ms
            return
        self._schedule(session)

    def _classify(self, session: Session, recorded_ms: int, value: bytes) -> str:
        key = _schema_key(value)
        own = value[:2] == SINGLE_OBJECT and key in events.fingerprints()
        if not own:
            session.foreign = True
        if key not in self.decoder.known:
            wait = recorded_ms + self.times.unknown_schema_wait_ms
            session.unknown[key] = max(session.unknown.get(key, 0), wait)
            self.unknown.setdefault(key, []).append((session, recorded_ms, value))
            return "unknown"
        name = self.decoder.name_of(key)
        if own:
            self._special[key] = name if name in FOLD_READ else None
        return name

    def learned(self, key: bytes) -> None:
        """The schema behind `key` is known now: look again at what came before it."""
        for session, recorded_ms, value in self.unknown.pop(key, ()):
            session.unknown.pop(key, None)
            if not session.closed:
                self._look(session, "", recorded_ms, value)
                self._schedule(session)
                self._ended[session.key] = session

    def refold(
        self, topic: int, offset: int, recorded_ms: int, key: bytes | None, value: bytes | None
    ) -> None:
        """Take one record again in recovery: left out if it lies below its session's cut.

        What `fold` refuses was dead-lettered by the transaction that consumed it.
        """
        try:
            group = group_key(key, value)
        except Rejected:
            return
        cut = self.cuts.get(group)
        if cut is None or offset >= cut[topic]:
            self.fold_again(topic, offset, recorded_ms, key, value)

    # --- the clock ---

    def confirm(self, topic: int, at_ms: int) -> None:
        """The broker confirmed at `at_ms` that nothing is left to read in this topic."""
        self.newest_ms[topic] = max(self.newest_ms[topic], at_ms)

    def clock_ms(self) -> int:
        """The smallest of the topics' newest times; -1 while one was neither read nor confirmed."""
        return min(self.newest_ms)

    # --- closing ---

    def due(self) -> Iterator[tuple[Session, str]]:
        """Sessions to close now, with the reason; call after a whole batch was folded.

        For the reason `counts` only the total was compared: the caller, who decodes, closes the
        session if every producer's own count is there, and else leaves it for its deadline.
        """
        ended, self._ended = self._ended, {}
        for session in ended.values():
            if not session.closed and session.may_be_whole():
                yield session, "counts"
        clock, left = self.clock_ms(), []
        while self._deadlines and self._deadlines[0][0] < clock:
            scheduled_ms, _, session = heapq.heappop(self._deadlines)
            if session.closed or scheduled_ms != session.scheduled_ms:
                continue
            session.scheduled_ms = NEVER_MS
            if session.deadline_ms(self.times) < clock:
                yield session, "grace" if session.ended_ms else "idle"
            if not session.closed:
                left.append(session)
        # Not before the end: one that its caller left open is due again at once, for ever.
        for session in left:
            self._schedule(session)

    def close(self, session: Session) -> None:
        """Forget a session whose record goes into the transaction under way."""
        session.closed = True
        self.held_events -= session.events
        self.held_bytes -= session.size
        del self.sessions[session.key]
        for key in session.unknown:
            waiting = [entry for entry in self.unknown.get(key, ()) if not entry[0].closed]
            if waiting:
                self.unknown[key] = waiting
            else:
                self.unknown.pop(key, None)

    def reopen(self, session: Session, *, due: bool = False) -> None:
        """Take back a session that was not to be closed yet, before its turn is committed.

        What was folded under its key since `close` is folded into it again. With `due` it is due
        again at the next turn, else when something comes for it or at its deadline.
        """
        if due:
            self._ended[session.key] = session
        session.closed = False
        self.held_events += session.events
        self.held_bytes += session.size
        newer = self.sessions.get(session.key)
        self.sessions[session.key] = session
        if session.unknown:
            for recorded_ms, value in zip(session.times, session.values, strict=True):
                if (key := _schema_key(value)) in session.unknown:
                    self.unknown.setdefault(key, []).append((session, recorded_ms, value))
        # What is left of it in the queues was passed over, or will be, as stale.
        session.scheduled_ms = NEVER_MS
        self._schedule(session)
        if newer is not None:
            self._merge(session, newer)
        self._outside.append((session.outside_ms, session))

    def _merge(self, session: Session, newer: Session) -> None:
        newer.closed = True
        self.held_events -= newer.events
        self.held_bytes -= newer.size
        if session.outside_ms < 0:
            session.outside_ms = newer.outside_ms
        for topic, queue in enumerate(self._lows):
            if session.first[topic] < 0 <= newer.first[topic]:
                # In its place, for a queue is in the order of its offsets.
                session.first[topic] = newer.first[topic]
                at = queue.index((newer.first[topic], newer))
                queue[at] = (newer.first[topic], session)
        for key in newer.unknown:
            self.unknown[key] = [entry for entry in self.unknown[key] if entry[0] is not newer]
        for place, recorded_ms, value in zip(newer.places, newer.times, newer.values, strict=True):
            topic, offset = place >> OFFSET_BITS, place & OFFSET_MASK
            self.fold_again(topic, offset, recorded_ms, session.key[:32], value)

    def fold_again(
        self, topic: int, offset: int, recorded_ms: int, key: bytes | None, value: bytes | None
    ) -> None:
        """Take a record of which the positions may say already that it was read."""
        held = self.positions[topic]
        self.fold(topic, offset, recorded_ms, key, value)
        self.positions[topic] = max(held, offset + 1)

    # --- before the close: see `open_revisions` ---

    def stirred(self) -> list[Session]:
        """Open sessions to look at as they stand, until they are `calm`: of those watched, which
        something came for, and the long-open ones that have grown.
        """
        self._stirred = {k: session for k, session in self._stirred.items() if not session.closed}
        return list(self._stirred.values())

    def calm(self, session: Session) -> None:
        """Nothing more is to be looked at until something comes for the session, or it grows."""
        del self._stirred[session.key]

    # --- long-open sessions: see `chunks` ---

    def overdue(self, turn: Turn, after_ms: int) -> Iterator[Session]:
        """Open sessions that have held an event outside of chunks for `after_ms`.

        For each, `in_chunks` must follow at once.
        """
        while self._outside and self._outside[0][0] + after_ms < turn.clock_ms:
            at_ms, session = self._outside.popleft()
            if not session.closed and session.outside_ms == at_ms >= 0:
                yield session

    def in_chunks(self, session: Session, chunks: Mapping[bytes, int]) -> None:
        """All that the session holds is in chunks, of which these are the last: key and offset."""
        session.chunks |= chunks
        session.promoted = len(session.values)
        session.outside_ms = -1
        session.first = [-1] * len(self.positions)
        if session.promoted >= 2 * session.looked_events:
            self._stirred[session.key] = session

    def leave(self, session: Session) -> None:
        """Let go of what the session's chunks hold, if it is open and all of them are known."""
        if not session.closed and -1 not in session.chunks.values():
            self.held_bytes -= session.leave()

    # --- recovery ---

    def restored(self, sessions_from: int) -> None:
        """Before the replay: the bound stays the first one known until its sessions are closed."""
        self.history.append(Committed(tuple(self.positions), sessions_from))

    def replayed(self) -> None:
        """After the replay: this is the state of the last commit, and nothing of it is new."""
        self.cuts = {}
        self.moved = False

    # --- what a commit says ---

    def turn(self) -> Turn:
        """End a batch: what is folded from here on belongs to the next one.

        Call `prepare` for the turn before: what closes in this one is still open for that one.
        """
        self.number += 1
        refused, self.refused = self.refused, []
        moved, self.moved = self.moved, False
        return Turn(self.number, tuple(self.positions), self.clock_ms(), refused, moved)

    def lows(self) -> list[int]:
        """Per topic, the lowest offset that an open session holds; else the position."""
        result = []
        for topic, queue in enumerate(self._lows):
            while queue and (queue[0][1].closed or queue[0][1].first[topic] != queue[0][0]):
                queue.popleft()
            result.append(queue[0][0] if queue else self.positions[topic])
        return result

    def prepare(self, turn: Turn) -> list[Metadata]:
        """Metadata per topic for the turn's transaction; `committed` must follow its commit.

        No session is away to be closed then.
        """
        self._sweep()
        # Sessions that only a later batch opened hold nothing below the turn's positions.
        lows = list(map(min, self.lows(), turn.positions))
        # A bound on every record whose transaction consumed any offset at or above a low: the
        # first remembered transaction that went beyond one. Taken at the commit instead, a session
        # closed and reopened between two commits would be counted twice after a crash.
        while self.history and all(
            h <= low for h, low in zip(self.history[0].positions, lows, strict=True)
        ):
            self.history.popleft()
        start = self.history[0].sessions_end if self.history else self.sessions_end
        return [Metadata(turn.number, low, start) for low in lows]

    def _sweep(self) -> None:
        """Drop closed sessions from queues that hold little else."""
        most = 2 * len(self.sessions) + _SWEPT_MIN
        if len(self._deadlines) > most:
            self._deadlines = [
                entry
                for entry in self._deadlines
                if not entry[2].closed and entry[0] == entry[2].scheduled_ms
            ]
            heapq.heapify(self._deadlines)
        for topic, queue in enumerate(self._lows):
            if len(queue) > most:
                held = (e for e in queue if not e[1].closed and e[1].first[topic] == e[0])
                self._lows[topic] = deque(held)
        if len(self._outside) > most:
            held = (e for e in self._outside if not e[1].closed and e[1].outside_ms == e[0])
            self._outside = deque(held)

    def committed(self, turn: Turn, sessions_end: int) -> None:
        """The turn's transaction is committed; `sessions_end` from its delivery reports."""
        self.committed_number = turn.number
        self.history.append(Committed(turn.positions, self.sessions_end))
        self.sessions_end = max(self.sessions_end, sessions_end)
