"""The bytes of a file -> its JSON records, each with its place; a broken one stops nothing.

Takes JSON lines, one JSON array over any number of lines, and one JSON document over many lines,
and finds out which by looking. Lines are read one at a time; arrays and documents are held whole,
up to a limit. Pure but for reading from the stream it is given.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, NoReturn

from trailweave.schemas.errors import Rejected

#: Longer than any line that the known writers make (OTLP batches reach a few MB).
LINE_BYTES_MAX: Final = 64 << 20
#: An array or a document has to fit in memory about five times over, as Python objects.
DOCUMENT_BYTES_MAX: Final = 256 << 20
#: Deeper than any record of the four formats; Python's own limit is about 1,000 calls.
DEPTH_MAX: Final = 64

_BOM: Final = b"\xef\xbb\xbf"
_SPACE: Final = b" \t\r\n"

#: One record's bytes -> its value; raises `Rejected` (`malformed`).
Decode = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Piece:
    """One record of a file, or the bytes that should have been one."""

    #: Line on which it starts, counted from 1.
    line: int
    raw: bytes
    value: object = None
    #: Why there is no value.
    problem: str | None = None


def decode_json(raw: bytes) -> object:
    """The JSON value that `raw` is; raises `Rejected` for none, or one that can't be kept."""
    try:
        value = json.loads(raw.decode(), parse_constant=_no_constant)
        if b"\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise Rejected("malformed", f"not JSON: {error.msg} at character {error.pos}") from None
    except UnicodeDecodeError as error:
        raise Rejected("malformed", f"not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise Rejected("malformed", "a text has half of a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        raise Rejected("malformed", f"not JSON that can be read: {type(error).__name__}") from None
    if raw.count(b"[") + raw.count(b"{") > DEPTH_MAX:
        _check_depth(value)
    return value


def decode_prefixed(raw: bytes) -> object:
    """The same of a line that has something before its object, such as `@cee: ` or a date."""
    return decode_json(raw[max(raw.find(b"{"), 0) :])


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(DEPTH_MAX):
        inner: list[object] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        if not inner:
            return
        level = inner
    raise Rejected("malformed", f"values are nested more than {DEPTH_MAX} deep")


def split(stream: BinaryIO, decode: Decode = decode_json) -> Iterator[Piece]:
    """Every record of a file in order; elements of arrays are records of their own."""
    line, first = _first_line(stream)
    if not first:
        return
    if _is_value(first, decode):
        yield from _lines(stream, decode, line, first)
    elif first[:1] == b"[":
        yield from _elements(first + stream.read(DOCUMENT_BYTES_MAX), line, decode)
    elif first[:1] == b"{":
        yield from _document(stream, decode, line, first)
    else:
        yield from _lines(stream, decode, line, first)


def _first_line(stream: BinaryIO) -> tuple[int, bytes]:
    """Number and bytes of the first line that isn't blank."""
    number = 0
    while raw := stream.readline(LINE_BYTES_MAX):
        number += 1
        found = raw.removeprefix(_BOM).lstrip(_SPACE) if number == 1 else raw.lstrip(_SPACE)
        if found:
            return number, found
    return number, b""


def _is_value(raw: bytes, decode: Decode) -> bool:
    try:
        decode(raw.strip(_SPACE))
    except Rejected:
        return False
    return True


def _lines(stream: BinaryIO, decode: Decode, line: int, *held: bytes) -> Iterator[Piece]:
    """Each line a record; `held` are those that were read already, the first at `line`."""
    waiting = list(held)
    while raw := waiting.pop(0) if waiting else stream.readline(LINE_BYTES_MAX):
        found = raw.strip(_SPACE)
        if len(raw) >= LINE_BYTES_MAX and not raw.endswith(b"\n"):
            yield Piece(line, found, problem=f"the line is longer than {LINE_BYTES_MAX} bytes")
            _skip_line(stream)
        elif found:
            yield from _line(found, line, decode)
        line += 1


def _skip_line(stream: BinaryIO) -> None:
    while (rest := stream.readline(LINE_BYTES_MAX)) and not rest.endswith(b"\n"):
        pass


def _line(raw: bytes, line: int, decode: Decode) -> Iterator[Piece]:
    piece = _piece(raw, line, decode)
    if not isinstance(piece.value, list):
        yield piece
        return
    for value in piece.value:
        yield Piece(line, json.dumps(value, ensure_ascii=False).encode(), value)


def _piece(raw: bytes, line: int, decode: Decode) -> Piece:
    try:
        return Piece(line, raw, decode(raw))
    except Rejected as error:
        return Piece(line, raw, problem=error.reason.detail)


def _document(stream: BinaryIO, decode: Decode, line: int, first: bytes) -> Iterator[Piece]:
    """An object over many lines; or lines, of which the first is broken."""
    second = stream.readline(LINE_BYTES_MAX)
    if _is_object(second, decode):
        yield from _lines(stream, decode, line, first, second)
        return
    whole = first + second + stream.read(DOCUMENT_BYTES_MAX)
    piece = _piece(whole.strip(_SPACE), line, decode)
    if stream.read(1):
        piece = Piece(line, whole, problem=f"longer than {DOCUMENT_BYTES_MAX} bytes: split it")
    lines = whole.split(b"\n")
    if piece.problem is None or not any(_is_object(each, decode) for each in lines):
        yield piece
        return
    for number, raw in enumerate(lines, line):
        if raw.strip(_SPACE):
            yield from _line(raw.strip(_SPACE), number, decode)


def _is_object(raw: bytes, decode: Decode) -> bool:
    found = raw.strip(_SPACE)
    return len(found) > 2 and found[:1] == b"{" and _is_value(found, decode)


#: Strings are eaten whole, so brackets and commas in them don't count.
_STRUCTURE: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)


def _elements(whole: bytes, line: int, decode: Decode) -> Iterator[Piece]:
    """The elements of an array, found by its brackets: one that isn't JSON spoils no other."""
    start, depth = 1, 0
    for found in _STRUCTURE.finditer(whole):
        mark = found.group()
        if mark in (b"[", b"{"):
            depth += 1
        elif mark in (b"]", b"}"):
            depth -= 1
        if (mark == b"," and depth == 1) or depth == 0:
            yield from _element(whole, start, found.start(), line, decode)
            line += whole.count(b"\n", start, found.end())
            start = found.end()
            if depth == 0:
                break
    else:
        yield from _element(whole, start, len(whole), line, decode)
        yield Piece(line, b"", problem="the array doesn't end")
        return
    if whole[start:].strip(_SPACE):
        yield Piece(line, whole[start:].strip(_SPACE), problem="something follows the array")


def _element(whole: bytes, start: int, end: int, line: int, decode: Decode) -> Iterator[Piece]:
    raw = whole[start:end]
    if raw.strip(_SPACE):
        skipped = len(raw) - len(raw.lstrip(_SPACE))
        yield _piece(raw.strip(_SPACE), line + raw.count(b"\n", 0, skipped), decode)
