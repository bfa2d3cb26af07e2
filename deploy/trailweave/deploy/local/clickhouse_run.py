"""Runs statements on chDB, ClickHouse's engine inside this process.

Used by the embedded front, from its worker threads. One connection per request: connections of
one engine run side by side in several threads, cost 0.2 ms, and take with them whatever was SET,
so that a setting can't outlive its query.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trailweave.deploy.local.clickhouse_errors import from_engine, own
from trailweave.deploy.local.clickhouse_statement import (
    Insert,
    Options,
    is_select,
    quote,
    quote_name,
    result_format,
    set_statement,
)

log = logging.getLogger(__name__)

#: Fewer, larger pieces go to the engine faster than those that come from the socket.
APPEND_BYTES = 1 << 20


@dataclass(slots=True)
class Summary:
    """What a query did, as `X-ClickHouse-Summary` tells it."""

    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    result_bytes: int = 0
    elapsed_ns: int = 0


class Engine:
    """The one engine of this process, on one directory. For any number of threads."""

    def __init__(self, path: Path) -> None:
        from chdb import _chdb  # the extra `local` brings it; loading it takes 0.3 s

        chdb: Any = _chdb

        self.path = str(path)
        self._connect = chdb.connect
        # The engine lives as long as one connection to it.
        self._keeper = chdb.connect(self.path)
        self.version, self.timezone = self._read_facts()

    def close(self) -> None:
        """Let the engine end: background work stops, files are closed."""
        self._keeper.close()

    @contextlib.contextmanager
    def _connection(self, options: Options, before: Sequence[str], tag: str = "") -> Iterator[Any]:
        connection = self._connect(self.path)
        try:
            if options.database:
                connection.query(f"USE {quote_name(options.database)}", "Null", params={})
            for statement in before:
                connection.query(statement, "Null", params={})
            settings = dict(options.settings)
            if tag:
                settings.setdefault("log_comment", tag)
            if settings:
                connection.query(set_statement(settings), "Null", params={})
            if options.readonly is not None:
                # Last: after it, nothing can be set any more.
                readonly = set_statement({"readonly": options.readonly})
                connection.query(readonly, "Null", params={})
            yield connection
        except RuntimeError as why:
            raise from_engine(why) from why
        finally:
            connection.close()

    def query(
        self, statement: str, options: Options, before: Sequence[str], tag: str
    ) -> tuple[Generator[bytes, None, None], Summary]:
        """Run anything but an INSERT with data; the result comes in pieces.

        The summary is complete when the pieces are. Errors come out of the iterator.
        """
        summary = Summary()
        return self._pieces(statement, options, before, tag, summary), summary

    def _pieces(
        self,
        statement: str,
        options: Options,
        before: Sequence[str],
        tag: str,
        summary: Summary,
    ) -> Generator[bytes, None, None]:
        named, streamable = result_format(statement, options.default_format)
        with self._connection(options, before, tag) as connection:
            kind = connection.classify_query(statement)
            if kind["statement_count"] > 1:
                raise own(62, "SYNTAX_ERROR", "Syntax error: Multi-statements are not allowed")
            params = dict(options.parameters)
            reads = kind["query_class"].name == "READ_ONLY" and is_select(statement)
            if streamable and reads and not options.wait_end:
                yield from self._stream(connection, statement, named, params, summary)
                return
            result = connection.query(statement, named, params=params)
            _count(result, summary)
            if result.size():
                yield result.bytes()

    def _stream(
        self,
        connection: Any,
        statement: str,
        named: str,
        params: dict[str, str],
        summary: Summary,
    ) -> Generator[bytes, None, None]:
        stream = connection.send_query(statement, named, params=params)
        finished = False
        try:
            while True:
                result = connection.streaming_fetch_result(stream)
                if result is None:
                    break
                if result.size():
                    yield result.bytes()
                if result.rows_read() == 0:
                    break
                _count(result, summary)
            finished = True
        finally:
            if not finished:
                with contextlib.suppress(RuntimeError):
                    connection.streaming_cancel_query(stream)

    def insert(
        self, insert: Insert, data: Iterable[bytes], options: Options, before: Sequence[str]
    ) -> Summary:
        """Insert the data, already decompressed. When this returns, it survives a kill."""
        with self._connection(options, before) as connection:
            limit_s = execution_limit_s(connection)
            began_s = time.monotonic()
            if options.parameters:
                parameters = set_statement(options.parameters, prefix="param_")
                connection.query(parameters, "Null", params={})
            inserter = connection.send_insert(insert.head, insert.format)
            done = False
            try:
                for piece in _larger(data):
                    connection.insert_append(inserter, piece)
                done = True
                result = connection.insert_done(inserter)
                _refuse_late(time.monotonic() - began_s, limit_s)
            finally:
                if not done:
                    with contextlib.suppress(RuntimeError):
                        connection.insert_cancel(inserter)
        summary = Summary()
        _count(result, summary)
        return summary

    def stop_query(self, tag: str | None) -> None:
        """Stop the query that carries the tag, or every one; only those that read.

        What writes is carried to its end, as on a server.
        """
        connection = self._connect(self.path)
        try:
            where = "query_kind = 'Select'"
            if tag is not None:
                where += f" AND Settings['log_comment'] = {quote(tag)}"
            connection.query(f"KILL QUERY WHERE {where} ASYNC", "Null", params={})
        except RuntimeError as why:
            log.warning("couldn't stop a query that nobody waits for: %s", why)
        finally:
            connection.close()

    def _read_facts(self) -> tuple[str, str]:
        answer = self._keeper.query("SELECT version(), timezone()", "TabSeparated", params={})
        version, timezone = answer.bytes().decode().rstrip("\n").split("\t")
        return version, timezone


def execution_limit_s(connection: Any) -> float:
    """`max_execution_time` as the connection has it, wherever it was set; 0 is none.

    The question itself is under the limit; without an answer the limit is over already.
    """
    asked = "SELECT toString(getSetting('max_execution_time'))"
    answer = connection.query(asked, "TabSeparated", params={}).bytes()
    if not answer:
        raise own(159, "TIMEOUT_EXCEEDED", "Timeout exceeded before the insert began")
    return float(answer)


def _refuse_late(took_s: float, limit_s: float) -> None:
    """Raise for an insert over its time limit: the engine drops it then, and says that it is done.

    It may have ended just in time and be there: as after any timeout, nobody knows.
    """
    if 0 < limit_s <= took_s:
        raise own(
            159,
            "TIMEOUT_EXCEEDED",
            f"Timeout exceeded: elapsed {took_s * 1000:.0f} ms, maximum: {limit_s * 1000:.0f} ms",
        )


def new_tag() -> str:
    """A name for one running query that no other query has."""
    return f"trailweave-{uuid.uuid4()}"


def _larger(data: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for piece in data:
        held.append(piece)
        size += len(piece)
        if size >= APPEND_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def _count(result: Any, summary: Summary) -> None:
    summary.read_rows += result.storage_rows_read()
    summary.read_bytes += result.storage_bytes_read()
    summary.written_rows += result.rows_written()
    summary.written_bytes += result.bytes_written()
    summary.result_rows += result.rows_read()
    summary.result_bytes += result.size()
    summary.elapsed_ns += int(result.elapsed() * 1e9)
