"""Sequence ranges of producers, and what is missing of them."""

from __future__ import annotations

from typing import Any

import pytest
from trailweave.stream_processors.ranges import (
    CONFLICTS_MAX,
    GAPS_MAX,
    by_producer,
    producer_ranges,
)


def records(*numbers: int | None, producer: str = "p", epoch: int = 1) -> list[dict[str, Any]]:
    return [
        {"event_id": f"e{i}", "producer_id": producer, "producer_epoch": epoch, "trace_seq": n}
        for i, n in enumerate(numbers)
    ]


@pytest.mark.parametrize(
    ("numbers", "gaps", "missing"),
    [
        ((0, 1, 2), (), 0),
        ((2, 0, 1, 1), (), 0),
        ((1, 2), ((0, 0),), 1),
        ((0, 3, 7), ((1, 2), (4, 6)), 5),
        ((0, None, 2), ((1, 1),), 1),
        ((None, None), (), 0),
    ],
)
def test_gaps_are_the_numbers_from_0_that_never_came(
    numbers: tuple[int | None, ...], gaps: tuple[tuple[int, int], ...], missing: int
) -> None:
    (found,) = producer_ranges(by_producer(records(*numbers)), ())["p"]

    assert (found.gaps, found.missing, found.events) == (gaps, missing, len(numbers))


def test_epochs_of_a_producer_are_ranges_of_their_own_in_order() -> None:
    both = records(0, 1, epoch=9) + records(0, epoch=2)

    found = producer_ranges(by_producer(both), ())["p"]
    assert [(r.epoch, r.first_seq, r.last_seq) for r in found] == [(2, 0, 0), (9, 0, 1)]


def test_an_expected_producer_that_sent_nothing_has_no_range() -> None:
    assert producer_ranges({}, ["silent"]) == {"silent": []}


def test_of_many_gaps_some_are_listed_and_all_are_counted() -> None:
    (found,) = producer_ranges(by_producer(records(*range(1, 1000, 2))), ())["p"]

    assert (len(found.gaps), found.missing) == (GAPS_MAX, 500)


@pytest.mark.parametrize(
    ("numbers", "conflicts"),
    [((0, 1, 2), ()), ((0, 1, 1, 2), (1,)), ((0, 0, None, None, 5, 5), (0, 5)), ((None, None), ())],
)
def test_a_number_of_two_events_is_a_conflict(
    numbers: tuple[int | None, ...], conflicts: tuple[int, ...]
) -> None:
    (found,) = producer_ranges(by_producer(records(*numbers)), ())["p"]

    assert (found.conflicts, found.conflicting) == (conflicts, len(conflicts))


def test_two_versions_of_one_event_are_no_conflict_of_its_number() -> None:
    (found,) = producer_ranges(by_producer(records(0, 1) + records(0)), ())["p"]

    assert (found.events, found.conflicts) == (3, ())


def test_starts_of_a_producer_have_numbers_of_their_own() -> None:
    both = producer_ranges(by_producer(records(0, 1, epoch=1) + records(0, 1, epoch=2)), ())["p"]

    assert [part.conflicts for part in both] == [(), ()]


def test_of_many_conflicts_some_are_listed_and_all_are_counted() -> None:
    (found,) = producer_ranges(by_producer(records(*(n // 2 for n in range(1000)))), ())["p"]
    assert (len(found.conflicts), found.conflicting) == (CONFLICTS_MAX, 500)
