"""Runs of one lane against a log in memory, with crashes at every point between two effects.

The lane, the closing, the cuts, the metadata and the replay are the real ones; the log, the
transactions, the children that close sessions while the next batch is folded, and the crashes are
the model's. Two things are held: after each recovery the lane is
as the last commit left it, and in the end every input offset was taken by exactly one committed
record or dead letter. Each rule of the protocol, switched off, must be caught by the same runs.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final
from unittest.mock import patch

import pytest
from hypothesis import settings
from trailweave.schemas.errors import Fatal
from trailweave.stream_processors import memory, recovery
from trailweave.stream_processors.chain import Record
from trailweave.stream_processors.chunks import (
    Chunk,
    largest,
    number_of,
    promote,
    promoted,
)
from trailweave.stream_processors.closing import close
from trailweave.stream_processors.lanes import Lane, Metadata, Turn
from trailweave.stream_processors.rules import RULES
from trailweave.stream_processors.session import ClosingTimes, Session
from trailweave.stream_processors.verdict import RulesConfig

from tests.unit.stream_processors.builders import (
    FOLD_DECODER,
    TOPICS,
    as_stored,
    places,
    source,
)
from tests.unit.stream_processors.recovery_world import (
    AllChunksOf,
    Broker,
    ChunksOf,
    Headers,
    Offsets,
    Place,
    Stored,
    pool,
)

pytestmark = pytest.mark.simulation

SEEDS: Final = 4 * settings().max_examples
#: Each rule switched off must be caught within so many runs.
CONTROL_SEEDS: Final = 6 * settings().max_examples
ROUNDS: Final = 12
TIMES: Final = ClosingTimes(
    grace_ms=4, idle_ms=12, approval_hold_max_ms=20, unknown_schema_wait_ms=6
)
PROMOTE_MS: Final = 3
#: What a rule says of a chain has no part in this.
NO_RULES: Final = RulesConfig(off=frozenset(rule.name for rule in RULES))
HUGE: Final = 1 << 40
#: Sessions are closed before the batch ends: a control folds what is left of it in between.
NO_TURN: Final = Turn(0, (), 0, [], moved=False)


class WrongError(AssertionError):
    """The protocol did not hold."""


@dataclass(frozen=True)
class Rules:
    """The protocol as it is; a control replaces one of its rules by a shortcut."""

    bound: Callable[[int, int], int] = lambda bound, _known_end: bound
    cuts: Callable[[list[Headers]], dict[bytes, list[int]]] = recovery.cuts_of
    send_all_offsets: bool = True
    forget_after_abort: bool = True
    close_after_the_batch: bool = True
    believe_the_offsets: bool = True
    subtract_evidence: bool = False
    say_the_turn: bool = True
    prepare_before_the_next_closings: bool = True
    fold_again_what_came_since: bool = True
    delete_chunks_at_the_close: bool = True
    heed_the_cuts_of_chunks: bool = True
    chunks: Callable[[Broker, int], memory.Memory] = ChunksOf
    check_newest: Callable[..., None] = recovery.check_newest
    check_cuts: Callable[..., None] = recovery.check_cuts


Sessions = dict[bytes, tuple[object, ...]]


@dataclass
class Transaction:
    """What a batch is about to commit."""

    turn: Turn
    due: list[tuple[Session, str]]
    #: All sessions as they were when the batch ended.
    held: Sessions
    taken: list[Place] = field(default_factory=list)
    evidence: set[Place] = field(default_factory=set)
    closed: list[tuple[Session, str]] = field(default_factory=list)
    promoted: list[tuple[Session, Chunk]] = field(default_factory=list)
    #: Sessions that leave memory once their chunks are committed.
    leaving: list[Session] = field(default_factory=list)
    offsets: list[tuple[str, int, str | None]] = field(default_factory=list)
    #: What a recovery must bring back once this is committed.
    after: tuple[object, ...] = ()

    @property
    def says_something(self) -> bool:
        return bool(self.closed or self.promoted or self.turn.moved)


class Run:
    """One lane in one worker; by itself, a seeded run of a worker that has one lane."""

    def __init__(
        self, chance: int | random.Random, rules: Rules, broker: Broker | None = None
    ) -> None:
        self.chance = chance if isinstance(chance, random.Random) else random.Random(chance)
        self.rules = rules
        self.broker = broker or Broker()
        #: A batch whose sessions the children close, and one that is closed and not committed.
        self.ahead: Transaction | None = None
        self.closed: Transaction | None = None
        self.lane = self.recovered()

    def play(self) -> None:
        for _ in range(ROUNDS):
            self.arrive()
            self.meddle()
            self.step()
        self.drain()
        self.check()

    # --- the world around the lane ---

    def arrive(self) -> None:
        for topic, key, value in self.chance.choices(pool(), k=self.chance.randint(0, 7)):
            self.broker.now_ms += self.chance.choice((0, 0, 1, 2))
            self.broker.inputs[topic].append((self.broker.now_ms, key, value))
            if self.chance.random() < 0.05:
                self.broker.inputs[topic].append(None)

    def meddle(self) -> None:
        """Records that take nothing: open revisions, and what reassess writes."""
        if not self.lane.sessions or self.chance.random() > 0.2:
            return
        key = self.chance.choice(list(self.lane.sessions))
        cut = (HUGE,) * len(TOPICS)
        headers = dict(recovery.session_headers("open", self.lane.committed_number, key, cut))
        if self.chance.random() < 0.5:
            headers = {**headers, "w": b"reassess", "kind": b"chain"}
        self.broker.sessions += [headers, None]

    # --- a step of the worker ---

    def batch(self) -> Iterator[tuple[int, int, Stored]]:
        """Some of what is there, topics in any order; a topic may lag behind."""
        queues = []
        for topic, log in enumerate(self.broker.inputs):
            start = self.lane.positions[topic]
            share = self.chance.choice((0, 1, 4, len(log)))
            queues.append([(topic, o, r) for o, r in enumerate(log[start : start + share], start)])
        while any(queues):
            topic, offset, record = self.chance.choice([q for q in queues if q]).pop(0)
            if record is not None:
                yield topic, offset, record

    def step(self) -> None:
        rest = self.fold_and_commit()
        if rest is None:
            return  # of what was begun nothing is left
        before, self.ahead = self.ahead, None
        if before is not None:
            self.finish(before)
        self.confirm()
        work = self.begin(rest)
        if before is not None and not self.rules.prepare_before_the_next_closings:
            self.prepare(before)
        self.closed, self.ahead = before, work
        if self.chance.random() < 0.5:
            self.settle()

    def settle(self) -> None:
        """The children have nothing to do: all is committed at once."""
        closed, self.closed = self.closed, None
        if closed is not None and not self.transact(closed):
            return
        work, self.ahead = self.ahead, None
        if work is not None:
            self.finish(work)
            self.transact(work)

    def fold_and_commit(self) -> list[tuple[int, int, Stored]] | None:
        """Fold a batch, and somewhere in it commit the one that is closed; None after a crash."""
        found = list(self.batch())
        rest = self.fold_first(found, self.chance.randint(0, len(found) // 2))
        closed, self.closed = self.closed, None
        if closed is not None and not self.transact(closed):
            return None
        return self.fold(rest)

    def fold(self, found: list[tuple[int, int, Stored]]) -> list[tuple[int, int, Stored]]:
        """Fold these, or what a control folds of them before the closings; the rest."""
        all_of_it = self.rules.close_after_the_batch
        return self.fold_first(found, len(found) if all_of_it else len(found) // 2)

    def fold_first(
        self, found: list[tuple[int, int, Stored]], count: int
    ) -> list[tuple[int, int, Stored]]:
        """Fold so many; the rest."""
        for topic, offset, record in found[:count]:
            self.lane.fold(topic, offset, *record)
        return found[count:]

    def confirm(self) -> None:
        """The broker answers for some topics, as of a moment that may have passed by."""
        asked_ms = self.broker.now_ms - self.chance.choice((0, 0, 3))
        for topic, log in enumerate(self.broker.inputs):
            rest = log[self.lane.positions[topic] :]
            if not any(rest) and self.chance.random() < 0.8:
                self.lane.confirm(topic, asked_ms)
        self.broker.now_ms += self.chance.choice((0, 1, 5))

    def begin(self, rest: list[tuple[int, int, Stored]]) -> Transaction:
        """End the batch; `rest` is what a control folds only after the closings."""
        held = self.sessions()
        # More may be due at once than one transaction may carry, or than may come back.
        most = self.chance.choice((0, 400, HUGE))
        chunks = self.rules.chunks(self.broker, self.chance.choice((0, 400, HUGE)))
        with patch.object(memory, "TURN_BYTES_MAX", most):
            due = [(one.session, one.reason) for one in chunks.take_due([(self.lane, NO_TURN)])]
        for topic, offset, record in rest:
            self.lane.fold(topic, offset, *record)
        work = Transaction(self.lane.turn(), due, held)
        room = self.chance.choice((1 << 20, 200))
        work.promoted = list(promote(self.lane, work.turn, PROMOTE_MS, room))
        freed = self.chance.choice((0, 0, 400))
        for _, _, session in largest([(self.lane, work.turn)], freed, room):
            work.leaving.append(session)
            work.promoted += [(session, c) for c in promoted(self.lane, session, work.turn)]
        work.held |= self.sessions(dict(chunk for _, chunk in work.promoted))
        return work

    def finish(self, work: Transaction) -> None:
        for session, reason in work.due:
            closing = close(session, reason, work.turn, source(CLOSING_AND_RULES), NO_RULES)
            # By chance, its schemas may still be published.
            if closing is None or self.chance.random() < 0.1:
                self.reopen(session)
                continue
            work.closed.append((session, closing.kind))
            held = places(session)
            evidence = {
                (TOPICS.index(e["topic"]), e["offset"])
                for e in as_stored(closing.chain)["evidence"]
            }
            refused = {(r.topic, r.offset) for r in closing.refused}
            if not evidence | refused <= held or evidence & refused:
                raise WrongError("a record names events that it does not hold")
            if len(evidence) + len(refused) + closing.chain["duplicates"] != len(held):
                raise WrongError("a record does not account for all that it holds")
            work.taken += held
            work.evidence |= evidence
        work.taken += [(refused.topic, refused.offset) for refused in work.turn.refused]
        self.prepare(work)

    def reopen(self, session: Session) -> None:
        newer = self.lane.sessions.get(session.key)
        if newer is not None and not self.rules.fold_again_what_came_since:
            self.lane.close(newer)
        self.lane.reopen(session)

    def prepare(self, work: Transaction) -> None:
        """Offsets and metadata of all topics, and the state that they are to bring back."""
        known_end = len(self.broker.sessions)
        positions = work.turn.positions if self.rules.say_the_turn else self.lane.positions
        metadata = self.lane.prepare(work.turn)
        work.offsets = []
        for number, (topic, before, known) in enumerate(self.broker.committed):
            meta = metadata[number]
            start = self.rules.bound(meta.sessions_from, known_end)
            moved = positions[number] != before or self.rules.send_all_offsets
            text = f"v1;{meta.number};{meta.low};{start}" if moved else known
            work.offsets.append((topic, positions[number], text))
        closed = {session.key for session, _ in work.closed}
        still_open = {key: held for key, held in work.held.items() if key not in closed}
        work.after = lane_state(work.turn, still_open, metadata)

    def transact(self, work: Transaction) -> bool:
        """Commit; False when the worker began anew."""
        if not work.says_something:
            return True
        if self.chance.random() < 0.2:
            return self.crash_before_the_commit(work)
        before = self.broker.committed
        self.persist(work)
        self.believe(work)
        if self.chance.random() < 0.2:
            # The commit was applied, and its reply never came: or came, and then the end.
            if not self.rules.believe_the_offsets:
                self.broker.committed = before
            self.begin_anew()
            return False
        return True

    def begin_anew(self) -> None:
        self.ahead = self.closed = None
        self.lane = self.recovered()

    def persist(self, work: Transaction) -> None:
        """What a commit does in the broker."""
        broker = self.broker
        positions = work.turn.positions if self.rules.say_the_turn else self.lane.positions
        broker.sessions += [
            dict(recovery.session_headers(kind, work.turn.number, session.key, tuple(positions)))
            for session, kind in work.closed
        ]
        broker.sessions.append(None)
        broker.older.append(broker.committed)
        broker.committed = work.offsets
        broker.alone |= {(refused.topic, refused.offset) for refused in work.turn.refused}
        for _, (key, chunk) in work.promoted:
            broker.store(key, chunk)
        if self.rules.delete_chunks_at_the_close:
            for key in (key for session, _ in work.closed for key in session.chunks):
                broker.chunks.pop(key, None)
        broker.taken.update(work.taken)
        broker.evidence |= work.evidence
        broker.after = work.after

    def believe(self, work: Transaction) -> None:
        """What its reply does in the worker; delivery reports may not come."""
        known = self.chance.random() < 0.9
        end = len(self.broker.sessions) - 1 if work.closed and known else 0
        self.lane.committed(work.turn, end)
        for session, (key, _) in work.promoted:
            at = self.broker.chunks_at[key]
            session.chunks[key] = at if self.chance.random() < 0.9 else -1
        for session in work.leaving:
            self.lane.leave(session)

    def abort(self, work: Transaction) -> None:
        """What the broker keeps of records that were written and never committed."""
        self.broker.sessions += [None] * (self.chance.randint(0, len(work.closed)) + 1)

    def crash_before_the_commit(self, work: Transaction) -> bool:
        self.abort(work)
        if self.rules.forget_after_abort:
            self.begin_anew()
            return False
        self.lane.committed(work.turn, 0)
        return True

    # --- recovery, as `LaneRecovery` does it ---

    def recovered(self) -> Lane:
        if self.broker.older and self.chance.random() < 0.1:
            with contextlib.suppress(recovery.OffsetsError):
                # Of sessions that were closed since, nothing comes back.
                lane = self.recovered_from(self.chance.choice(self.broker.older), None)
                self.broker.went_back = True
                return lane
        return self.recovered_from(self.broker.committed, self.broker.after)

    def recovered_from(self, stored: Offsets, expected: tuple[object, ...] | None) -> Lane:
        point = recovery.checkpoint(0, stored)
        end = len(self.broker.sessions)
        self.rules.check_newest(0, "group", point, self.newest(point))
        if point is None:
            return Lane(0, [0] * len(TOPICS), TIMES, FOLD_DECODER, sessions_end=end)
        recovery.check_log_starts(0, TOPICS, point, [0] * len(TOPICS))
        headers = [h for h in self.broker.sessions[point.sessions_from : end] if h is not None]
        lane = Lane(0, list(point.positions), TIMES, FOLD_DECODER, sessions_end=end)
        cuts = self.rules.cuts(headers)
        room = self.chance.choice((0, HUGE))
        with patch.object(recovery, "check_cuts", self.rules.check_cuts):
            recovery.replay(lane, point, headers_of(cuts), self.chunks(), self.between(point), room)
        turn = Turn(lane.number, tuple(lane.positions), 0, [], moved=False)
        after = lane_state(turn, sessions_of(lane, self.broker.chunks), lane.prepare(turn))
        if expected is not None and after != expected:
            raise WrongError("the recovery is not the state of the last commit")
        return lane

    def newest(self, point: recovery.Checkpoint | None) -> int:
        """The newest transaction of which there are records."""
        records = self.broker.sessions[point.sessions_from if point else 0 :]
        numbers = recovery.numbers_of(headers for headers in records if headers is not None)
        return max((0, *numbers, *map(number_of, self.broker.chunks)))

    def chunks(self) -> list[tuple[bytes, int, Record]]:
        """Live chunks in the log's order."""
        heeded = self.rules.heed_the_cuts_of_chunks
        return [
            (
                key,
                self.broker.chunks_at[key],
                chunk if heeded else {**chunk, "cut": [0] * len(TOPICS)},
            )
            for key, chunk in self.broker.chunks.items()
        ]

    def sessions(self, coming: dict[bytes, Record] | None = None) -> Sessions:
        return sessions_of(self.lane, self.broker.chunks | (coming or {}))

    def between(self, point: recovery.Checkpoint) -> Iterator[tuple[int, int, int, bytes, bytes]]:
        """Each topic's records from its low to its position, the topics in any order."""
        queues = [
            [(t, o, r) for o, r in enumerate(self.broker.inputs[t][low:end], low) if r is not None]
            for t, (low, end) in enumerate(zip(point.lows, point.positions, strict=True))
        ]
        while any(queues):
            topic, offset, record = self.chance.choice([q for q in queues if q]).pop(0)
            if not (self.rules.subtract_evidence and (topic, offset) in self.broker.evidence):
                yield topic, offset, *record

    # --- the end ---

    @property
    def committed_since(self) -> bool:
        """Whether somebody else committed for the lane: `JoinWorker` asks the same."""
        point = recovery.checkpoint(0, self.broker.committed)
        return point is not None and point.number > self.lane.committed_number

    @property
    def done(self) -> bool:
        """Whether all that arrived is read, closed and committed."""
        logs = zip(self.broker.inputs, self.lane.positions, strict=True)
        unread = any(any(log[start:]) for log, start in logs)
        settled = self.ahead is None and self.closed is None
        return settled and not self.lane.sessions and not unread

    def drain(self) -> None:
        """No more arrives, and all is read and closed; a crash is still possible in between."""
        for _ in range(200):
            if self.done:
                return
            self.broker.now_ms += 50
            self.step()
        raise WrongError("a session never closed")

    def check(self) -> None:
        for topic, log in enumerate(self.broker.inputs):
            for offset, record in enumerate(log):
                times = self.broker.taken[topic, offset]
                if times > 1 and self.broker.went_back and (topic, offset) in self.broker.alone:
                    continue
                if times != (record is not None):
                    raise WrongError(f"{TOPICS[topic]} {offset} was taken {times} times")


CLOSING_AND_RULES: Final = source().decoder


def headers_of(cuts: dict[bytes, list[int]]) -> list[Headers]:
    """Headers that say just these cuts."""
    return [
        dict(recovery.session_headers("chain", 1, session, tuple(cut)))
        for session, cut in cuts.items()
    ]


def sessions_of(lane: Lane, chunks: dict[bytes, Record]) -> Sessions:
    """All of the open sessions that a recovery must bring back, in memory or in chunks."""
    return {
        key: (
            places(s).union(*(places_in(chunks[key]) for key in s.chunks if key in chunks)),
            tuple(s.first),
            (s.last_ms, s.ended_ms, s.expected_total, s.foreign),
            (s.size + s.away_bytes, s.promoted + s.away, tuple(s.chunks), s.outside_ms < 0),
            (dict(s.expected), dict(s.pending), set(s.decided), dict(s.unknown)),
        )
        for key, s in lane.sessions.items()
    }


def places_in(chunk: Record) -> set[Place]:
    return {(event["topic"], event["offset"]) for event in chunk["events"]}


def lane_state(turn: Turn, held: Sessions, metadata: list[Metadata]) -> tuple[object, ...]:
    """All of a lane that a recovery must bring back."""
    lows, positions = [meta.low for meta in metadata], list(turn.positions)
    # With nothing held outside of chunks the bound is whatever end is known: only above it records
    # are written.
    bound = metadata[0].sessions_from if lows != positions else None
    return held, positions, turn.number, lows, bound


def fails(seed: int, rules: Rules) -> bool:
    try:
        Run(seed, rules).play()
    except (WrongError, Fatal):
        return True
    return False


def test_the_protocol_holds_in_every_run() -> None:
    for seed in range(SEEDS):
        Run(seed, Rules()).play()


def skip_traces(headers: list[Headers]) -> dict[bytes, list[int]]:
    return {session: [HUGE] * len(cut) for session, cut in recovery.cuts_of(headers).items()}


def take_open_revisions(headers: list[Headers]) -> dict[bytes, list[int]]:
    return recovery.cuts_of(h | ({"kind": b"chain"} if h["w"] == b"join" else {}) for h in headers)


def take_reassess(headers: list[Headers]) -> dict[bytes, list[int]]:
    return recovery.cuts_of(h | {"w": b"join"} for h in headers)


def believe(*_: object) -> None:
    """Whatever the broker says of offsets."""


def no_cuts(_: list[Headers]) -> dict[bytes, list[int]]:
    return {}


SHORTCUTS: Final = {
    "the bound is taken at the commit": Rules(bound=lambda _bound, known_end: known_end),
    "traces that were closed are skipped": Rules(cuts=skip_traces),
    "nothing is left out": Rules(cuts=no_cuts),
    "an open revision counts as a closing": Rules(cuts=take_open_revisions),
    "a reassess record counts as a closing": Rules(cuts=take_reassess),
    "offsets are sent for what moved": Rules(send_all_offsets=False),
    "memory is kept after an abort": Rules(forget_after_abort=False),
    "sessions close inside a batch": Rules(close_after_the_batch=False),
    "a commit in doubt counts as aborted": Rules(believe_the_offsets=False),
    "the evidence is subtracted, not the cut": Rules(cuts=no_cuts, subtract_evidence=True),
    "a commit says what was folded after its batch": Rules(say_the_turn=False),
    "the next closings are done before a commit is prepared": Rules(
        prepare_before_the_next_closings=False
    ),
    "what came while a session was away is forgotten": Rules(fold_again_what_came_since=False),
    "chunks outlive their session": Rules(delete_chunks_at_the_close=False),
    "what is in a chunk is read again": Rules(heed_the_cuts_of_chunks=False),
    "a chunk on its way is asked for": Rules(chunks=AllChunksOf),
    "older offsets are believed": Rules(check_newest=believe, check_cuts=believe),
}


@pytest.mark.parametrize("rules", SHORTCUTS.values(), ids=SHORTCUTS.keys())
def test_a_shortcut_is_caught(rules: Rules) -> None:
    assert any(fails(seed, rules) for seed in range(CONTROL_SEEDS))
