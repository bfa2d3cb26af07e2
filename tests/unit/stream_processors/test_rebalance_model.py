"""Runs of two workers that share two lanes: rebalances, zombies, transactions of both lanes.

What a worker does with one lane is `test_recovery_model`'s; here the broker moves lanes between
workers at any moment, a worker may not hear of it and go on, and a transaction whose offsets the
broker took may be committed or aborted only after its lanes were given away.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Final

import pytest
from hypothesis import settings
from trailweave.schemas.errors import Fatal

from tests.unit.stream_processors.recovery_world import Broker
from tests.unit.stream_processors.test_recovery_model import Rules, Run, Transaction, WrongError

pytestmark = pytest.mark.simulation

SEEDS: Final = settings().max_examples
CONTROL_SEEDS: Final = 6 * settings().max_examples
ROUNDS: Final = 20
LANES: Final = 2


@dataclass(frozen=True)
class Fencing:
    """How lanes change hands; a control replaces one of its rules."""

    generation_of_the_batch: bool = True
    wait_for_what_is_pending: bool = True
    abort_drops_all_lanes: bool = True
    lane: Rules = field(default_factory=Rules)


@dataclass
class Worker:
    """A process: the lanes that it believes to have, as a member of a generation."""

    generation: int = -1
    lanes: dict[int, Run] = field(default_factory=dict)


@dataclass
class Pending:
    """A transaction whose offsets the broker took, and that is not ended."""

    worker: Worker
    works: dict[int, Transaction]


class Cluster:
    """One seeded run."""

    def __init__(self, seed: int, rules: Fencing) -> None:
        self.chance = random.Random(seed)
        self.rules = rules
        self.brokers = [Broker() for _ in range(LANES)]
        self.workers = [Worker(), Worker()]
        self.generation = 0
        self.pending: Pending | None = None
        self.rebalance(everybody_hears=True)

    def play(self) -> None:
        for _ in range(ROUNDS):
            self.arrive()
            if self.chance.random() < 0.15:
                self.rebalance()
            self.step(self.chance.choice(self.workers))
        self.drain()
        for broker in self.brokers:
            Run(self.chance, self.rules.lane, broker).check()

    def arrive(self) -> None:
        for lane in {index for worker in self.workers for index in worker.lanes}:
            owners = [worker.lanes[lane] for worker in self.workers if lane in worker.lanes]
            owners[0].arrive()
            owners[0].meddle()

    # --- the group ---

    def rebalance(self, *, everybody_hears: bool = False) -> None:
        """Deal the lanes anew. Who does not hear of it goes on with what it had: a zombie."""
        self.generation += 1
        owners = [self.chance.choice(self.workers) for _ in self.brokers]
        for worker in self.workers:
            if not everybody_hears and self.chance.random() < 0.3:
                continue
            worker.generation = self.generation
            worker.lanes = {}
            for index, owner in enumerate(owners):
                if owner is worker:
                    worker.lanes[index] = self.recovered(index)

    def recovered(self, lane: int) -> Run:
        if self.pending is not None and self.rules.wait_for_what_is_pending:
            self.end(self.pending, committed=self.chance.random() < 0.5)
        return Run(self.chance, self.rules.lane, self.brokers[lane])

    # --- a step of a worker: all its lanes, one transaction ---

    def step(self, worker: Worker) -> None:
        generation, works = worker.generation, self.batches(worker)
        if not any(work.says_something for work in works.values()):
            return
        if self.chance.random() < 0.15:
            self.rebalance()
            if worker.generation != generation:
                return  # it heard of it: the revocation drops memory
        if not self.rules.generation_of_the_batch:
            generation = self.generation
        if self.chance.random() < 0.1 or generation != self.generation:
            self.refused(worker, works)
            return
        self.pending = Pending(worker, works)
        if self.chance.random() < 0.2:
            self.rebalance()
        if self.pending is not None:
            self.end(self.pending, committed=self.chance.random() < 0.8)

    def batches(self, worker: Worker) -> dict[int, Transaction]:
        works: dict[int, Transaction] = {}
        try:
            for index, run in worker.lanes.items():
                rest = run.fold(list(run.batch()))
                run.confirm()
                works[index] = run.begin(rest)
                run.finish(works[index])
        except Fatal:
            # A chunk that it wants back is gone: somebody else closed the session.
            if not any(run.committed_since for run in worker.lanes.values()):
                raise
            self.refused(worker, works)
            return {}
        return works

    def refused(self, worker: Worker, works: dict[int, Transaction]) -> None:
        """A crash, or a fenced member: what it wrote is aborted, and it comes back as a new one."""
        for index, work in works.items():
            worker.lanes[index].abort(work)
        if self.rules.abort_drops_all_lanes:
            self.rebalance()
        elif works:
            first, *others = works
            worker.lanes[first] = self.recovered(first)
            for index in others:
                worker.lanes[index].lane.committed(works[index].turn, 0)

    def end(self, pending: Pending, *, committed: bool) -> None:
        """The transaction ends; for its worker too, if it still has these lanes."""
        self.pending = None
        worker = pending.worker
        for index, work in pending.works.items():
            run = worker.lanes.get(index)
            writer = run or Run(self.chance, self.rules.lane, self.brokers[index])
            if not committed:
                writer.abort(work)
                continue
            writer.persist(work)
            if run is not None and run.lane.number == work.turn.number:
                run.believe(work)
        if not committed and worker.generation == self.generation:
            worker.lanes = {index: self.recovered(index) for index in worker.lanes}

    # --- the end ---

    def drain(self) -> None:
        for _ in range(300):
            if self.pending is None and all(
                Run(self.chance, self.rules.lane, broker).done for broker in self.brokers
            ):
                return
            if self.chance.random() < 0.3:
                self.rebalance(everybody_hears=True)
            for broker in self.brokers:
                broker.now_ms += 50
            for worker in self.workers:
                self.step(worker)
        raise WrongError("a session never closed")


def fails(seed: int, rules: Fencing) -> bool:
    try:
        Cluster(seed, rules).play()
    except (WrongError, Fatal):
        return True
    return False


def test_the_protocol_holds_in_every_run() -> None:
    for seed in range(SEEDS):
        Cluster(seed, Fencing()).play()


SHORTCUTS: Final = {
    "the generation is asked for at the commit": Fencing(generation_of_the_batch=False),
    "what is pending is not waited for": Fencing(wait_for_what_is_pending=False),
    "an abort drops one lane only": Fencing(abort_drops_all_lanes=False),
    "offsets are sent for what moved": Fencing(lane=replace(Rules(), send_all_offsets=False)),
}


@pytest.mark.parametrize("rules", SHORTCUTS.values(), ids=SHORTCUTS.keys())
def test_a_shortcut_is_caught(rules: Fencing) -> None:
    assert any(fails(seed, rules) for seed in range(CONTROL_SEEDS))
