"""Lines of librdkafka's in our log."""

import logging

import pytest
from trailweave.schemas.client_log import INTERVAL_S, LINE, client_log


@pytest.fixture
def log(request: pytest.FixtureRequest) -> logging.Logger:
    return client_log(logging.getLogger(request.node.name))


def said(log: logging.Logger, at_s: float, *line: str) -> str | None:
    """What comes of a line at a time; None if it is left out."""
    record = log.makeRecord(log.name, logging.ERROR, "", 0, LINE, line, None)
    record.created = at_s
    passed = log.filter(record)
    return record.getMessage() if passed else None


def test_a_broker_that_is_away_is_said_once_in_a_while(log: logging.Logger) -> None:
    away = ("FAIL", "consumer-1", "connection refused")
    found = [said(log, at_s, *away) for at_s in (0.0, 0.1, 0.2, INTERVAL_S)]

    assert found == [
        "FAIL [consumer-1] connection refused",
        None,
        None,
        "FAIL [consumer-1] connection refused (2 more like it were left out)",
    ]


def test_lines_of_another_kind_are_said_at_once(log: logging.Logger) -> None:
    said(log, 0.0, "FAIL", "consumer-1", "connection refused")

    assert said(log, 0.1, "SESSTMOUT", "consumer-1", "timed out") == (
        "SESSTMOUT [consumer-1] timed out"
    )


def test_our_own_lines_always_pass(log: logging.Logger) -> None:
    ours = [log.makeRecord(log.name, logging.INFO, "", 0, "%d rows", (n,), None) for n in (1, 2)]

    assert all(log.filter(record) for record in ours)


def test_a_logger_is_made_fit_only_once(log: logging.Logger) -> None:
    client_log(log)

    assert len(log.filters) == 1
