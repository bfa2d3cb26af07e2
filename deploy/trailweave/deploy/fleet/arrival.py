"""How recorded events reach Kafka: each producer at its own pace, interleaved, late and twice.

Order holds per producer and topic, as Kafka keeps it, and nowhere else. Memory holds the sessions
that are open at one moment of the fleet's time, however many there are in all.
"""

import heapq
import random
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from trailweave.deploy.fleet.cast import Role

Kind = Literal["event", "duplicate", "corrupt"]

_MS: Final = 1_000
#: Least and most time from an event to its arrival: agents send at once, logs are shipped.
_TRANSPORT_US: Final[dict[Role, tuple[int, int]]] = {
    "agent": (5 * _MS, 60 * _MS),
    "gateway": (10 * _MS, 200 * _MS),
    "policy": (20 * _MS, 800 * _MS),
    "approvals": (20 * _MS, 400 * _MS),
    "vault": (200 * _MS, 3_000 * _MS),
    "downstream": (1_000 * _MS, 12_000 * _MS),
}
#: Share of events whose producer was cut off for a while, and for how long: less than the grace
#: of 30 s, for a fleet that is sent no slower than it happens.
_HELD_UP: Final = 0.02
_HELD_UP_US: Final = (2_000 * _MS, 12_000 * _MS)
#: Share of events that are sent again, for lack of an acknowledgement.
_REPEATED: Final = 0.01
_RETRY_US: Final = (100 * _MS, 2_000 * _MS)


class Sent(NamedTuple):
    """One record as it goes to Kafka, `at_us` by the fleet's clock."""

    at_us: int
    topic: str
    key: bytes
    value: bytes
    kind: Kind


class Outgoing(NamedTuple):
    """An encoded event that its producer has yet to send."""

    role: Role
    producer_id: str
    occurred_us: int
    topic: str
    value: bytes


def arrivals(key: bytes, events: Iterable[Outgoing], pick: random.Random) -> list[Sent]:
    """The records of one trace, duplicates included, in no order."""
    newest: dict[tuple[str, str], int] = {}
    sent = []
    for event in events:
        at_us = event.occurred_us + pick.randint(*_TRANSPORT_US[event.role])
        if pick.random() < _HELD_UP:
            at_us += pick.randint(*_HELD_UP_US)
        way = (event.producer_id, event.topic)
        at_us = max(at_us, newest.get(way, 0) + 1)
        newest[way] = at_us
        sent.append(Sent(at_us, event.topic, key, event.value, "event"))
    return sent + _repeats(sent, pick)


def _repeats(sent: list[Sent], pick: random.Random) -> list[Sent]:
    """Some of the records again, each before the last of its topic.

    What is read before another event that the session still waits for can't come after its close:
    so a duplicate is one to the join, too, and no fragment.
    """
    last: dict[str, int] = {}
    for record in sent:
        last[record.topic] = max(last.get(record.topic, 0), record.at_us)
    repeats = []
    for record in sent:
        if pick.random() < _REPEATED and record.at_us + 1 < last[record.topic]:
            again_us = min(record.at_us + pick.randint(*_RETRY_US), last[record.topic] - 1)
            repeats.append(record._replace(at_us=again_us, kind="duplicate"))
    return repeats


def interleaved(traces: Iterable[tuple[int, list[Sent]]]) -> Iterator[Sent]:
    """The records of all traces by arrival; traces come by start, before which none arrives."""
    waiting: list[tuple[int, int, Sent]] = []
    serial = 0
    for start_us, records in traces:
        while waiting and waiting[0][0] < start_us:
            yield heapq.heappop(waiting)[2]
        for record in records:
            serial += 1
            heapq.heappush(waiting, (record.at_us, serial, record))
    while waiting:
        yield heapq.heappop(waiting)[2]
