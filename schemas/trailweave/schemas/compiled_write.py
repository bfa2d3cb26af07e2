"""Writers of one Avro schema, compiled to straight-line Python; see `compiled`."""

import struct
from collections.abc import Callable
from typing import Any, Final

from trailweave.schemas.compiled import Json, Source, compile_source, definition
from trailweave.schemas.varint import write_int_varint, write_varint

#: record, bytes to put in front -> bytes
Writer = Callable[[dict[str, Any], bytes], bytes]


class Items(bytes):
    """An array's items, encoded already, with their count in front: written as they are."""

    __slots__ = ()


def _write_value(src: Source, depth: int, schema: Any, value: str) -> None:
    """Emit code that appends the encoding of the expression `value`."""
    schema = definition(schema, src.names)
    if isinstance(schema, list):
        src.add(depth, f"if {value} is None: put(b'\\0')", "else:")
        src.add(depth + 1, "put(b'\\2')")
        _write_value(src, depth + 1, schema[1], value)
    elif isinstance(schema, dict) and schema["type"] == "record":
        _write_fields(src, depth, schema, value)
    elif isinstance(schema, dict) and schema["type"] == "enum":
        index = {symbol: write_varint(i) for i, symbol in enumerate(schema["symbols"])}
        src.add(depth, f"put({src.constant(index)}[{value}])")
    elif isinstance(schema, dict):
        _write_blocks(src, depth, schema, value)
    elif schema in ("string", "bytes"):
        encoded = f"{value}.encode()" if schema == "string" else value
        src.add(depth, f"b = {encoded}", "n = len(b)")
        src.add(depth, "put(lengths[n] if n < 64 else write_varint(n)); put(b)")
    elif schema in ("long", "int"):
        write = "write_int_varint" if schema == "int" else "write_varint"
        src.add(depth, f"n = {value}")
        src.add(depth, f"put(lengths[n] if 0 <= n < 64 else {write}(n))")
    elif schema == "boolean":
        # By key, for the text "false" is true.
        src.add(depth, f"put(booleans[{value}])")
    else:
        src.add(depth, f"put(pack_double({value}))")


def _write_fields(src: Source, depth: int, schema: Json, record: str) -> None:
    for field in schema["fields"]:
        variable = src.variable()
        if "default" not in field:
            src.add(depth, f"{variable} = {record}[{field['name']!r}]")
        elif field["default"] is None:
            src.add(depth, f"{variable} = {record}.get({field['name']!r})")
        else:
            default = src.constant(field["default"])
            src.add(depth, f"{variable} = {record}.get({field['name']!r}, {default})")
        _write_value(src, depth, field["type"], variable)


def _write_blocks(src: Source, depth: int, schema: Json, value: str) -> None:
    item, key = src.variable(), src.variable()
    src.add(depth, f"if type({value}) is Items: put({value})", f"elif {value}:")
    src.add(depth + 1, f"n = len({value})", "put(lengths[n] if n < 64 else write_varint(n))")
    if schema["type"] == "map":
        src.add(depth + 1, f"for {key}, {item} in {value}.items():")
        _write_value(src, depth + 2, "string", key)
        _write_value(src, depth + 2, schema["values"], item)
    else:
        # A text would be written as a list of its letters.
        src.add(depth + 1, f"if isinstance({value}, (str, bytes, dict)): raise TypeError")
        src.add(depth + 1, f"for {item} in {value}:")
        _write_value(src, depth + 2, schema["items"], item)
    src.add(depth, "put(b'\\0')")


def compile_writer(schema: Json) -> Writer:
    """A function (record, prefix) -> prefix + the record's encoding.

    Fields with a default may be missing. It raises the error of the first value that doesn't fit
    (KeyError, AttributeError, TypeError, ValueError, OverflowError, struct.error): `codec.encode`
    says which field it was.
    """
    src = Source(schema)
    src.add(0, "def write(record, prefix):")
    src.add(1, "out = [prefix]", "put = out.append")
    _write_fields(src, 1, schema, "record")
    src.add(1, "return b''.join(out)")
    return compile_source(src, "write", _WRITE_SCOPE)


_WRITE_SCOPE: Final[dict[str, Any]] = {
    "write_varint": write_varint,
    "write_int_varint": write_int_varint,
    "booleans": {False: b"\0", True: b"\1"},
    "pack_double": struct.Struct("<d").pack,
    "lengths": tuple(write_varint(n) for n in range(64)),
    "Items": Items,
}
