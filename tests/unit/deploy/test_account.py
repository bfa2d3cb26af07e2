"""When a sum adds up, what is held open, and what a lag is."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from trailweave.deploy.account import Line, Moment, summed
from trailweave.deploy.offsets import Bounds, Committed
from trailweave.deploy.status import lags, silent
from trailweave.schemas.events import SESSIONS_TOPIC, event_topics

TOPIC = event_topics()[0]


def test_a_line_adds_up_when_all_that_went_in_is_somewhere() -> None:
    line = Line("join", "lane 0", 10, 6, duplicates=2, dead_lettered=1, held=1)

    assert (line.difference, line.adds_up) == (0, True)


def test_a_line_with_something_against_it_does_not_add_up() -> None:
    line = Line("load", "x/0", 1, 1, wrong=["rows are stored twice"])

    assert not line.adds_up


def test_partitions_that_add_up_become_one_line_and_others_stay() -> None:
    lines = [Line("load", "t/0", 2, 2), Line("load", "t/1", 3, 3), Line("load", "t/2", 4, 3)]

    assert [(line.of, line.records_in, line.difference) for line in summed(lines)] == [
        ("t", 5, 0),
        ("t/2", 4, 1),
    ]


def test_a_lag_counts_records_and_never_transaction_markers() -> None:
    places = {(TOPIC, 0): Bounds(0, 9), (SESSIONS_TOPIC, 0): Bounds(0, 5)}
    moment = Moment(
        ids={TOPIC: (UUID(int=1), 1), SESSIONS_TOPIC: (UUID(int=2), 1)},
        joined={(TOPIC, 0): Committed(7, "")},
        loaded={(TOPIC, 0): Committed(9, ""), (SESSIONS_TOPIC, 0): Committed(4, "")},
        bounds=places,
        unloaded={(TOPIC, 0): 0, (SESSIONS_TOPIC, 0): 0},
    )
    rows = {
        (row["worker"], row["topic"]): row["lag"]
        for row in lags(moment, {"join": "j", "load": "l"})
    }

    assert rows["join", TOPIC] == 2
    assert rows["load", SESSIONS_TOPIC] == 0


def test_a_producer_is_silent_after_three_missed_heartbeats_unless_it_ended() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    row = {"interval_s": 10.0, "final": False, "last_recorded_at": now - timedelta(seconds=31)}

    assert len(silent([row], now)) == 1
    assert silent([{**row, "final": True}], now) == []
    assert silent([{**row, "interval_s": 11.0}], now) == []
