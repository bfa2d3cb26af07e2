"""An insert that its time limit ended is never acknowledged: the load worker would go on behind it.

chDB drops such an insert and reports it as done; the embedded front has to notice.
"""

from __future__ import annotations

import contextlib

import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

ROWS = "".join(f"{number}\n" for number in range(200_000)).encode()


@pytest.mark.parametrize("limit_s", ["0.001", "0.01"])
def test_an_insert_over_its_time_limit_is_an_error(database: str, limit_s: str) -> None:
    with contextlib.closing(clickhouse_connect.get_client(dsn=database)) as client:
        client.command("CREATE TABLE numbers (n UInt64) ENGINE = MergeTree ORDER BY n")
        settings = {"max_execution_time": limit_s}

        with pytest.raises(DatabaseError, match="TIMEOUT_EXCEEDED"):
            client.raw_insert("numbers", ["n"], ROWS, settings, fmt="CSV")


def test_an_insert_within_its_time_limit_is_stored(database: str) -> None:
    with contextlib.closing(clickhouse_connect.get_client(dsn=database)) as client:
        client.command("CREATE TABLE numbers (n UInt64) ENGINE = MergeTree ORDER BY n")
        client.raw_insert("numbers", ["n"], ROWS, {"max_execution_time": "60"}, fmt="CSV")

        assert client.query("SELECT count() FROM numbers").result_rows == [(200_000,)]
