"""Small TCP proxies that lose one reply when told to: to a Kafka commit, or to an insert.

Workers reach both engines through them. A reply is lost in both forms: the request was delivered
and carried out, or it never arrived; the worker can't tell which. The proxies read no more of the
protocols than it takes to recognize that one request.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

HOST: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 10.0
#: Length of a Kafka frame, in front of it.
_LENGTH: Final = struct.Struct(">i")
#: API key, its version, correlation id: what every Kafka request begins with.
_REQUEST: Final = struct.Struct(">hhi")
_END_TXN: Final = 26
#: From this version on a request ends in a count of tagged fields.
_END_TXN_TAGGED: Final = 3
_PIECE_BYTES: Final = 1 << 16

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


@dataclass(frozen=True, slots=True)
class Loss:
    """One reply to lose; `hit` is set once it is lost."""

    #: Whether the request reaches the engine.
    delivered: bool
    hit: threading.Event = field(default_factory=threading.Event)


class Proxy(ABC):
    """Listens on a port of its own from `__enter__` to `__exit__`, whatever the engine does.

    `upstream` tells the engine's port when a connection comes; while nothing listens there, the
    connection is closed, as a machine without the engine would refuse it.
    """

    def __init__(self, upstream: Callable[[], int]) -> None:
        self.port = 0
        self._upstream = upstream
        self._armed: Loss | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._stop: Callable[[], object] = lambda: None

    def lose_reply(self, *, delivered: bool) -> Loss:
        """Lose the reply to the next commit or insert, and cut its connection."""
        self._armed = loss = Loss(delivered)
        return loss

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(START_TIMEOUT_S), "the proxy didn't start"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        self._thread.join()

    async def _main(self) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        self._stop = lambda: loop.call_soon_threadsafe(stop.set)
        open_ones: set[asyncio.Task[None]] = set()

        def accept(reader: Reader, writer: Writer) -> None:
            task = loop.create_task(self._connection(reader, writer))
            open_ones.add(task)
            task.add_done_callback(open_ones.discard)

        server = await asyncio.start_server(accept, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await stop.wait()
        server.close()
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)

    async def _connection(self, reader: Reader, writer: Writer) -> None:
        """Until one side ends, or a reply is lost: then both sides are cut."""
        with contextlib.suppress(OSError):
            async with _closing(writer):
                upstream, to_upstream = await asyncio.open_connection(HOST, self._upstream())
                async with _closing(to_upstream):
                    await self._both_ways(reader, writer, upstream, to_upstream)

    async def _both_ways(
        self, reader: Reader, writer: Writer, upstream: Reader, to_upstream: Writer
    ) -> None:
        lost: dict[int, Loss] = {}
        ways = [
            asyncio.ensure_future(self._requests(reader, to_upstream, lost)),
            asyncio.ensure_future(self._replies(upstream, writer, lost)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for loss in lost.values():
                if not loss.hit.is_set():
                    # Its client was killed before the reply came: the next one's is lost.
                    self._armed = loss

    async def _requests(self, reader: Reader, upstream: Writer, lost: dict[int, Loss]) -> None:
        while piece := await self._read(reader):
            number = self._loses(piece)
            loss, self._armed = (self._armed, None) if number is not None else (None, self._armed)
            if loss is not None and number is not None:
                if not loss.delivered:
                    loss.hit.set()
                    return
                lost[number] = loss
            upstream.write(piece)
            await upstream.drain()

    async def _replies(self, upstream: Reader, writer: Writer, lost: dict[int, Loss]) -> None:
        while piece := await self._read(upstream):
            loss = lost.get(self._answers(piece))
            if loss is not None:
                loss.hit.set()
                return
            writer.write(piece)
            await writer.drain()

    @abstractmethod
    async def _read(self, reader: Reader) -> bytes:
        """The next piece of a stream; empty at its end."""

    @abstractmethod
    def _loses(self, piece: bytes) -> int | None:
        """The number of a request whose reply may be lost."""

    @abstractmethod
    def _answers(self, piece: bytes, /) -> int:
        """The number of the request that a reply answers."""


class KafkaProxy(Proxy):
    """Loses the reply to an EndTxn that commits."""

    async def _read(self, reader: Reader) -> bytes:
        try:
            head = await reader.readexactly(_LENGTH.size)
            return head + await reader.readexactly(*_LENGTH.unpack(head))
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""

    def _loses(self, piece: bytes) -> int | None:
        api, version, number = _REQUEST.unpack_from(piece, _LENGTH.size)
        if api != _END_TXN:
            return None
        commits = piece[-2] if version >= _END_TXN_TAGGED else piece[-1]
        return int(number) if commits else None

    def _answers(self, piece: bytes, /) -> int:
        (number,) = _LENGTH.unpack_from(piece, _LENGTH.size)
        return int(number)


class ClickHouseProxy(Proxy):
    """Loses the reply to an insert of the load worker's: HTTP, one request at a time."""

    async def _read(self, reader: Reader) -> bytes:
        try:
            return await reader.read(_PIECE_BYTES)
        except ConnectionError:
            return b""

    def _loses(self, piece: bytes) -> int | None:
        # A client sends the head of a request in one piece, and nothing before the last reply.
        line = piece.partition(b"\r\n")[0]
        inserts = line.startswith(b"POST /") and b"insert_deduplication_token=" in line
        return 0 if inserts else None

    def _answers(self, _: bytes, /) -> int:
        return 0


@contextlib.asynccontextmanager
async def _closing(writer: Writer) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
