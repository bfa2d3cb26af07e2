"""Faults in random order from a seed, and how long the pipeline took to go on after each.

Between two rounds of faults nothing waits for a time: the next round begins once every lane has
loaded events and joined sessions that are younger than the last fault.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from tests.crash.rig import DEADLINE_S, Life, Rig, until

#: Longer than a worker's session, which is five seconds for load and two for the join.
KAFKA_STOP_S: Final = 6.0
#: A broker that is counted out when it goes on is so within milliseconds.
COUNTED_OUT_WITHIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, over, and what came of it."""

    kind: str
    #: Seconds until every lane had loaded and joined what began after the fault's end.
    recovery_s: float
    #: What the zombie said at its end, if there was one that had to end.
    zombie: str = ""


class StuckError(AssertionError):
    """The pipeline did not go on after a fault."""


def kill_worker(rig: Rig, name: str, pick: random.Random) -> str:
    """SIGKILL; a new process takes the slot."""
    pick.choice(rig.of(name)).kill()
    return ""


def stop_worker(rig: Rig, name: str, pick: random.Random) -> str:
    """SIGSTOP until its partitions are with another worker; then it goes on, as a zombie."""
    slot = pick.choice(rig.of(name))
    others = [other for other in rig.of(name) if other is not slot]
    before = {other: (other.life, _moves(other.life)) for other in others}
    life = slot.life
    life.signal(signal.SIGSTOP)

    def moved() -> bool:
        return any(
            other.life is not then or _moves(then) > count
            for other, (then, count) in before.items()
        )

    # Of no lasting effect if the group did not notice: an engine may have been away meanwhile.
    until(moved, 8 * rig.shape.session_timeout_s)
    life.signal(signal.SIGCONT)
    return ""


def _moves(life: Life) -> int:
    """How often a worker has said that partitions were taken from it, to be shared out anew."""
    return life.said().count("are revoked")


def replace_worker(rig: Rig, name: str, pick: random.Random) -> str:
    """SIGSTOP; a new process takes the slot; the old one goes on, must see it, and must end."""
    slot = pick.choice(rig.of(name))
    stopped = time.time()
    slot.life.signal(signal.SIGSTOP)
    zombie = slot.replace()
    try:
        # Or an engine is away, and it wakes up before its successor is at work.
        until(lambda: rig.went_on(stopped), 8 * rig.shape.session_timeout_s)
        zombie.signal(signal.SIGCONT)
        if not until(lambda: not zombie.running):
            raise StuckError(f"a zombie of {name} went on: {zombie.said()[-1500:]}")
        return zombie.last_words()
    finally:
        zombie.kill()


def kill_kafka(rig: Rig, _: random.Random) -> str:
    """SIGKILL, and a start on the same data."""
    with rig.kafka_lock:
        rig.kafka.kill()
        rig.kafka.start()
    return ""


def stop_kafka(rig: Rig, _: random.Random) -> str:
    """SIGSTOP until every worker is counted out, and the broker must not be."""
    with rig.kafka_lock:
        before = rig.counted_out()
        rig.kafka_signal(signal.SIGSTOP)
        try:
            time.sleep(KAFKA_STOP_S)
        finally:
            rig.kafka_signal(signal.SIGCONT)
        time.sleep(COUNTED_OUT_WITHIN_S)
        if rig.counted_out() > before:
            raise AssertionError("the broker was counted out because it had stood still")
    return ""


def kill_clickhouse(rig: Rig, _: random.Random) -> str:
    """SIGKILL, and a start on the same data."""
    rig.clickhouse.kill()
    rig.clickhouse.start()
    return ""


def stop_clickhouse(rig: Rig, _: random.Random) -> str:
    """SIGSTOP until a worker has given up an insert, whose statement then goes on."""
    before = [(slot, slot.life, _given_up(slot.life)) for slot in rig.of("load")]
    rig.clickhouse_signal(signal.SIGSTOP)
    try:
        until(
            lambda: any(s.life is not life or _given_up(life) > n for s, life, n in before),
            4 * (rig.shape.insert_timeout_s + 5),
        )
    finally:
        rig.clickhouse_signal(signal.SIGCONT)
    return ""


def _given_up(life: Life) -> int:
    return life.said().count("ClickHouse") + life.said().count("couldn't insert")


def lose_commit(rig: Rig, *, delivered: bool) -> str:
    """The broker's reply to a commit of the join is lost."""
    _lost(rig.kafka_proxy.lose_reply(delivered=delivered).hit.wait(DEADLINE_S), rig)
    return ""


def lose_insert(rig: Rig, *, delivered: bool) -> str:
    """ClickHouse's reply to an insert of load is lost."""
    _lost(rig.clickhouse_proxy.lose_reply(delivered=delivered).hit.wait(DEADLINE_S), rig)
    return ""


def _lost(hit: bool, rig: Rig) -> None:
    if not hit:
        raise StuckError(f"nothing came whose reply could be lost\n{rig.told()}")


Inflict = Callable[[Rig, random.Random], str]

#: By target, then by kind. Those of one round have different targets.
KINDS: Final[dict[str, dict[str, Inflict]]] = {
    "join": {
        "join killed": lambda rig, pick: kill_worker(rig, "join", pick),
        "join stopped, its lanes moved": lambda rig, pick: stop_worker(rig, "join", pick),
        "join stopped and replaced": lambda rig, pick: replace_worker(rig, "join", pick),
    },
    "load": {
        "load killed": lambda rig, pick: kill_worker(rig, "load", pick),
        "load stopped, its partitions moved": lambda rig, pick: stop_worker(rig, "load", pick),
        "load stopped and replaced": lambda rig, pick: replace_worker(rig, "load", pick),
    },
    "kafka": {
        "Kafka killed": kill_kafka,
        "Kafka stopped": stop_kafka,
        "commit delivered, its reply lost": lambda rig, _: lose_commit(rig, delivered=True),
        "commit lost before Kafka": lambda rig, _: lose_commit(rig, delivered=False),
    },
    "clickhouse": {
        "ClickHouse killed": kill_clickhouse,
        "ClickHouse stopped": stop_clickhouse,
        "insert delivered, its reply lost": lambda rig, _: lose_insert(rig, delivered=True),
        "insert lost before ClickHouse": lambda rig, _: lose_insert(rig, delivered=False),
    },
}
TARGET_OF: Final = {kind: target for target, kinds in KINDS.items() for kind in kinds}


def rounds(seed: int, count: int, together: tuple[int, int]) -> Iterator[list[str]]:
    """`count` faults in rounds of one and more, each of another target.

    Every kind comes as often as any other, give or take one.
    """
    pick = random.Random(seed)
    left: list[str] = []
    while count:
        if not left:
            left = list(TARGET_OF)
            pick.shuffle(left)
        chosen: dict[str, str] = {}
        for _ in range(min(count, pick.randint(*together))):
            others = (kind for kind in left if TARGET_OF[kind] not in chosen)
            if (kind := next(others, None)) is not None:
                left.remove(kind)
                chosen[TARGET_OF[kind]] = kind
        yield list(chosen.values())
        count -= len(chosen)


def inflict(rig: Rig, kinds: list[str], seed: str) -> list[Fault]:
    """One round: its faults at once, and until the pipeline has gone on after each."""
    with ThreadPoolExecutor(len(kinds)) as pool:
        running = [pool.submit(_inflict, rig, kind, random.Random(seed + kind)) for kind in kinds]
        return [fault.result() for fault in running]


def _inflict(rig: Rig, kind: str, pick: random.Random) -> Fault:
    # A worker is hit while it starts, reads, or has just committed.
    time.sleep(pick.random() * 0.5)
    began = time.time()
    zombie = KINDS[TARGET_OF[kind]][kind](rig, pick)
    over = began if kind.endswith("killed") else time.time()
    if not until(lambda: rig.went_on(over)):
        raise StuckError(f"after {kind}, {rig.behind(over)} did not go on\n{rig.told()}")
    return Fault(kind, time.time() - over, zombie)
