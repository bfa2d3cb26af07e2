"""ClickHouse's Native format, read by its own driver."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from clickhouse_connect.driver.ctypes import RespBuffCls
from clickhouse_connect.driver.query import QueryContext
from clickhouse_connect.driver.transform import NativeTransform

Row = dict[str, Any]


def rows_of(pieces: Iterable[bytes]) -> list[Row]:
    """The rows of a block; times as they are, not as dates."""
    data = b"".join(pieces)
    source = SimpleNamespace(gen=iter([data]), close=lambda: None, exception_tag=None)
    asked = QueryContext(query_formats={"DateTime64": "int", "UUID": "string"}, use_none=True)
    found: Any = NativeTransform.parse_response(RespBuffCls(source), asked)  # type: ignore[no-untyped-call]
    return [dict(zip(found.column_names, row, strict=True)) for row in found.result_rows]
