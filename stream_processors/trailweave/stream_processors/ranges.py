"""What one producer sent in one trace: sequence ranges and what is missing of them. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

#: Gaps listed per producer and epoch; more are counted only.
GAPS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class ProducerRange:
    """One (producer, epoch) of a chain; sequences are dense from 0."""

    producer_id: str
    epoch: int
    events: int
    first_seq: int | None
    last_seq: int | None
    #: First and last missing sequence of each gap, at most `GAPS_MAX` gaps.
    gaps: tuple[tuple[int, int], ...]
    missing: int


def producer_ranges(
    records: Iterable[Mapping[str, Any]], expected: Iterable[str]
) -> dict[str, list[ProducerRange]]:
    """Ranges by producer, each with its epochs in order.

    A producer in `expected` that sent nothing is there with no range.
    """
    sequences: dict[tuple[str, int], list[int | None]] = {}
    for record in records:
        key = (record["producer_id"], record["producer_epoch"])
        known = sequences.get(key)
        if known is None:
            sequences[key] = [record["trace_seq"]]
        else:
            known.append(record["trace_seq"])
    found: dict[str, list[ProducerRange]] = {producer: [] for producer in expected}
    for (producer, epoch), numbers in sorted(sequences.items()):
        found.setdefault(producer, []).append(_range(producer, epoch, numbers))
    return found


def _range(producer: str, epoch: int, numbers: list[int | None]) -> ProducerRange:
    known = sorted({n for n in numbers if n is not None})
    if not known:
        return ProducerRange(producer, epoch, len(numbers), None, None, (), 0)
    gaps = []
    if len(known) != known[-1] + 1 or known[0] < 0:
        before = -1
        for number in known:
            if number > before + 1:
                gaps.append((before + 1, number - 1))
            before = number
    missing = sum(last - first + 1 for first, last in gaps)
    return ProducerRange(
        producer, epoch, len(numbers), known[0], known[-1], tuple(gaps[:GAPS_MAX]), missing
    )
