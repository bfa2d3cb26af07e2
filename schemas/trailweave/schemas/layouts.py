"""A reader that recognises records laid out like one it has read before.

An Avro record's layout hangs on few of its bytes: lengths, counts, union branches, enum indexes,
booleans, and which bytes of a number go on. Two records of one size whose such bytes are equal are
laid out equally: if one is exactly one record, so is the other, and every field lies in the same
place. One comparison of the whole record as a number under a mask therefore stands for the walk
over all its fields, which is what reading costs. High-volume producers repeat a few layouts.

Pure but for what it remembers, and that changes no answer: a record of an unknown layout goes to
the compiled reader.
"""

import struct
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple

from trailweave.schemas.compiled import REPEATING, Json, Reader, definition, named_types
from trailweave.schemas.varint import read_varint

#: A size of record is looked at more closely when it comes for the so many'th time.
_SEEN_MIN: Final = 3
#: Layouts of one size, and of one reader in all: what a fleet repeats; above it, all start anew.
_PER_SIZE_MAX: Final = 4
_LAYOUTS_MAX: Final = 256
#: Once so many layouts were learned, one is learned for so many records read without one: learning
#: costs a hundred reads, and records that never repeat must not pay for it again and again.
_FREE: Final = 64
_RECORDS_PER_LAYOUT: Final = 2_000
#: Sizes counted before they are looked at more closely; values of repeated runs kept.
_SIZES_MAX: Final = 4_096
_RUNS_MAX: Final = 512


class _Layout(NamedTuple):
    """Bytes under `mask` equal `expected`, and `extract` has the fields."""

    mask: int
    expected: int
    extract: Callable[[bytes], dict[str, Any]]


def remembering(schema: Json, wanted: Collection[str], read: Reader) -> Reader:
    """`read`, which reads the `wanted` fields of `schema`, with layouts remembered.

    Objects in what it returns may be shared between records: nobody may change them.
    """
    memory = _Memory(schema, wanted)
    layouts, note, from_bytes = memory.layouts, memory.note, int.from_bytes

    def read_remembering(buf: bytes, p: int) -> dict[str, Any]:
        known = layouts.get((len(buf), p))
        if known is not None:
            bits = from_bytes(buf, "little")
            for mask, expected, extract in known:
                if bits & mask == expected:
                    return extract(buf)
        record = read(buf, p)
        note(buf, p)
        return record

    return read_remembering


class _Memory:
    """The layouts of one reader, by size of the record and where it begins in its bytes."""

    def __init__(self, schema: Json, wanted: Collection[str]) -> None:
        self.layouts: dict[tuple[int, int], list[_Layout]] = {}
        self._schema, self._wanted = schema, wanted
        self._seen: dict[tuple[int, int], int] = {}
        self._learned = self._unread = 0

    def note(self, buf: bytes, p: int) -> None:
        """A record that the reader accepted and that no layout fits."""
        self._unread += 1
        size = (len(buf), p)
        count = self._seen.get(size, 0) + 1
        if count < _SEEN_MIN:
            if len(self._seen) >= _SIZES_MAX:
                self._seen.clear()
            self._seen[size] = count
        elif self._worth_learning(size):
            self._unread = 0
            layout = _Walk(self._schema, self._wanted, buf, p).layout()
            if layout is not None:
                self._learn(size, layout)

    def _worth_learning(self, size: tuple[int, int]) -> bool:
        full = len(self.layouts.get(size, ())) >= _PER_SIZE_MAX
        return not full and (self._learned < _FREE or self._unread >= _RECORDS_PER_LAYOUT)

    def _learn(self, size: tuple[int, int], layout: _Layout) -> None:
        self._learned += 1
        if sum(map(len, self.layouts.values())) >= _LAYOUTS_MAX:
            self.layouts.clear()
        self.layouts.setdefault(size, []).append(layout)


class _Walk:
    """One walk over a record that the reader accepted: which bytes lay it out, what lies where."""

    def __init__(self, schema: Json, wanted: Collection[str], buf: bytes, p: int) -> None:
        self._schema, self._wanted = schema, wanted
        self._names = named_types(schema)
        self._buf, self._p = buf, p
        self._mask = bytearray(len(buf))
        #: 1 where a byte belongs to a text.
        self._text = bytearray(len(buf))
        self._constants: dict[str, Any] = {"read_varint": read_varint, "high": _HighGroups()}

    def layout(self) -> _Layout | None:
        """None for a record whose text is not ASCII: what its bytes are then says no mask."""
        found = self._fields()
        if any(byte > 127 for byte, text in zip(self._buf, self._text, strict=True) if text):
            return None
        mask = int.from_bytes(self._mask, "little")
        expected = int.from_bytes(self._buf, "little") & mask
        body = ", ".join(f"{name!r}: {value}" for name, value in found.items())
        extract = eval(f"lambda buf: {{{body}}}", self._constants)  # noqa: S307 - our own source
        return _Layout(mask, expected, extract)

    # --- top level: fields, and runs of fields whose values are kept ---

    def _fields(self) -> dict[str, str]:
        found: dict[str, str] = {}
        fields = list(self._schema["fields"])
        while fields:
            names = [field["name"] for field in fields]
            until = REPEATING.get(names[0])
            count = names.index(until) + 1 if until in names else 1
            begin = self._p
            run = {}
            for field in fields[:count]:
                value = self._value(field["type"])
                if field["name"] in self._wanted:
                    run[field["name"]] = value
            found |= self._kept(run, begin) if count > 1 and run else run
            del fields[:count]
        return found

    def _kept(self, run: dict[str, str], begin: int) -> dict[str, str]:
        """The run's values, computed once for the same bytes."""
        number = len(self._constants)
        values = ", ".join(run.values())
        compute = eval(f"lambda buf: ({values},)", self._constants)  # noqa: S307 - as above
        kept: dict[bytes, tuple[Any, ...]] = {}
        end = self._p

        def values_of(buf: bytes) -> tuple[Any, ...]:
            part = buf[begin:end]
            found: tuple[Any, ...] | None = kept.get(part)
            if found is None:
                if len(kept) >= _RUNS_MAX:
                    kept.clear()
                found = kept[part] = compute(buf)
            return found

        self._constants[f"run{number}"] = values_of
        first, *others = run
        item = {first: f"(r{number} := run{number}(buf))[0]"}
        return item | {name: f"r{number}[{i + 1}]" for i, name in enumerate(others)}

    # --- values: each moves on and gives the expression that reads it from `buf` ---

    def _value(self, schema: Any) -> str:
        schema = definition(schema, self._names)
        if isinstance(schema, list):
            return self._value(schema[1]) if self._laid_out() else "None"
        if isinstance(schema, dict):
            return self._complex(schema)
        if schema == "boolean":
            return repr(bool(self._laid_out()))
        if schema in ("string", "bytes"):
            return self._sized(schema)
        if schema == "double":
            begin, self._p = self._p, self._p + 8
            self._constants["unpack_double"] = _unpack_double
            return f"unpack_double(buf, {begin})[0]"
        return self._number(schema)

    def _complex(self, schema: Json) -> str:
        if schema["type"] == "record":
            fields = [(f["name"], self._value(f["type"])) for f in schema["fields"]]
            return "{" + ", ".join(f"{name!r}: {value}" for name, value in fields) + "}"
        if schema["type"] == "enum":
            return repr(schema["symbols"][self._laid_out() >> 1])
        items, is_map = [], schema["type"] == "map"
        while raw := self._laid_out():
            count = (raw >> 1) ^ -(raw & 1)
            if count < 0:
                count = -count
                self._laid_out()
            for _ in range(count):
                key = self._value("string") + ": " if is_map else ""
                items.append(key + self._value(schema["values" if is_map else "items"]))
        return ("{%s}" if is_map else "[%s]") % ", ".join(items)

    def _laid_out(self) -> int:
        """A number that the layout hangs on: every bit of it counts."""
        begin = self._p
        raw, self._p = read_varint(self._buf, begin)
        self._mask[begin : self._p] = b"\xff" * (self._p - begin)
        return raw

    def _sized(self, schema: str) -> str:
        length = self._laid_out() >> 1
        begin, self._p = self._p, self._p + length
        if schema == "bytes":
            return f"buf[{begin}:{self._p}]"
        # No byte of a text may be over 127: then it is UTF-8, and nobody has to look.
        self._mask[begin : self._p] = b"\x80" * length
        self._text[begin : self._p] = b"\x01" * length
        return f"buf[{begin}:{self._p}].decode()"

    def _number(self, schema: str) -> str:
        begin = self._p
        _, self._p = read_varint(self._buf, begin)
        size = self._p - begin
        self._mask[begin : self._p] = b"\x80" * size
        if size == (5 if schema == "int" else 10):
            self._mask[self._p - 1] = 0xFF  # how large the last group may be is laid down
        if size == 1:
            return f"((buf[{begin}] >> 1) ^ -(buf[{begin}] & 1))"
        if size == _TIME_BYTES:
            low = " | ".join(f"(buf[{begin + i}] & 127) << {7 * i}" for i in range(_LOW_GROUPS))
            high = f"high[buf[{begin + _LOW_GROUPS}:{self._p}]]"
            return f"(((n := {high} | {low}) >> 1) ^ -(n & 1))"
        return f"(((n := read_varint(buf, {begin})[0]) >> 1) ^ -(n & 1))"


#: A time in microseconds has eight groups; the upper five change every two seconds.
_TIME_BYTES: Final = 8
_LOW_GROUPS: Final = 3


class _HighGroups(dict[bytes, int]):
    """What the upper groups of a time are worth, by their bytes."""

    def __missing__(self, groups: bytes) -> int:
        if len(self) >= _RUNS_MAX:
            self.clear()
        value = self[groups] = read_varint(groups, 0)[0] << 7 * _LOW_GROUPS
        return value


_unpack_double: Final = struct.Struct("<d").unpack_from
