"""What one producer sent in one trace: sequence ranges, gaps and conflicts in them. Pure."""

from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any, Final, NamedTuple

_Record = dict[str, Any]
#: The records of each (producer, epoch).
ByProducer = dict[tuple[str, int], list[_Record]]

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


def ordered(records: list[_Record], *fields: str) -> list[_Record]:
    """The records by these fields; a sequence that is not known comes first."""
    try:
        return sorted(records, key=itemgetter(*fields))
    except TypeError:  # two that are equal up to their sequences, of which one is not known

        def key(record: _Record) -> tuple[Any, ...]:
            return tuple(-1 if record[field] is None else record[field] for field in fields)

        return sorted(records, key=key)


def by_producer(records: Iterable[_Record]) -> ByProducer:
    """The records by (producer, epoch), these in order, and in them by sequence and event id."""
    found: ByProducer = {}
    for record in records:
        key = (record["producer_id"], record["producer_epoch"])
        known = found.get(key)
        if known is None:
            found[key] = [record]
        else:
            known.append(record)
    return {key: ordered(found[key], "trace_seq", "event_id") for key in sorted(found)}


def producer_ranges(
    groups: Mapping[tuple[str, int], list[_Record]], expected: Iterable[str]
) -> dict[str, list[ProducerRange]]:
    """Ranges of what `by_producer` gives, by producer, each with its epochs in order.

    A producer in `expected` that sent nothing is there with no range.
    """
    found: dict[str, list[ProducerRange]] = {producer: [] for producer in expected}
    for (producer, epoch), records in groups.items():
        part = _dense(producer, epoch, records) or _range(producer, epoch, records)
        if producer in found:
            found[producer].append(part)
        else:
            found[producer] = [part]
    return found


#: What the sequences of nearly every range are.
_DENSE: Final = [list(range(count)) for count in range(256)]


def _dense(producer: str, epoch: int, records: list[_Record]) -> ProducerRange | None:
    """The range of a producer of which nothing is missing and nothing double."""
    count = len(records)
    if count >= len(_DENSE) or [record["trace_seq"] for record in records] != _DENSE[count]:
        return None
    return ProducerRange(producer, epoch, count, 0, count - 1, (), 0)


def _range(producer: str, epoch: int, records: list[_Record]) -> ProducerRange:
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


def _conflicts(records: list[_Record]) -> list[int]:
    """Sequences of more than one event; two versions of one event are a conflict of its id."""
    ids: dict[int, set[str]] = {}
    for record in records:
        if record["trace_seq"] is not None:
            ids.setdefault(record["trace_seq"], set()).add(record["event_id"])
    return sorted(number for number, found in ids.items() if len(found) > 1)
