"""Which statements the embedded front may answer in pieces."""

import pytest
from trailweave.deploy.local.clickhouse_statement import is_select


@pytest.mark.parametrize(
    "statement",
    ["SELECT 1", "select 1", " -- SHOW\n SELECT 1", "((/* ( */ SELECT 1))", "WITH 1 AS x SELECT x",
     "FROM t SELECT a"],
)  # fmt: skip
def test_a_select_is_known_behind_comments_and_brackets(statement: str) -> None:
    assert is_select(statement)


@pytest.mark.parametrize(
    "statement",
    ["SHOW TABLES", "DESCRIBE t", "EXPLAIN SELECT 1", "EXISTS t", "CHECK TABLE t", "/* SELECT */",
     "SELECTED", "", "("],
)  # fmt: skip
def test_nothing_else_is_a_select(statement: str) -> None:
    assert not is_select(statement)
