"""When records become a range: once it had time to fill, the longest waiting first."""

from __future__ import annotations

from trailweave.sinks.load_build import Builder, Record, Source
from trailweave.sinks.load_ranges import Limits, Ranges, Start

LINGER_S = 2.0
LIMITS = Limits(rows_max=3, bytes_max=1 << 20, epoch=0)
ONE, OTHER = (Source("trailweave.tools", "11111111-2222-3333-4444-555555555555", p) for p in (0, 1))


def ranges(*sources: Source, hurried: Source | None = None) -> Ranges:
    """Nothing read yet; the ranges of one partition wait less than the others."""
    made = Ranges(Builder(), "group", LIMITS, lambda *_: None)
    for source in sources:
        linger_s = LINGER_S / 4 if source == hurried else LINGER_S
        made.take(Start(source, 0, None), "cluster", linger_s)
    return made


def read(made: Ranges, source: Source, now: float, offset: int = 0) -> None:
    """One record that came at this time; what is in it does not matter here."""
    made.readings[source.topic, source.partition].keep(Record(offset, 0, b"", b""), now)


def test_a_range_waits_to_fill() -> None:
    made = ranges(ONE)
    read(made, ONE, now=10.0)

    assert made.next(10.0 + LINGER_S - 0.1) is None
    assert made.next(10.0 + LINGER_S) is not None


def test_a_full_range_does_not_wait() -> None:
    made = ranges(ONE)
    for offset in range(LIMITS.rows_max):
        read(made, ONE, now=10.0, offset=offset)

    job = made.next(10.0)

    assert job is not None
    assert (job.range.start, job.range.end) == (0, 2)


def test_nothing_waits_when_nothing_more_can_be_read() -> None:
    made = ranges(ONE)
    read(made, ONE, now=10.0)

    assert made.next(10.0, waits=False) is not None


def test_a_range_that_has_to_wait_less_is_before_one_that_has_waited_longer() -> None:
    made = ranges(ONE, OTHER, hurried=ONE)
    read(made, ONE, now=11.0)
    read(made, OTHER, now=10.0)

    job = made.next(20.0)

    assert job is not None
    assert job.source == ONE


def test_the_longest_waiting_range_is_first() -> None:
    made = ranges(ONE, OTHER)
    read(made, ONE, now=11.0)
    read(made, OTHER, now=10.0)

    job = made.next(20.0)

    assert job is not None
    assert job.source == OTHER


def test_a_partition_that_is_being_inserted_is_last() -> None:
    made = ranges(ONE, OTHER)
    read(made, ONE, now=11.0)
    read(made, OTHER, now=10.0)

    job = made.next(20.0, busy={OTHER})

    assert job is not None
    assert job.source == ONE
