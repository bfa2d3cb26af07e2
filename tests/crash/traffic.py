"""What is sent meanwhile: fleets without end, at a rate, their sessions laid over one another.

A `Fleet` is sent in no time; here so many of its sessions are open at a time that a fault always
falls into some. Some events come long after their session's close, as fragments; some twice.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from trailweave.deploy.fleet.fleet import Fleet

from tests.integration.join_kafka import Feed, Place

#: Sessions of one fleet; every fourth holds anomalies and corrupt records.
FLEET_SESSIONS: Final = 20
ANOMALIES: Final = 0.5
#: Sessions open at a time.
OPEN: Final = 12
#: One event in so many comes after this many others.
LATE_SHARE: Final = 0.01
LATE_BY: Final = 600
#: One in so many comes twice in a row.
TWICE_SHARE: Final = 0.01
TICK_S: Final = 0.05

Event = tuple[str, bytes, bytes]


def sessions(seed: int) -> Iterator[list[Event]]:
    """The records of one trace after another, each in order, without end."""
    number = 0
    while True:
        share = ANOMALIES if number % 4 == 0 else 0.0
        fleet = Fleet(FLEET_SESSIONS, seed * 100_000 + number, int(time.time() * 1e6), share)
        traces: dict[bytes, list[Event]] = {}
        for record in fleet:
            traces.setdefault(record.key, []).append((record.topic, record.key, record.value))
        yield from traces.values()
        number += 1


def traffic(seed: int) -> Iterator[Event]:
    """One record after another, without end."""
    chance = random.Random(seed)
    told = sessions(seed)
    open_ones = [next(told) for _ in range(OPEN)]
    late: deque[tuple[int, Event]] = deque()
    number = 0
    while True:
        number += 1
        if late and late[0][0] <= number:
            yield late.popleft()[1]
        at = chance.randrange(OPEN)
        event = open_ones[at].pop(0)
        if not open_ones[at]:
            open_ones[at] = next(told)
        if chance.random() < LATE_SHARE:
            late.append((number + LATE_BY, event))
            continue
        yield event
        if chance.random() < TWICE_SHARE:
            yield event


def send(address: str, seed: int, rate: float, done: threading.Event) -> list[Place]:
    """Send at about `rate` a second until told to stop; where the broker says that it put each."""
    feed, told = Feed(address, log_level=0), traffic(seed)
    began, number = time.monotonic(), 0
    while not done.wait(TICK_S):
        while number < (time.monotonic() - began) * rate:
            feed.send_bytes(*next(told))
            number += 1
    return feed.flush()
