"""Runs of the load against Kafka and ClickHouse in memory, with a fault at every point.

Ranges, intents, tokens, rows, what is looked for and what is isolated, and the order of effects
are the real ones; the log, the offsets, the tables with their deduplication window, lost and late
replies, kills and zombies are the model's. Rows are read back from the bytes that were inserted.
In the end every accepted record has each of its rows once, and every refused one its letter. Each
rule of the protocol, switched off, must be caught by the same runs.

Left out, as the protocol does not promise it: while an insert of a zombie is still to come, an
offset that goes back, a server that dies between part and token, or that acknowledges what it has
not stored.
"""

from __future__ import annotations

import contextlib
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args
from unittest.mock import patch

import pytest
from hypothesis import settings
from trailweave.schemas.errors import Fatal, Reason, Rejected, Retryable
from trailweave.sinks import load_build, load_insert, load_plan, load_ranges
from trailweave.sinks.load_build import Record, Source
from trailweave.sinks.load_insert import Inserter
from trailweave.sinks.load_job import Job, LetterBox, Offsets, announce, finish
from trailweave.sinks.load_plan import Place, Range, Target
from trailweave.sinks.load_ranges import Limits, Ranges, Start
from trailweave.sinks.metrics import LoadMetrics
from trailweave.sinks.rows import Layout

from tests.unit.sinks.load_world import (
    DAY_MS,
    START_MS,
    TOPICS,
    ClickHouse,
    Late,
    Log,
    Row,
    period,
    pool,
    stored,
)

pytestmark = pytest.mark.simulation

SEEDS: Final = 6 * settings().max_examples
#: Each rule switched off must be caught within so many runs.
CONTROL_SEEDS: Final = 20 * settings().max_examples
ROUNDS: Final = 3
SESSION_S: Final = 45.0
LYING: Final = ("refused", "unanswered", "crash", "lie")
LEASE_S: Final = 25.0
METRICS: Final = LoadMetrics()


#: What a run has more of than others: rare faults meet only where they are frequent.
Bias = Literal["nothing", "late", "zombies", "crashes", "new topics", "poison"]
BIASES: Final = get_args(Bias)


class WrongError(AssertionError):
    """The protocol did not hold."""


class KilledError(Exception):
    """The worker's process is gone."""


class LostError(Retryable):
    """The group has another member for the partition."""


@dataclass(frozen=True)
class Rules:
    """The protocol as it is; a control replaces one of its rules by a shortcut."""

    #: Tokens that a table remembers. In earnest 20,000, and bounded below by what may be late.
    window: int = 6
    #: Functions of the real modules and what stands in for them.
    patches: tuple[tuple[Any, str, Any], ...] = ()
    announce: Callable[[Job, Offsets, float, float], None] = announce
    finish: Callable[[Job, LetterBox, Offsets], None] = finish
    commit_before_the_write: bool = False
    redo_exactly: bool = True
    look_before_a_redo: bool = True
    look_beyond_the_range: bool = True
    lease_s: float = LEASE_S
    #: The bias of runs that show what the shortcut does; None: every run its own.
    bias: Bias | None = None
    #: A seed that shows it: others do too, but a quick run need not look for them.
    first: int = 0


class Worker:
    """What `LoadWorker` does, one effect after the other."""

    def __init__(self, run: Run, generation: int) -> None:
        chance = run.chance
        self.run, self.generation, self.dead = run, generation, False
        sizes = {"crashes": (1,), "zombies": (1, 1, 6), "late": (5, 9), "poison": (5, 9)}
        rows = chance.choice(sizes.get(run.bias, (1, 3, 9)))
        limits = Limits(rows, chance.choice((2_500, 1 << 20)), 0)
        self.ranges = Ranges(pool()[1], "group", limits, lambda *_: None)
        self.inserter = Inserter(
            Store(self), METRICS, 185, lambda: run.now, lambda: run.now_ms / 1000
        )
        self.job: Job | None = None
        #: When it last asked for its lease, and the tables' inserts by then.
        self.asked = 0.0
        self.inserts: Counter[str] = Counter()
        self.position: dict[str, int] = {}
        for log in run.logs.values():
            offset, metadata = log.committed or (None, None)
            start, intent = load_plan.resume(offset, metadata, 0, len(log.records), log.topic)
            if not run.rules.redo_exactly:
                intent = None
            self.ranges.take(Start(log.source(), start, intent), "cluster", 1e9)
            self.position[log.topic] = start

    def step(self) -> None:
        self.read()
        if self.job is None:
            self.job = self.ranges.next(self.run.now, waits=self.run.chance.choice((False, True)))
        if self.job is None:
            return
        try:
            self.bring(self.job)
        except LostError:
            self.dead = True
        except Retryable:
            self.job.doubt = True
        else:
            self.job = None

    def bring(self, job: Job) -> None:
        rules, offsets, letters = self.run.rules, Group(self), Letters(self)
        self.asked, self.inserts = self.run.now, self.run.tables.inserts.copy()
        rules.announce(job, offsets, self.asked, rules.lease_s)
        if rules.commit_before_the_write:
            rules.finish(job, letters, offsets)
        if not rules.look_before_a_redo:
            job.doubt = False
        self.inserter.attempt(job)
        rules.finish(job, letters, offsets)

    def read(self) -> None:
        for log in self.run.logs.values():
            reading, start = self.ranges.readings[log.topic, 0], self.position[log.topic]
            end = min(start + self.run.chance.choice((0, 3, 9, 9)), len(log.records))
            for offset, found in enumerate(log.records[start:end], start):
                if found is not None:
                    at, record = found
                    reading.keep(Record(offset, at, record.key, record.value, ()), self.run.now)
            self.position[log.topic] = end


@dataclass
class Group:
    """The committed offsets, as one member may commit them."""

    worker: Worker

    def commit(self, source: Source, offset: int, metadata: str) -> None:
        run, log = self.worker.run, self.worker.run.logs[source.topic]
        run.point(self.worker)
        if self.worker.generation != run.generation:
            raise LostError("couldn't commit")
        applied = answered = True
        if run.faulty():
            applied, answered = run.chance.choice(((True, False), (False, False)))
        if applied:
            log.committed = (offset, metadata)
            log.before.append(log.committed)
        if not answered:
            raise Retryable("couldn't commit")
        run.point(self.worker)


@dataclass
class Letters:
    """The dead-letter topic: a letter is named by its record's place."""

    worker: Worker

    def send(self, source: Source, rejected: Sequence[tuple[Record, Reason]]) -> None:
        for record, _ in rejected:
            self.worker.run.point(self.worker)
            self.worker.run.letters.add((source.topic_id, record.offset))
        if rejected and self.worker.run.faulty():
            raise Retryable("couldn't write dead letters")


@dataclass
class Store:
    """ClickHouse, as one worker reaches it."""

    worker: Worker

    def insert(self, layout: Layout, rows: Iterable[bytes], token: str) -> None:
        run, tables, table = self.worker.run, self.worker.run.tables, layout.table
        before = tables.inserts[table]
        run.point(self.worker)
        run.arrive_late()
        if run.now <= self.worker.asked + LEASE_S:
            before = self.worker.inserts[table]
        # The window is longer than a lease, and than any sleep between its check and an insert.
        zombie = self.worker.generation != run.generation
        if zombie and tables.inserts[table] - before >= run.reach:
            raise Retryable("the connection is gone")
        found = stored(layout, rows)
        if any(b"poison" in row for _, row, _ in found):
            raise Rejected("refused_by_clickhouse", "ClickHouse refuses the row")
        blocks: dict[int, list[Row]] = {}
        for at, _, place in found:
            blocks.setdefault(period(table, at), []).append(place)
        self.receive(table, token, list(blocks.items()))
        run.point(self.worker)

    def receive(self, table: str, token: str, blocks: list[tuple[int, list[Row]]]) -> None:
        run, tables = self.worker.run, self.worker.run.tables
        if not run.faulty():
            for block in blocks:
                tables.apply(table, token, block)
            return
        usual = ("refused", "unanswered", "late", "late", "crash")
        biased = {"late": ("late",), "poison": ("late",), "crashes": ("crash",)}
        faults = LYING if run.lying else biased.get(run.bias, usual)
        fault = run.chance.choice(faults)
        if fault == "unanswered":
            for block in blocks:
                tables.apply(table, token, block)
        elif fault == "late":
            expires = tables.inserts[table] + run.reach
            tables.late.append(Late(table, blocks, token, expires))
        elif fault == "crash" and not run.zombies:
            self.crash(table, token, blocks)
        elif fault == "lie":
            return  # chDB acknowledges what fails behind its reader
        if run.chance.random() < 0.3:
            raise KilledError
        raise Retryable("couldn't insert")

    def crash(self, table: str, token: str, blocks: list[tuple[int, list[Row]]]) -> None:
        """The server ends within one insert, in either order of part and token."""
        run, tables = self.worker.run, self.worker.run.tables
        done = run.chance.randrange(len(blocks))
        for block in blocks[:done]:
            tables.apply(table, token, block)
        period, rows = blocks[done]
        if run.chance.random() < 0.5:
            tables.remember(table, token, period)
        elif (period, token) not in tables.tokens.get(table, {}):
            tables.rows.update(rows)
        tables.crash()

    def present(
        self, table: str, topic_id: str, partition: int, start: int, end: int
    ) -> set[Place]:
        self.ask(partition)
        return {
            (offset, ordinal)
            for (name, topic, offset, ordinal) in self.worker.run.tables.rows
            if (name, topic) == (table, topic_id) and start <= offset <= end
        }

    def count(self, table: str, topic_id: str, partition: int, start: int, end: int) -> int:
        return len(self.present(table, topic_id, partition, start, end))

    def newest(self, table: str, topic_id: str, partition: int, start: int) -> int:
        self.ask(partition)
        if not self.worker.run.rules.look_beyond_the_range:
            return -1
        rows = self.worker.run.tables.rows
        there = (o for (t, i, o, _) in rows if (t, i) == (table, topic_id) and o >= start)
        return max(there, default=-1)

    def ask(self, partition: int) -> None:
        run = self.worker.run
        if partition != 0:
            raise WrongError("there is one partition")
        run.arrive_late()
        run.point(self.worker)
        if run.faulty():
            raise Retryable("couldn't query ClickHouse")


class Run:
    """One seeded run of a group with one worker at a time, and the zombies it leaves behind."""

    def __init__(self, seed: int, rules: Rules) -> None:
        self.chance = random.Random(seed)
        self.rules = rules
        self.bias = rules.bias or BIASES[seed % len(BIASES)]
        #: An engine that acknowledges what it has not stored; nothing is late there.
        self.lying = rules.bias is None and self.chance.random() < 0.15
        self.logs = {name: Log(name, self.new_id()) for name in TOPICS}
        self.old_logs: list[Log] = []
        self.tables = ClickHouse(rules.window)
        #: Inserts of others within which a late one has arrived or never will.
        self.reach = Rules.window - 2
        self.letters: set[tuple[str, int]] = set()
        self.now, self.now_ms = 0.0, START_MS
        self.generation = self.zombies = 0
        self.fault_chance = self.chance.choice((0.03, 0.08, 0.15))
        self.worker = self.next_worker()

    def new_id(self) -> str:
        return str(uuid.UUID(int=self.chance.getrandbits(128)))

    def faulty(self) -> bool:
        return self.chance.random() < self.fault_chance

    def play(self) -> None:
        for _ in range(ROUNDS):
            self.produce()
            for _ in range(self.chance.randint(1, 4)):
                self.drive()
                self.meddle()
        self.drain()
        self.check()

    # --- the world around the worker ---

    def produce(self) -> None:
        most = {"zombies": 16, "new topics": 4}.get(self.bias, 10)
        jumps = {"late": (0, DAY_MS // 2), "poison": (0, 1)}.get(self.bias, (0, 1, DAY_MS // 2))
        arriving = pool()[0]
        if self.bias == "poison":
            arriving = [record for record in arriving if record.rows or record.letter]
        elif self.bias == "zombies":
            arriving = [record for record in arriving if record.topic == TOPICS[0]]
        for record in self.chance.choices(arriving, k=self.chance.randint(0, most)):
            self.now_ms += self.chance.choice(jumps)
            log = self.logs[record.topic].records
            log.append((self.now_ms, record))
            if self.chance.random() < 0.15:
                log += [None] * self.chance.randint(1, 3)

    def meddle(self) -> None:
        """An offset goes back, a topic is made anew, a worker hands over in order."""
        often = self.bias in ("new topics", "crashes")
        if self.tables.late or self.chance.random() < (0.5 if often else 0.9):
            return
        log = self.logs[self.chance.choice(TOPICS)]
        usual = ("back", "anew", "over")
        what = self.chance.choice(
            {"new topics": ("anew",), "crashes": ("back",)}.get(self.bias, usual)
        )
        if what == "back" and log.committed is not None:
            anywhere = (self.chance.randint(0, log.committed[0]), "")
            log.committed = self.chance.choice((*log.before, anywhere))
        elif what == "anew":
            self.drain()
            self.old_logs.append(log)
            self.logs[log.topic] = Log(log.topic, self.new_id())
        self.worker = self.next_worker()

    def arrive_late(self) -> None:
        """Inserts on their way arrive, block by block, or are given up."""
        tables = self.tables
        for late in list(tables.late):
            if tables.inserts[late.table] >= late.expires:
                tables.late.remove(late)
            elif self.chance.random() < 0.3:
                tables.apply(late.table, late.token, late.blocks.pop(0))
                if not late.blocks:
                    tables.late.remove(late)

    # --- workers ---

    def next_worker(self) -> Worker:
        self.generation += 1
        return Worker(self, self.generation)

    def drive(self) -> None:
        self.now += 1.0
        worker = self.worker
        try:
            worker.step()
        except KilledError:
            worker.dead = True
        if worker.dead and worker is self.worker:
            self.worker = self.next_worker()

    def point(self, worker: Worker) -> None:
        """Between two effects: the end of the process, or a sleep in which others take over."""
        if not self.faulty():
            return
        if (
            self.zombies
            or self.lying
            or self.chance.random() < (0.1 if self.bias == "zombies" else 0.5)
        ):
            raise KilledError
        if worker.generation == self.generation:
            self.zombies += 1
            # At once: another process with the same slot.
            self.now += self.chance.choice((0.0, SESSION_S))
            self.worker = self.next_worker()
            for _ in range(self.chance.choice((1, 3, 15))):
                self.drive()
            self.zombies -= 1

    # --- the end ---

    def drain(self) -> None:
        """No more arrives, and all is read and stored; faults are still possible in between."""
        before, self.fault_chance = self.fault_chance, min(self.fault_chance, 0.04)
        for _ in range(600):
            if not self.tables.late and all(log.finished() for log in self.logs.values()):
                self.fault_chance = before
                return
            self.arrive_late()
            self.drive()
        raise WrongError("the load never came to the end")

    def check(self) -> None:
        wanted: Counter[Row] = Counter()
        letters: set[tuple[str, int]] = set()
        for log in (*self.old_logs, *self.logs.values()):
            for offset, found in enumerate(log.records):
                if found is not None:
                    record = found[1]
                    wanted.update((t, log.topic_id, offset, n) for t, n in record.rows)
                    letters |= {(log.topic_id, offset)} if record.letter else set()
        if self.tables.rows != wanted:
            missing, surplus = wanted - self.tables.rows, self.tables.rows - wanted
            raise WrongError(f"missing {sorted(missing)}, too many {sorted(surplus)}")
        if self.letters != letters:
            raise WrongError("the dead letters are not those of what got no row")


@contextlib.contextmanager
def switched(rules: Rules) -> Iterator[None]:
    MOMENTS.now = 0
    with contextlib.ExitStack() as stack:
        for module, name, shortcut in rules.patches:
            stack.enter_context(patch.object(module, name, shortcut))
        yield


def fails(seed: int, rules: Rules) -> bool:
    try:
        with switched(rules):
            Run(seed, rules).play()
    except (WrongError, Fatal):
        return True
    return False


def test_the_protocol_holds_in_every_run() -> None:
    for seed in range(SEEDS):
        Run(seed, Rules()).play()


def no_intent(job: Job, offsets: Offsets, asked: float, lease_s: float) -> None:
    job.leased_until = asked + lease_s


def whatever_the_group_says(job: Job, offsets: Offsets, asked: float, lease_s: float) -> None:
    with contextlib.suppress(LostError):
        announce(job, offsets, asked, lease_s)
    job.leased_until = asked + lease_s


def letters_last(job: Job, letters: LetterBox, offsets: Offsets) -> None:
    offsets.commit(job.source, job.range.end + 1, "")
    letters.send(job.source, job.letters())


def no_letters(job: Job, letters: LetterBox, offsets: Offsets) -> None:
    offsets.commit(job.source, job.range.end + 1, "")


@dataclass
class Moments:
    """A clock that only the shortcuts read."""

    now: int = 0

    def __next__(self) -> int:
        self.now += 1
        return self.now


MOMENTS: Final = Moments()


def token_of_the_moment(target: Target, rng: Range, table: str, part: str) -> str:
    return f"{next(MOMENTS)}|{load_plan.token(target, rng, table, part)}"


def token_of_the_offsets(target: Target, rng: Range, table: str, part: str) -> str:
    return load_plan.token(replace(target, topic_id=""), rng, table, part)


def token_of_the_range(target: Target, rng: Range, table: str, part: str) -> str:
    return load_plan.token(target, rng, "", "")


def anywhere(places: Sequence[Place]) -> tuple[Sequence[Place], Sequence[Place]]:
    middle = 1 + next(MOMENTS) % max(1, len(places) - 1)
    return places[:middle], places[middle:]


def first_tokens_only(
    own: str, expected: Sequence[Place], present: set[Place], swallowed: int
) -> load_plan.Step:
    return load_plan.decide(own, expected, present, 0)


def all_there(
    own: str, expected: Sequence[Place], present: set[Place], swallowed: int
) -> load_plan.Step:
    """Acknowledged is enough: nobody counts afterwards."""
    return load_plan.decide(own, expected, expected if swallowed else present, 0)


def all_missing(
    own: str, expected: Sequence[Place], present: set[Place], swallowed: int
) -> load_plan.Step:
    return load_plan.decide(own, expected, expected if swallowed else (), 0)


def to_the_end_of_what_was_read(offsets: Sequence[int], intent: Range | None) -> int | None:
    return max(offsets, default=-1) if intent is not None else None


NO_COUNT: Final = (Inserter, "_whole", lambda *_: True)

SHORTCUTS: Final = {
    "the deduplication window is off": Rules(bias="late", window=0),
    "the deduplication window is too short": Rules(first=40, bias="zombies", window=2),
    "the offset is committed before the write": Rules(commit_before_the_write=True),
    "nothing is announced": Rules(first=2, bias="late", announce=no_intent),
    "a refused intent is no reason to stop": Rules(
        first=19, bias="zombies", announce=whatever_the_group_says
    ),
    "an open intent is not redone exactly": Rules(first=19, bias="late", redo_exactly=False),
    "a redo does not look first": Rules(first=13, bias="zombies", look_before_a_redo=False),
    "a redo takes all for missing": Rules(
        first=2, bias="late", patches=((load_insert, "decide", all_missing),)
    ),
    "a redo is not counted afterwards": Rules(
        first=3, bias="crashes", patches=((load_insert, "decide", all_there),)
    ),
    "a swallowed token is tried again": Rules(
        first=3, bias="crashes", patches=((load_insert, "decide", first_tokens_only),)
    ),
    "rows beyond the range are not looked for": Rules(
        first=54, bias="crashes", look_beyond_the_range=False
    ),
    "a range is not counted": Rules(first=69, bias="crashes", patches=(NO_COUNT,)),
    "inserts start without a lease": Rules(first=111, bias="zombies", lease_s=1e9),
    "a token is of its moment": Rules(
        bias="late", patches=((load_insert, "token", token_of_the_moment),)
    ),
    "a token does not name the topic, and nobody counts": Rules(
        first=13,
        bias="new topics",
        patches=((load_insert, "token", token_of_the_offsets), NO_COUNT),
    ),
    "a token does not name the insert, and nobody counts": Rules(
        first=2, bias="late", patches=((load_insert, "token", token_of_the_range), NO_COUNT)
    ),
    "an insert goes into several partitions": Rules(
        first=67, bias="late", patches=((load_build, "period_of", lambda *_: 0),)
    ),
    "refused rows are isolated in other parts": Rules(
        first=203, bias="poison", patches=((load_insert, "halves", anywhere),)
    ),
    "letters are sent after the commit": Rules(first=2, finish=letters_last),
    "no letters are sent": Rules(finish=no_letters),
    "a range goes on at a redo": Rules(
        patches=((load_ranges, "range_end", to_the_end_of_what_was_read),)
    ),
}


@pytest.mark.parametrize("rules", SHORTCUTS.values(), ids=SHORTCUTS.keys())
def test_a_shortcut_is_caught(rules: Rules) -> None:
    assert any(fails(seed, rules) for seed in range(rules.first, rules.first + CONTROL_SEEDS))
