"""What one producer sent in one trace: sequence ranges, gaps and conflicts in them. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

#: Gaps listed per producer and epoch; more are counted only.
GAPS_MAX: Final = 100
#: Sequences of two events listed per producer and epoch; more are counted only.
CONFLICTS_MAX: Final = 100


class ProducerRange(NamedTuple):  # one per producer of every chain: a tuple is made fastest
    """One (producer, epoch) of a chain; sequences are dense from 0."""

    producer_id: str
    epoch: int
    events: int
    first_seq: int | None
    last_seq: int | None
    #: First and last missing sequence of each gap, at most `GAPS_MAX` gaps.
    gaps: tuple[tuple[int, int], ...]
    missing: int
    #: Sequences that events of different ids share, at most `CONFLICTS_MAX`.
    conflicts: tuple[int, ...] = ()
    #: How many there are of them.
    conflicting: int = 0


def producer_ranges(
    records: Iterable[Mapping[str, Any]], expected: Iterable[str]
) -> dict[str, list[ProducerRange]]:
    """Ranges by producer, each with its epochs in order.

    A producer in `expected` that sent nothing is there with no range.
    """
    sent: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    numbers: dict[tuple[str, int], list[Any]] = {}
    for record in records:
        key = (record["producer_id"], record["producer_epoch"])
        known = sent.get(key)
        if known is None:
            sent[key], numbers[key] = [record], [record["trace_seq"]]
        else:
            known.append(record)
            numbers[key].append(record["trace_seq"])
    found: dict[str, list[ProducerRange]] = {producer: [] for producer in expected}
    for key in sorted(sent):
        producer, epoch = key
        part = _dense(producer, epoch, numbers[key]) or _range(producer, epoch, sent[key])
        found.setdefault(producer, []).append(part)
    return found


#: What the sequences of nearly every range are.
_DENSE: Final = [list(range(count)) for count in range(256)]


def _dense(producer: str, epoch: int, numbers: list[Any]) -> ProducerRange | None:
    """The range of a producer of which nothing is missing and nothing double."""
    count = len(numbers)
    if count >= len(_DENSE) or None in numbers or sorted(numbers) != _DENSE[count]:
        return None
    return ProducerRange(producer, epoch, count, 0, count - 1, (), 0)


def _range(producer: str, epoch: int, records: list[Mapping[str, Any]]) -> ProducerRange:
    events = len(records)
    known = sorted({r["trace_seq"] for r in records} - {None})
    if not known:
        return ProducerRange(producer, epoch, events, None, None, (), 0)
    # As many numbers as events: each has its own.
    conflicts = _conflicts(records) if len(known) != events else []
    gaps = [] if known[0] == 0 and len(known) == known[-1] + 1 else _gaps(known)
    missing = sum(last - first + 1 for first, last in gaps)
    return ProducerRange(
        producer,
        epoch,
        events,
        known[0],
        known[-1],
        tuple(gaps[:GAPS_MAX]),
        missing,
        tuple(conflicts[:CONFLICTS_MAX]),
        len(conflicts),
    )


def _gaps(known: list[int]) -> list[tuple[int, int]]:
    gaps = []
    before = -1
    for number in known:
        if number > before + 1:
            gaps.append((before + 1, number - 1))
        before = number
    return gaps


def _conflicts(records: list[Mapping[str, Any]]) -> list[int]:
    """Sequences of more than one event; two versions of one event are a conflict of its id."""
    ids: dict[int, set[str]] = {}
    for record in records:
        if record["trace_seq"] is not None:
            ids.setdefault(record["trace_seq"], set()).add(record["event_id"])
    return sorted(number for number, found in ids.items() if len(found) > 1)
