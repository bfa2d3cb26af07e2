"""Readers of one Avro schema, compiled to straight-line Python; `compiled_write` has the writers.

Not a general Avro library: no logical types, unions only with null, and of schema resolution what
`compatibility` lets through. What it is for: the join reads some fields of every event and must
know that the bytes are exactly one record; a generic reader walks the schema for every field, and
costs five times as much here. `fastavro` is the reference that the tests hold this module against.

Every reader checks what ClickHouse's own reader would stumble over or read otherwise (union
branches, enum indexes, negative lengths, sizes of blocks, bytes missing or left over), so that
bytes accepted here are accepted there, and say the same.
"""

import struct
from collections.abc import Callable, Collection
from typing import Any, Final

from trailweave.schemas.errors import Rejected
from trailweave.schemas.varint import (
    Malformed,
    read_int_varint,
    read_length,
    read_symbol,
    read_varint,
)

Json = dict[str, Any]
#: bytes, position of the record's first byte -> the wanted fields
Reader = Callable[[bytes, int], dict[str, Any]]


def short_name(name: str) -> str:
    """A type's name without our namespace."""
    return name.removeprefix("trailweave.")


def named_types(schema: Any, found: dict[str, Json] | None = None) -> dict[str, Json]:
    """Every record, enum and fixed defined in a schema, by short name."""
    found = {} if found is None else found
    if isinstance(schema, list):
        for part in schema:
            named_types(part, found)
    elif isinstance(schema, dict):
        if schema["type"] in ("record", "enum", "fixed"):
            found[short_name(schema["name"])] = schema
        for key in ("type", "items", "values"):
            if isinstance(schema.get(key), (dict, list)):
                named_types(schema[key], found)
        for field in schema.get("fields", ()):
            named_types(field["type"], found)
    return found


def definition(schema: Any, names: dict[str, Json]) -> Any:
    """The definition behind a name, or the primitive type's name."""
    if isinstance(schema, str):
        return names.get(short_name(schema), schema)
    if isinstance(schema, dict) and isinstance(schema["type"], (dict, list)):
        return definition(schema["type"], names)
    if isinstance(schema, dict) and schema["type"] not in _COMPLEX:
        return definition(schema["type"], names)
    return schema


_COMPLEX: Final = ("record", "enum", "fixed", "array", "map")


class Source:
    """Lines of a function under construction, and the named types of both schemas."""

    def __init__(self, schema: Json, ours: Json | None = None, *, every_text: bool = True) -> None:
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}
        self.counter = 0
        self.names = named_types(schema)
        self.our_names = named_types(ours) if ours is not None else {}
        #: Whether strings are decoded that nobody wants, to know that they are UTF-8.
        self.every_text = every_text

    def add(self, depth: int, *lines: str) -> None:
        self.lines += ["    " * depth + line for line in lines]

    def variable(self) -> str:
        self.counter += 1
        return f"v{self.counter}"

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def ours(self, schema: Any) -> Any:
        """Our definition of a type, null taken away; None where we have none."""
        if isinstance(schema, list):
            return self.ours(schema[1])
        return definition(schema, self.our_names)


# --- reading ---------------------------------------------------------------------------------
#
# Strings that nobody wants are passed over without a look, and still must be UTF-8: an event that
# is accepted by a check must not be refused by a later, fuller read. So the reader counts in `h`
# the bytes over 127 that numbers usually have; if the record has no others, all its text is ASCII.
# Else a second reader, compiled at its first use, decodes every string.


#: A run of this many unwanted fields that are mostly empty is compared with zeros at once.
_RUN_MIN: Final = 3

#: Runs of envelope fields, first to last, that the events of one producer in a session mostly have
#: in common; a record with the bytes of the one before takes over its values.
REPEATING: Final = {
    "tenant": "producer_epoch",
    "agent_id": "capture",
    "delayed": "event_type",
}


def _read_value(src: Source, depth: int, schema: Any, target: str | None, ours: Any) -> None:
    """Emit code that moves `p` over one value, into `target` if it is wanted, as `ours` has it."""
    schema = definition(schema, src.names)
    ours = src.ours(ours)
    if isinstance(schema, list):
        _read_nullable(src, depth, schema, target, ours)
    elif not isinstance(schema, dict):
        _read_primitive(src, depth, schema, target)
    elif schema["type"] == "record":
        _read_record(src, depth, schema, target, ours)
    elif schema["type"] == "enum":
        _read_enum(src, depth, schema, target, ours)
    elif schema["type"] in ("array", "map"):
        _read_blocks(src, depth, schema, target, ours)
    else:
        raise TypeError(f"couldn't compile a reader for the Avro type {schema['type']!r}")


def _read_primitive(src: Source, depth: int, schema: str, target: str | None) -> None:
    if schema in ("string", "bytes"):
        _read_text(src, depth, schema, target)
    elif schema in ("long", "int"):
        _read_number(src, depth, schema, target)
    elif schema == "boolean":
        src.add(depth, "n = buf[p]; p += 1", "if n > 1: raise Malformed('a boolean is not 0 or 1')")
        if target:
            src.add(depth, f"{target} = n == 1")
    elif schema == "double":
        if target:
            src.add(depth, f"({target},) = unpack_double(buf, p)")
        src.add(depth, "h += high(buf[p:p + 8])", "p += 8")
    else:
        raise TypeError(f"couldn't compile a reader for the Avro type {schema!r}")


def _read_number(src: Source, depth: int, schema: str, target: str | None) -> None:
    read = "read_varint" if schema == "long" else "read_int_varint"
    if target:
        src.add(depth, "n = buf[p]; p += 1")
        src.add(depth, f"if n > 127: q = p; n, p = {read}(buf, p - 1); h += p - q")
        src.add(depth, f"{target} = (n >> 1) ^ -(n & 1)")
    else:
        # Times are eight bytes: counting them off is cheaper than reading them.
        enough = 9 if schema == "long" else 4
        src.add(depth, "q = p", "while buf[p] > 127: p += 1")
        src.add(depth, "h += p - q; p += 1", f"if p - q > {enough}: {read}(buf, q)")


def _read_text(src: Source, depth: int, schema: str, target: str | None) -> None:
    long_one = "q = p + 1; n, p = read_length(buf, p); h += p - q"
    if not target and schema == "string" and not src.every_text:
        src.add(depth, "n = buf[p]", f"if n & 129: {long_one}; p += n", "else: p += 1 + (n >> 1)")
        return
    src.add(depth, "n = buf[p]", f"if n & 129: {long_one}; e = p + n")
    src.add(depth, "else: p += 1; e = p + (n >> 1)")
    # A slice past the end is short without an error, so the end is checked here.
    src.add(depth, "if e > end: raise IndexError")
    decoded = "buf[p:e].decode()" if schema == "string" else "buf[p:e]"
    src.add(depth, f"{target} = {decoded}" if target else decoded)
    if schema == "bytes":
        src.add(depth, "h += high(buf[p:e])")
    src.add(depth, "p = e")


def _read_nullable(
    src: Source, depth: int, schema: list[Any], target: str | None, ours: Any
) -> None:
    if len(schema) != 2 or schema[0] != "null":
        raise TypeError("couldn't compile a reader: unions are null first, then one type")
    src.add(depth, "n = buf[p]; p += 1", "if n == 2:")
    _read_value(src, depth + 1, schema[1], target, ours)
    src.add(depth, "elif n: raise Malformed('a union has no such branch')")
    if target:
        src.add(depth, f"else: {target} = None")


def _read_record(src: Source, depth: int, schema: Json, target: str | None, ours: Any) -> None:
    wanted = None if ours is None else [field["name"] for field in ours["fields"]]
    found = _read_fields(src, depth, schema, ours, wanted if target else ())
    if target:
        items = ", ".join(f"{name!r}: {value}" for name, value in found.items())
        src.add(depth, f"{target} = {{{items}}}")


def _read_fields(
    src: Source, depth: int, schema: Json, ours: Any, wanted: Collection[str] | None
) -> dict[str, str]:
    """Emit code over all fields; the wanted ones' names with the expressions that hold them."""
    found: dict[str, str] = {}
    types = {} if ours is None else {field["name"]: field["type"] for field in ours["fields"]}
    fields = list(schema["fields"])
    while fields:
        names = [field["name"] for field in fields]
        until = REPEATING.get(names[0])
        if until in names and not src.every_text:
            last = names.index(until) + 1
            found |= _read_repeating(src, depth, fields[:last], types, wanted)
            del fields[:last]
        else:
            found |= _read_next(src, depth, fields, types, wanted)
    for field in ours["fields"] if ours is not None else ():
        if field["name"] not in found and (wanted is None or field["name"] in wanted):
            # Written out, so that every record gets a list or map of its own.
            found[field["name"]] = repr(_default(field))
    return found


def _read_next(
    src: Source,
    depth: int,
    fields: list[Json],
    types: dict[str, Any],
    wanted: Collection[str] | None,
) -> dict[str, str]:
    """Emit code over the first of `fields`, or a run of unwanted ones, and take them away."""
    run = 0 if src.every_text else _empty_run(src, fields, wanted)
    if run >= _RUN_MIN:
        src.add(depth, f"if buf[p:p + {run}] == {bytes(run)!r}: p += {run}", "else:")
        for field in fields[:run]:
            _read_value(src, depth + 1, field["type"], None, None)
        del fields[:run]
        return {}
    field = fields.pop(0)
    name = field["name"]
    target = src.variable() if wanted is None or name in wanted else None
    _read_value(src, depth, field["type"], target, types.get(name))
    return {name: target} if target else {}


def _read_repeating(
    src: Source,
    depth: int,
    fields: list[Json],
    types: dict[str, Any],
    wanted: Collection[str] | None,
) -> dict[str, str]:
    """Emit code that takes over these fields' values when the last record had the same bytes.

    Decoding reads no byte before or behind the fields, so equal bytes at the same place mean equal
    values. They are the same objects, too: who is given a record must not change what is in it.
    """
    memo = src.constant([((), 0, ())])  # bytes start with no one of no prefixes
    begin, high = src.variable(), src.variable()
    slow = len(src.lines)
    found: dict[str, str] = {}
    src.add(depth, "else:", f"    {begin} = p; {high} = h")
    while fields:
        found |= _read_next(src, depth + 1, fields, types, wanted)
    values = "".join(f"{value}, " for value in found.values())
    src.add(depth + 1, f"if p <= end: {memo}[0] = (buf[{begin}:p], h - {high}, ({values}))")
    fast = [
        f"m = {memo}[0]",
        "if buf.startswith(m[0], p):",
        "    p += len(m[0]); h += m[1]" + (f"; {values}= m[2]" if values else ""),
    ]
    src.lines[slow:slow] = ["    " * depth + line for line in fast]
    return found


def _empty_run(src: Source, fields: list[Json], wanted: Collection[str] | None) -> int:
    """How many of the next fields are unwanted and encode as one zero byte when they are empty."""
    for count, field in enumerate(fields):
        schema = definition(field["type"], src.names)
        empty = isinstance(schema, list) or (
            isinstance(schema, dict) and schema["type"] in ("array", "map")
        )
        if wanted is None or field["name"] in wanted or not empty:
            return count
    return len(fields)


def _default(field: Json) -> Any:
    """The value of a field that the writer's version doesn't have."""
    value = field.get("default")
    return value.encode("latin-1") if field["type"] == "bytes" and value is not None else value


def _read_enum(src: Source, depth: int, schema: Json, target: str | None, ours: Any) -> None:
    symbols = tuple(schema["symbols"])
    if ours is not None and "default" in ours:
        # What a newer version added reads as our default, as Avro's resolution has it.
        symbols = tuple(s if s in ours["symbols"] else ours["default"] for s in symbols)
    count = len(symbols)
    src.add(depth, "n = buf[p]; p += 1")
    src.add(depth, f"if n & 1 or n > {min(127, 2 * count - 2)}:")
    src.add(depth + 1, f"n, p = read_symbol(buf, p - 1, {count})")
    if target:
        src.add(depth, f"{target} = {src.constant(symbols)}[n >> 1]")


def _read_blocks(src: Source, depth: int, schema: Json, target: str | None, ours: Any) -> None:
    """Arrays and maps: blocks of items; a negative count is followed by the block's size."""
    count, size, item, key = (src.variable() for _ in range(4))
    is_map = schema["type"] == "map"
    inner_key = "values" if is_map else "items"
    if target:
        src.add(depth, f"{target} = {{}}" if is_map else f"{target} = []")
    src.add(depth, "while True:")
    inner = depth + 1
    src.add(inner, "n = buf[p]; p += 1", "if n == 0: break")
    src.add(inner, "if n > 127: n, p = read_varint(buf, p - 1)")
    src.add(inner, f"{count} = (n >> 1) ^ -(n & 1)", f"{size} = -1")
    # Others take a zero in more than one byte for the end, which a loop would read past.
    src.add(inner, f"if {count} == 0: raise Malformed('a block has no items')")
    src.add(inner, f"if {count} < 0:")
    src.add(inner + 1, f"{count} = -{count}", "n, p = read_length(buf, p)", f"{size} = p + n")
    # Every item takes a byte at least, for `compatibility` lets no empty records in: with more
    # items than bytes, some are not there.
    src.add(inner, f"if {count} > end - p: raise IndexError")
    src.add(inner, f"for _ in range({count}):")
    if is_map:
        _read_value(src, inner + 1, "string", key if target else None, None)
    item_ours = None if ours is None else ours[inner_key]
    _read_value(src, inner + 1, schema[inner_key], item if target else None, item_ours)
    if target:
        put = f"{target}[{key}] = {item}" if is_map else f"{target}.append({item})"
        src.add(inner + 1, put)
    # ClickHouse jumps by the size where it needs no items: it must lead to where the items end.
    src.add(inner, f"if {size} >= 0 and {size} != p: raise Malformed('a block has another size')")


def compile_source(src: Source, name: str, extra: dict[str, Any]) -> Callable[..., Any]:
    scope: dict[str, Any] = {**src.constants, **extra}
    exec(compile("\n".join(src.lines), f"<{name}>", "exec"), scope)  # noqa: S102 - our own source
    function: Callable[..., Any] = scope[name]
    return function


def compile_reader(
    schema: Json, wanted: Collection[str] | None = None, ours: Json | None = None
) -> Reader:
    """A function (bytes, position) -> dict of the wanted top-level fields (None: all).

    `schema` is the writer's. With `ours` the fields come as that version has them: what only the
    writer has is left out, what it lacks has our default, symbols that we lack are our default
    symbol. The two must be compatible, see `compatibility`.

    The function raises `Rejected` with code `truncated`, `trailing_bytes` or `not_avro` unless the
    bytes from the position to the end are exactly one record of `schema`.
    """
    if wanted is None and ours is None:
        return _compile_reader(schema, None, None, None)
    if wanted is None and ours is not None:
        wanted = [field["name"] for field in ours["fields"]]
    careful: list[Reader] = []

    def read_carefully(buf: bytes, p: int) -> dict[str, Any]:
        if not careful:
            careful.append(_compile_reader(schema, wanted, ours, None))
        return careful[0](buf, p)

    return _compile_reader(schema, wanted, ours, read_carefully)


def _compile_reader(
    schema: Json, wanted: Collection[str] | None, ours: Json | None, careful: Reader | None
) -> Reader:
    """`careful` reads records that hold more than ASCII; None: decode every string here."""
    src = Source(schema, ours, every_text=careful is None)
    src.add(0, "def read(buf, p):")
    src.add(1, "end = len(buf)", "start = p", "h = 0", "try:")
    found = _read_fields(src, 2, schema, ours, wanted)
    src.add(1, "except IndexError: raise cut_short(end) from None")
    src.add(1, "except struct_error: raise cut_short(end) from None")
    src.add(1, "except Malformed as error: raise not_avro(error) from None")
    src.add(1, "except UnicodeDecodeError: raise not_avro('a string is not UTF-8') from None")
    src.add(1, "if p > end: raise cut_short(end)")
    src.add(1, "if p < end: raise left_over(end - p)")
    if careful is not None:
        src.add(1, "if high(buf[start:]) != h: return careful(buf, start)")
    src.add(1, "return {" + ", ".join(f"{k!r}: {v}" for k, v in found.items()) + "}")
    return compile_source(src, "read", {**_READ_SCOPE, "careful": careful})


def _high(data: bytes) -> int:
    """How many bytes are over 127."""
    return len(data.translate(None, _ASCII))


_ASCII: Final = bytes(range(128))


def _cut_short(size: int) -> Rejected:
    return Rejected("truncated", f"the record ends after {size} bytes, inside a field")


def _left_over(count: int) -> Rejected:
    return Rejected("trailing_bytes", f"{count} bytes follow the record: it is not exactly one")


def _not_avro(detail: object) -> Rejected:
    return Rejected("not_avro", f"the bytes don't follow their schema: {detail}")


_READ_SCOPE: Final[dict[str, Any]] = {
    "read_varint": read_varint,
    "read_int_varint": read_int_varint,
    "read_length": read_length,
    "read_symbol": read_symbol,
    "high": _high,
    "Malformed": Malformed,
    "unpack_double": struct.Struct("<d").unpack_from,
    "struct_error": struct.error,
    "cut_short": _cut_short,
    "left_over": _left_over,
    "not_avro": _not_avro,
}
