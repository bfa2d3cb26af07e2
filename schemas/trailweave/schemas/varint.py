"""Avro's variable-length numbers: zigzag, seven bits a byte, least first."""

from typing import Final

#: Avro's long has 64 bits: ten groups of seven, and one bit in the tenth.
_VARINT_BYTES_MAX: Final = 10


class Malformed(Exception):
    """Bytes that no record of the schema has; becomes `Rejected` at the reader's door."""


def read_varint(buf: bytes, p: int) -> tuple[int, int]:
    """The raw (still zigzag) number at `p` and the position behind it."""
    eight = buf[p : p + 8]
    if len(eight) == 8:
        a, b, c, d, e, f, g, h = eight
        if h < 128 <= a & b & c & d & e & f & g:  # eight groups: a time in microseconds
            low = a & 127 | (b & 127) << 7 | (c & 127) << 14 | (d & 127) << 21
            return low | (e & 127 | (f & 127) << 7 | (g & 127) << 14 | h << 21) << 28, p + 8
    number = shift = 0
    start = p
    while True:
        byte = buf[p]
        p += 1
        number |= (byte & 127) << shift
        if byte < 128:
            if shift == 63 and byte > 1:
                raise Malformed("a number is longer than 64 bits")
            return number, p
        if p - start == _VARINT_BYTES_MAX:
            raise Malformed("a number is longer than ten bytes")
        shift += 7


def read_int_varint(buf: bytes, p: int) -> tuple[int, int]:
    """The same for an int: ClickHouse refuses what doesn't fit in 32 bits."""
    number, p = read_varint(buf, p)
    if number > 0xFFFF_FFFF:
        raise Malformed("an int is longer than 32 bits")
    return number, p


def read_length(buf: bytes, p: int) -> tuple[int, int]:
    """A length or size at `p` in bytes, and the position behind it."""
    number, p = read_varint(buf, p)
    if number & 1:
        raise Malformed("a length is negative")
    return number >> 1, p


def read_symbol(buf: bytes, p: int, symbols: int) -> tuple[int, int]:
    """The raw number of an enum of so many symbols, and the position behind it."""
    number, p = read_varint(buf, p)
    if number & 1 or number >> 1 >= symbols:
        raise Malformed("an enum has no such symbol")
    return number, p


def write_varint(number: int) -> bytes:
    """Avro's encoding of a long."""
    zigzag = (number << 1) ^ (number >> 63)
    if zigzag < 1 << 14:
        return _LAST[zigzag]
    if zigzag < 1 << 28:  # an offset
        return _MORE[zigzag & _LOW] + _LAST[zigzag >> 14]
    if not zigzag >> 56 and zigzag >> 42:  # a time in microseconds
        first, second = _MORE[zigzag & _LOW], _MORE[zigzag >> 14 & _LOW]
        return first + second + _MORE[zigzag >> 28 & _LOW] + _LAST[zigzag >> 42]
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError("the number doesn't fit in 64 bits")
    out = []
    while zigzag >= 1 << 14:
        out.append(_MORE[zigzag & _LOW])
        zigzag >>= 14
    return b"".join(out) + _LAST[zigzag]


_LOW: Final = (1 << 14) - 1


def _pairs(more: int) -> list[bytes]:
    """Fourteen bits as two bytes, for each number; `more` is the second's bit for others behind."""
    return [bytes((low, high | more)) for high in range(128) for low in range(128, 256)]


#: Two groups at a time: looked up, a time is written in half the time that shifts would take.
_MORE: Final = _pairs(128)
_LAST: Final = [bytes((n,)) for n in range(128)] + _pairs(0)[128:]


def write_int_varint(number: int) -> bytes:
    """Avro's encoding of an int."""
    if not -(1 << 31) <= number < 1 << 31:
        raise ValueError("the number doesn't fit in 32 bits")
    return write_varint(number)
