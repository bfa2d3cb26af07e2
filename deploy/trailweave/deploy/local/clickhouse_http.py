"""ClickHouse's HTTP interface over the engine in this process: what ClickHouse's clients talk to.

`clickhouse.py` runs this module as a child process. It is not a server for a network: one user, no
roles, no temporary tables, no query log by query id. The event loop only moves bytes; statements
run in threads, reads and inserts in separate ones so that long reads can't hold up inserts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import socket
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from trailweave.deploy.local import http_coding
from trailweave.deploy.local.clickhouse_access import Access
from trailweave.deploy.local.clickhouse_errors import ClickHouseError, own
from trailweave.deploy.local.clickhouse_run import Engine, Summary, new_tag
from trailweave.deploy.local.clickhouse_statement import (
    STATEMENT_BYTES_MAX,
    Insert,
    Options,
    Session,
    decode_statement,
    is_session_state,
    options,
    refuse_temporary,
    result_format,
    split_insert,
)

log = logging.getLogger(__name__)

#: A body is held until it is whole, so that a client that goes away half way inserts nothing.
BODY_BYTES_MAX = 1 << 30
#: Larger bodies are looked at in a thread.
INLINE_BYTES_MAX = 1 << 16
#: More at once than a laptop has cores: most wait for the client or the disk.
READERS_MAX = 16
WRITERS_MAX = 8
#: Pieces of a result that wait for a slow client, each up to a megabyte.
PIECES_WAITING_MAX = 4
#: As a server's limits are; beyond that the oldest is forgotten.
SESSIONS_MAX = 1000
SESSION_TIMEOUT_S_MAX = 3600.0


@dataclass(frozen=True, slots=True)
class Understood:
    """What a request wants run: an INSERT and its data, or any other statement as it stands."""

    insert: Insert | None
    statement: bytes
    data: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, read and understood."""

    options: Options
    understood: Understood
    coding: str | None
    query_id: str


class Front:
    """The interface's state: the engine, the sessions, the threads."""

    def __init__(self, engine: Engine, access: Access) -> None:
        self.engine = engine
        self.access = access
        self.sessions: dict[str, Session] = {}
        self.readers = ThreadPoolExecutor(READERS_MAX, thread_name_prefix="read")
        self.writers = ThreadPoolExecutor(WRITERS_MAX, thread_name_prefix="write")
        self.server_name = socket.gethostname()

    def app(self) -> Starlette:
        """The ASGI application."""
        every = ["GET", "HEAD", "POST"]
        return Starlette(
            routes=[
                Route("/ping", self._ok, methods=every),
                Route("/replicas_status", self._ok, methods=every),
                Route("/", self._serve, methods=every),
            ]
        )

    def close(self) -> None:
        """Stop reads, let inserts end. The engine may be closed after that, not before."""
        self.engine.stop_query(None)
        for pool in (self.readers, self.writers):
            pool.shutdown(wait=True, cancel_futures=True)

    async def _ok(self, _: Request) -> Response:
        return Response("Ok.\n", media_type="text/html; charset=UTF-8")

    async def _serve(self, request: Request) -> Response:
        refusal = self.access.check(request.headers, request.query_params)
        if refusal is not None:
            return self._failed(refusal, None)
        if request.method != "POST" and "query" not in request.query_params:
            return await self._ok(request)
        asked: Asked | None = None
        try:
            asked = await self._read(request)
            if asked.understood.insert is not None:
                return await self._insert(asked, asked.understood.insert)
            return await self._query(request, asked)
        except ClickHouseError as error:
            return self._failed(error, asked)
        except ClientDisconnect:
            return Response(status_code=499)

    async def _read(self, request: Request) -> Asked:
        """The whole request: URL, headers and body."""
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise own(48, "NOT_IMPLEMENTED", "the embedded front takes no multipart bodies")
        asked = options(request.query_params.multi_items(), request.headers, request.method)
        body: deque[bytes] = deque()
        size = 0
        async for piece in request.stream():
            size += len(piece)
            if size > BODY_BYTES_MAX:
                raise own(
                    165,
                    "QUERY_IS_TOO_LARGE",
                    f"the body has more than {BODY_BYTES_MAX} bytes; insert in smaller batches",
                )
            if piece:
                body.append(piece)
        content_coding = request.headers.get("content-encoding", "")
        arguments = (request.query_params.get("query", "").encode(), body, content_coding)
        if size < INLINE_BYTES_MAX:
            understood = _understand(*arguments)
        else:
            loop = asyncio.get_running_loop()
            understood = await loop.run_in_executor(self.writers, _understand, *arguments)
        return Asked(
            options=asked,
            understood=understood,
            coding=_answer_coding(request),
            query_id=asked.query_id or str(uuid.uuid4()),
        )

    async def _insert(self, asked: Asked, insert: Insert) -> Response:
        before = self._session(asked.options)
        loop = asyncio.get_running_loop()
        summary = await loop.run_in_executor(
            self.writers, self.engine.insert, insert, asked.understood.data, asked.options, before
        )
        return Response(headers=self._headers(asked, summary))

    async def _query(self, request: Request, asked: Asked) -> Response:
        statement = decode_statement(asked.understood.statement)
        refuse_temporary(statement)
        before = self._session(asked.options)
        answer = _Answer(self.engine, statement, asked.options, before)
        self.readers.submit(answer.run)
        gone = asyncio.ensure_future(_until_gone(request))
        try:
            either: set[asyncio.Future[Any]] = {answer.started, gone}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answer.started.done():
                await self._abandon(answer)
                return Response(status_code=499)
            whole = answer.started.result()
        finally:
            gone.cancel()
        session = self.sessions.get(asked.options.session_id or "")
        if session is not None and is_session_state(statement):
            session.statements.append(statement)
        named = result_format(statement, asked.options.default_format)[0]
        headers = self._headers(asked, answer.summary) | {"X-ClickHouse-Format": named}
        headers["Content-Type"] = _media_type(named)
        if whole is None:
            headers["X-ClickHouse-Exception-Tag"] = answer.exception_tag
            pieces = self._streamed(answer)
            if asked.coding:
                headers["Content-Encoding"] = asked.coding
                pieces = _coded(pieces, asked.coding)
            return StreamingResponse(pieces, headers=headers)
        if asked.coding and whole:
            headers["Content-Encoding"] = asked.coding
            compressor = http_coding.encoder(asked.coding)
            whole = compressor.compress(whole) + compressor.flush()
        return Response(whole, headers=headers)

    async def _streamed(self, answer: _Answer) -> AsyncIterator[bytes]:
        try:
            async for piece in answer.pieces():
                yield piece
        finally:
            await self._abandon(answer)

    async def _abandon(self, answer: _Answer) -> None:
        """Stop a query that nobody waits for; harmless after its end."""
        if answer.give_up():
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self.writers, self.engine.stop_query, answer.tag)

    def _session(self, asked: Options) -> list[str]:
        """What the request's session has SET before; none without a session id."""
        if asked.session_id is None:
            return []
        now = time.monotonic()
        for name in [name for name, held in self.sessions.items() if held.expires_at < now]:
            del self.sessions[name]
        session = self.sessions.setdefault(asked.session_id, Session())
        session.expires_at = now + min(asked.session_timeout_s, SESSION_TIMEOUT_S_MAX)
        if len(self.sessions) > SESSIONS_MAX:
            del self.sessions[min(self.sessions, key=lambda name: self.sessions[name].expires_at)]
        return list(session.statements)

    def _headers(self, asked: Asked | None, summary: Summary | None) -> dict[str, str]:
        headers = {
            "X-ClickHouse-Server-Display-Name": self.server_name,
            "X-ClickHouse-Timezone": self.engine.timezone,
            "X-ClickHouse-Query-Id": asked.query_id if asked else str(uuid.uuid4()),
        }
        if summary is not None:
            headers["X-ClickHouse-Summary"] = json.dumps(
                {
                    "read_rows": str(summary.read_rows),
                    "read_bytes": str(summary.read_bytes),
                    "written_rows": str(summary.written_rows),
                    "written_bytes": str(summary.written_bytes),
                    "total_rows_to_read": "0",
                    "result_rows": str(summary.result_rows),
                    "result_bytes": str(summary.result_bytes),
                    "elapsed_ns": str(summary.elapsed_ns),
                }
            )
        return headers

    def _failed(self, error: ClickHouseError, asked: Asked | None) -> Response:
        headers = self._headers(asked, None)
        headers["X-ClickHouse-Exception-Code"] = str(error.code)
        # The message alone: a statement may hold what nobody wants in a log.
        log.info("refused with %d %s", error.code, error.name)
        text = f"{error.text} (version {self.engine.version} (embedded))\n"
        return Response(
            text, status_code=error.status, headers=headers, media_type="text/plain; charset=UTF-8"
        )


class _Answer:
    """One statement's result on its way from a thread to the event loop.

    `started` becomes the whole result if it is a single piece, else None, and the pieces follow.
    """

    def __init__(self, engine: Engine, statement: str, asked: Options, before: list[str]) -> None:
        self.tag = new_tag()
        self.exception_tag = secrets.token_hex(8)
        self.summary = Summary()
        self._arguments = (statement, asked, before, self.tag)
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self.started: asyncio.Future[bytes | None] = self._loop.create_future()
        self._queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(PIECES_WAITING_MAX)
        self._given_up = False
        self._ended = False

    def run(self) -> None:
        """In a reader thread, start to end: chDB's streams stay in the thread that made them."""
        found, self.summary = self._engine.query(*self._arguments)
        try:
            with contextlib.closing(found) as pieces:
                self._hand_over(pieces)
        except BaseException as error:  # noqa: BLE001  (every failure has to reach the client)
            self._fail(error)
        finally:
            self._ended = True

    def _hand_over(self, pieces: Iterator[bytes]) -> None:
        first = next(pieces, b"")
        second = next(pieces, None)
        if second is None:
            self._loop.call_soon_threadsafe(self._start, first)
            return
        self._loop.call_soon_threadsafe(self._start, None)
        self._put(first)
        self._put(second)
        for piece in pieces:
            self._put(piece)
        self._put(None)

    def _put(self, item: bytes | BaseException | None) -> None:
        if self._given_up:
            raise ClientDisconnect
        # Waits while the client is slow.
        asyncio.run_coroutine_threadsafe(self._queue.put(item), self._loop).result()

    def _fail(self, error: BaseException) -> None:
        if self._given_up:
            return
        if self.started.done():
            self._put(error)
        else:
            self._loop.call_soon_threadsafe(self._start_failed, error)

    def _start(self, whole: bytes | None) -> None:
        if not self.started.done():
            self.started.set_result(whole)

    def _start_failed(self, error: BaseException) -> None:
        if self.started.done():
            # The result began in the same moment.
            self._queue.put_nowait(error)
        else:
            self.started.set_exception(error)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The pieces of a result that has several."""
        while (item := await self._queue.get()) is not None:
            if isinstance(item, BaseException):
                yield self._last_words(item)
                # The transfer ends without its last chunk: no client takes it for whole.
                raise item
            yield item

    def give_up(self) -> bool:
        """Nobody waits any more. Says whether the statement may still run."""
        self._given_up = True
        while not self._queue.empty():
            self._queue.get_nowait()
        return not self._ended

    def _last_words(self, error: BaseException) -> bytes:
        text = error.text if isinstance(error, ClickHouseError) else repr(error)
        message = text.encode() + b"\n"
        tag = self.exception_tag.encode()
        return b"__exception__\r\n%b\r\n%b%d %b\r\n__exception__\r\n" % (
            tag,
            message,
            len(message),
            tag,
        )


def _answer_coding(request: Request) -> str | None:
    if request.query_params.get("enable_http_compression", "0") not in ("1", "true"):
        return None
    return http_coding.choose(request.headers.get("accept-encoding", ""))


def _understand(in_url: bytes, body: deque[bytes], coding: str) -> Understood:
    """Tell the statement from the data, wherever each stands. The data is decoded as it is read."""
    plain = _plain(body, coding)
    if in_url:
        insert = split_insert(in_url)
        if insert is None:
            return Understood(None, b"\n".join([in_url, *plain]), iter(()))
        return Understood(insert, b"", chain([in_url[insert.data_at :]], plain))
    head = b""
    for piece in plain:
        head += piece
        if len(head) >= STATEMENT_BYTES_MAX:
            break
    insert = split_insert(head)
    if insert is None:
        return Understood(None, b"".join([head, *plain]), iter(()))
    return Understood(insert, b"", chain([head[insert.data_at :]], plain))


def _plain(body: deque[bytes], coding: str) -> Iterator[bytes]:
    try:
        yield from http_coding.decoded(_taken(body), coding)
    except ValueError as why:
        raise own(117, "INCORRECT_DATA", f"couldn't read the body: {why}") from why


def _taken(body: deque[bytes]) -> Iterator[bytes]:
    """The pieces, each let go once it is used: a large body is in memory only once."""
    while body:
        yield body.popleft()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _coded(pieces: AsyncIterator[bytes], coding: str) -> AsyncIterator[bytes]:
    compressor = http_coding.encoder(coding)
    try:
        async for piece in pieces:
            if packed := compressor.compress(piece):
                yield packed
    except BaseException:
        # What was said last, the reason of the failure, is still in the compressor.
        yield compressor.flush()
        raise
    yield compressor.flush()


def _media_type(named: str) -> str:
    lower = named.lower()
    if lower.startswith("json"):
        return "application/json; charset=UTF-8"
    if lower.startswith(("tab", "tsv")):
        return "text/tab-separated-values; charset=UTF-8"
    if lower.startswith("csv"):
        return "text/csv; charset=UTF-8; header=absent"
    if lower.startswith(("native", "rowbinary", "arrow", "parquet", "avro", "orc")):
        return "application/octet-stream"
    return "text/plain; charset=UTF-8"
