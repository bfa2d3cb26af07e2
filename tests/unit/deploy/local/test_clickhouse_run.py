"""What the embedded front makes of the engine's own behaviour around time limits."""

from __future__ import annotations

import pytest
from trailweave.deploy.local.clickhouse_errors import ClickHouseError
from trailweave.deploy.local.clickhouse_run import execution_limit_s


class _Answer:
    """A connection that answers every question with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def query(self, _statement: str, _format: str, *, params: dict[str, str]) -> _Answer:
        del params
        return self

    def bytes(self) -> bytes:
        return self._answer


def test_the_limit_is_what_the_connection_says() -> None:
    assert execution_limit_s(_Answer(b"0.25\n")) == 0.25


def test_a_limit_that_is_over_before_it_is_told_is_a_timeout() -> None:
    with pytest.raises(ClickHouseError, match="TIMEOUT_EXCEEDED"):
        execution_limit_s(_Answer(b""))
