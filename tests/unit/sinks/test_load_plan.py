"""What the load worker decides, without Kafka and ClickHouse."""

import pytest
from trailweave.schemas.errors import Fatal
from trailweave.sinks.load_plan import (
    Range,
    Target,
    decide,
    first_offset,
    halves,
    open_intent,
    range_end,
    resume,
    token,
)

TARGET = Target("cluster", "topic-id", "group", 3)
RANGE = Range(10, 12, 0)
PLACES = [(10, 0), (11, 0), (12, 0)]


def test_an_intent_is_read_back_from_its_metadata() -> None:
    assert open_intent(10, RANGE.metadata()) == RANGE


@pytest.mark.parametrize("metadata", ["", None])
def test_no_metadata_is_no_intent(metadata: str | None) -> None:
    assert open_intent(10, metadata) is None


@pytest.mark.parametrize("metadata", ["v2;12;0", "v1;9;0", "v1;x;0", "v1;12", "v1;1;2;3", "hello"])
def test_metadata_of_another_kind_stops_the_worker(metadata: str) -> None:
    with pytest.raises(Fatal):
        open_intent(10, metadata)


def test_a_token_differs_with_everything_that_names_the_rows() -> None:
    tokens = {
        token(TARGET, RANGE, "events", "p"),
        token(Target("other", "topic-id", "group", 3), RANGE, "events", "p"),
        token(Target("cluster", "recreated", "group", 3), RANGE, "events", "p"),
        token(Target("cluster", "topic-id", "other", 3), RANGE, "events", "p"),
        token(Target("cluster", "topic-id", "group", 4), RANGE, "events", "p"),
        token(TARGET, Range(9, 12, 0), "events", "p"),
        token(TARGET, Range(10, 13, 0), "events", "p"),
        token(TARGET, Range(10, 12, 1), "events", "p"),
        token(TARGET, RANGE, "chains", "p"),
        token(TARGET, RANGE, "events", "q"),
    }

    assert len(tokens) == 10


def test_rows_that_are_all_there_are_skipped() -> None:
    assert not decide("t", PLACES, PLACES, 0).missing


def test_rows_that_are_all_missing_go_under_the_same_token() -> None:
    step = decide("t", PLACES, [], 0)

    assert step.missing == frozenset(PLACES)
    assert step.token == "t"


def test_some_missing_rows_go_under_a_token_of_their_own() -> None:
    step = decide("t", PLACES, [(11, 0)], 0)

    assert step.missing == {(10, 0), (12, 0)}
    assert step.token.startswith("t|r|")
    assert step.token == decide("t", PLACES, [(11, 0)], 0).token
    assert step.token != decide("t", PLACES, [(10, 0)], 0).token


def test_rows_missing_after_an_insert_go_under_a_new_token_each_time() -> None:
    tokens = {decide("t", PLACES, [], n).token for n in range(3)}

    assert tokens == {"t", "t|v|1", "t|v|2"}


def test_rows_beyond_the_range_change_nothing() -> None:
    assert decide("t", PLACES, [(13, 0), (99, 0)], 0).token == "t"


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_halves_are_all_of_it_and_smaller(size: int) -> None:
    places = [(offset, 0) for offset in range(size)]
    first, second = halves(places)

    assert [*first, *second] == places
    assert len(second) < size or size == 1


def test_an_intent_beyond_the_end_of_the_log_stops_the_worker() -> None:
    with pytest.raises(Fatal, match="were records lost with a broker"):
        resume(10, RANGE.metadata(), 0, 12, "t/0")


def test_an_open_intent_is_resumed() -> None:
    assert resume(10, RANGE.metadata(), 0, 13, "t/0") == (10, RANGE)
    assert resume(None, "", 5, 13, "t/0") == (5, None)


def test_a_new_group_begins_at_the_start_of_the_log() -> None:
    assert first_offset(None, 5, 9, "t/0") == 5


def test_records_deleted_unread_stop_the_worker() -> None:
    with pytest.raises(Fatal, match="retention"):
        first_offset(4, 5, 9, "t/0")


def test_an_offset_beyond_the_end_stops_the_worker() -> None:
    with pytest.raises(Fatal, match="recreated"):
        first_offset(10, 5, 9, "t/0")


def test_a_range_ends_at_the_last_record() -> None:
    assert range_end([10, 12, 15], None) == 15


def test_an_open_intent_waits_for_its_last_record() -> None:
    assert range_end([10, 11], RANGE) is None
    assert range_end([], RANGE) is None


def test_an_open_intent_ends_where_it_said() -> None:
    assert range_end([10, 12, 15], RANGE) == 12


def test_an_open_intent_without_its_last_record_stops_the_worker() -> None:
    with pytest.raises(Fatal, match="no longer in Kafka"):
        range_end([10, 11, 15], RANGE)
