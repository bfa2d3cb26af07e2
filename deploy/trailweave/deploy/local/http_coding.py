"""Compression of HTTP bodies: the codings that ClickHouse's clients use.

Pure. Used by the embedded front, for requests (Content-Encoding) and answers (Accept-Encoding).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import lz4.frame
import zstandard

#: In the order of our preference: speed first, for both ends share one machine.
CODINGS = ("lz4", "zstd", "gzip", "deflate")


class Encoder(Protocol):
    """Compresses one body. Not for several threads at once."""

    def compress(self, data: bytes) -> bytes: ...

    def flush(self) -> bytes: ...


class _Lz4Encoder:
    def __init__(self) -> None:
        self._context: Any = lz4.frame.LZ4FrameCompressor()
        self._head: bytes = self._context.begin()

    def compress(self, data: bytes) -> bytes:
        head, self._head = self._head, b""
        return head + bytes(self._context.compress(data))

    def flush(self) -> bytes:
        head, self._head = self._head, b""
        return head + bytes(self._context.flush())


def encoder(coding: str) -> Encoder:
    """A compressor for one answer."""
    if coding == "lz4":
        return _Lz4Encoder()
    if coding == "zstd":
        return zstandard.ZstdCompressor(level=1).compressobj()
    return zlib.compressobj(1, zlib.DEFLATED, 31 if coding == "gzip" else 15)


def choose(accept_encoding: str) -> str | None:
    """The coding for an answer that the client accepts, or None for plain bytes."""
    accepted = set()
    for part in accept_encoding.lower().split(","):
        name, _, quality = part.strip().partition(";")
        if quality.replace(" ", "") not in ("q=0", "q=0.0"):
            accepted.add(name.strip())
    return next((coding for coding in CODINGS if coding in accepted), None)


def decoded(pieces: Iterable[bytes], coding: str) -> Iterator[bytes]:
    """The plain bytes of a request's body. Raises `ValueError` for bytes that aren't so coded."""
    if coding in ("", "identity"):
        yield from pieces
        return
    decompressor = _decompressor(coding)
    for piece in pieces:
        rest = piece
        while rest:
            if decompressor.eof:
                # Some clients send each block as a frame of its own.
                decompressor = _decompressor(coding)
            try:
                plain = decompressor.decompress(rest)
            except (zlib.error, zstandard.ZstdError, RuntimeError, EOFError) as why:
                raise ValueError(f"the body isn't {coding}: {why}") from why
            rest = decompressor.unused_data if decompressor.eof else b""
            if plain:
                yield bytes(plain)
    if not decompressor.eof:
        raise ValueError(f"the body ends in the middle of its {coding} data")


def _decompressor(coding: str) -> Any:
    if coding == "lz4":
        return lz4.frame.LZ4FrameDecompressor()
    if coding == "zstd":
        return zstandard.ZstdDecompressor().decompressobj()
    if coding in ("gzip", "deflate"):
        return zlib.decompressobj(31 if coding == "gzip" else 15)
    raise ValueError(f"the content encoding {coding!r} isn't one of {', '.join(CODINGS)}")
