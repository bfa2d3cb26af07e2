"""One open session: all events of one (tenant, trace id) in one lane, as the bytes that came.

Pure, and on the path of every event: nothing is decoded here but what decides when the session
closes, and whether it is watched until then. `lanes` owns sessions; `chain` reads one whole.
"""

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from trailweave.schemas.errors import Fatal

NEVER_MS: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class ClosingTimes:
    """When a session that got no exhaustive end closes; broker time, milliseconds."""

    #: After the root's end: late events of other producers are mostly here by then.
    grace_ms: int = 30_000
    #: Without an event and without an end.
    idle_ms: int = 15 * 60_000
    #: A pending approval without an expiry, or with a far one, holds its session no longer.
    approval_hold_max_ms: int = 24 * 3_600_000
    #: An event of an unpublished schema is waited for this long (`SchemaTopic.standing`).
    unknown_schema_wait_ms: int = 60_000


@dataclass(eq=False)
class Session:
    """Events of one session outside any record, in the order of their folding.

    `places[i]` is (topic index << 48 | offset) of `values[i]`, `times[i]` its broker timestamp.
    `first[t]` is the lowest offset in topic t that it holds outside of chunks, or -1.
    """

    key: bytes
    first: list[int]
    values: list[bytes] = field(default_factory=list)
    places: "array[int]" = field(default_factory=lambda: array("q"))
    times: "array[int]" = field(default_factory=lambda: array("q"))
    #: Bytes of `values`.
    size: int = 0
    #: How many of the values, the first ones, are in chunks.
    promoted: int = 0
    #: Events before `values` that only chunks hold, and their bytes.
    away: int = 0
    away_bytes: int = 0
    #: Offsets of its chunks by their keys, in their order; -1: not known.
    chunks: dict[bytes, int] = field(default_factory=dict)
    #: Broker time of the first event outside of chunks, or -1.
    outside_ms: int = -1
    #: Whether an event's schema is not one that this version writes.
    foreign: bool = False
    last_ms: int = 0
    closed: bool = False
    #: Broker time of the first root `session_ended`, or 0.
    ended_ms: int = 0
    #: Sum of the exhaustive expected counts, or 0 while there is none.
    expected_total: int = 0
    expected: dict[str, int] = field(default_factory=dict)
    #: Undecided approvals: id -> broker time until which they hold the session open.
    pending: dict[str, int] = field(default_factory=dict)
    decided: set[str] = field(default_factory=set)
    #: Keys of schemas that nobody has published yet -> broker time until which they are waited for.
    unknown: dict[bytes, int] = field(default_factory=dict)
    #: Broker time of what was denied or revoked first, or -1: what comes after it may not be let
    #: wait for the close.
    watched_ms: int = -1
    #: Lane clock of the last look at it as it stood, or -1, and its events then.
    looked_ms: int = -1
    looked_events: int = 0
    #: Ids of the findings of its last open revision; None: there was none.
    told: frozenset[str] | None = None
    #: The deadline under which the lane has it in its heap; other entries of it are stale.
    scheduled_ms: int = NEVER_MS

    def forget(self) -> None:
        """Let go of the events: lanes keep what is closed in their queues for a while."""
        self.values, self.places, self.times = [], array("q"), array("q")

    def leave(self) -> int:
        """Leave to its chunks what is in them; the bytes that this frees."""
        count = self.promoted
        freed = sum(map(len, self.values[:count]))
        self.values, self.places = self.values[count:], self.places[count:]
        self.times = self.times[count:]
        self.promoted = 0
        self.size -= freed
        self.away += count
        self.away_bytes += freed
        return freed

    def come_back(self, events: Iterable[tuple[int, int, bytes]]) -> int:
        """Have what is away in memory again, as (place, broker time, bytes); the bytes of it."""
        places, times, values = array("q"), array("q"), []
        for place, recorded_ms, value in events:
            places.append(place)
            times.append(recorded_ms)
            values.append(value)
        added = self.away_bytes
        if (len(values), sum(map(len, values))) != (self.away, added):
            raise Fatal(
                f"couldn't read back the events of trace {self.trace_id}: its chunks hold "
                f"{len(values)} of {self.away}"
            )
        self.values, self.places, self.times = (
            values + self.values,
            places + self.places,
            times + self.times,
        )
        self.promoted += self.away
        self.size += added
        self.away = self.away_bytes = 0
        return added

    @property
    def events(self) -> int:
        """How many it holds, those away included."""
        return self.away + len(self.values)

    @property
    def trace_id(self) -> str:
        """The trace: the first 32 bytes of the key."""
        return self.key[:32].decode()

    @property
    def tenant(self) -> str:
        """The tenant: what follows its length byte in the key."""
        return self.key[33:].decode(errors="replace")

    def note_end(self, record: Mapping[str, Any], recorded_ms: int) -> None:
        """A `session_ended`: only the root's closes anything."""
        if not record["root"]:
            return
        self.ended_ms = min(self.ended_ms or recorded_ms, recorded_ms)
        if record["expected_exhaustive"]:
            for producer, count in record["expected"].items():
                self.expected[producer] = max(self.expected.get(producer, 0), count)
            self.expected_total = sum(self.expected.values())

    def note_approval_requested(
        self, record: Mapping[str, Any], recorded_ms: int, times: ClosingTimes
    ) -> None:
        """A request without a decision holds the session open until it lapses."""
        if record["approval_id"] not in self.decided:
            cap = recorded_ms + times.approval_hold_max_ms
            expires = record["expires_at"]
            until = cap if expires is None else min(cap, expires // 1000)
            self.pending[record["approval_id"]] = until

    def note_approval_decided(self, record: Mapping[str, Any]) -> None:
        """The decision may arrive before its request."""
        self.decided.add(record["approval_id"])
        self.pending.pop(record["approval_id"], None)

    def deadline_ms(self, times: ClosingTimes) -> int:
        """The session closes when the lane clock is past this."""
        base = self.ended_ms + times.grace_ms if self.ended_ms else self.last_ms + times.idle_ms
        if self.pending:
            base = max(base, *self.pending.values())
        return max(base, *self.unknown.values()) if self.unknown else base

    def may_be_whole(self) -> bool:
        """Whether as many events as the exhaustive end promised may be here, whoever sent them.

        Of just so many, and of a session that is partly away, it is seen when they are read whether
        they are distinct: mostly they are, and only once is that guess wrong. Of more, they are
        compared here, or a session with duplicates would be read at each event that still comes.
        """
        if self.unknown or not 0 < self.expected_total <= self.events:
            return False
        if self.away or self.events == self.expected_total:
            return True
        # The first byte tells the framings apart: 0 is Confluent's.
        ids = {v[11:47] if v[0] else v[6:42] for v in self.values}
        return len(ids) >= self.expected_total
