"""Whether this version can read what another version wrote, judged by the two schemas alone.

Pure. The rule for changing a schema: add fields with a default, append enum symbols, make a field
nullable; never remove a field without a default, change a type or change the order. Fields that one
side lacks are passed over or get their default, at any depth.

It also bounds what `compiled` is asked to compile, for schemas come from topics and registries that
every producer may write to.
"""

from typing import Any, Final

from trailweave.schemas.compiled import Json, definition, named_types, short_name

#: Our deepest value lies six levels down; the largest schema has 300 parts. Code is written out for
#: each part, so a small schema that uses its own types again and again could fill the memory.
DEPTH_MAX: Final = 12
PARTS_MAX: Final = 5_000

_PRIMITIVES: Final = ("string", "bytes", "int", "long", "boolean", "double")

#: The fields that `codec.head` finds at fixed places.
_EVENT_HEAD: Final = ("event_id", "trace_id", "tenant")


class _Incompatible(Exception):
    """Says where and why, in words of the schemas."""


def incompatibility(theirs: Json, ours: Json) -> str | None:
    """Why a reader of `ours` can't read what a writer of `theirs` wrote; None if it can."""
    try:
        their_names, our_names = named_types(theirs), named_types(ours)
        if theirs.get("type") != "record" or _full_name(theirs) != _full_name(ours):
            return f"it is not the schema of a {short_name(ours['name'])}"
        _Pair(their_names, our_names).compare(theirs, ours, short_name(ours["name"]), 0)
        _compare_order(theirs, ours)
    except _Incompatible as problem:
        return str(problem)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError):
        return "it is not laid out as an Avro schema"
    return None


def _full_name(schema: Json) -> str:
    name, space = str(schema["name"]), schema.get("namespace")
    return f"{space}.{name}" if space and "." not in name else name


def _compare_order(theirs: Json, ours: Json) -> None:
    our_order = [field["name"] for field in ours["fields"]]
    their_order = [field["name"] for field in theirs["fields"]]
    common = [name for name in their_order if name in our_order]
    if common != [name for name in our_order if name in their_order]:
        raise _Incompatible("its fields come in another order")
    head = list(_EVENT_HEAD)
    if our_order[:3] == head and their_order[:3] != head:
        raise _Incompatible("its first fields are not event_id, trace_id and tenant")


class _Pair:
    """Two schemas side by side; `ours` is None for parts that only the writer has."""

    def __init__(self, their_names: dict[str, Json], our_names: dict[str, Json]) -> None:
        self._their_names = their_names
        self._our_names = our_names
        self._parts = 0

    def compare(self, theirs: Any, ours: Any, where: str, depth: int) -> None:
        """Raise `_Incompatible` for the first part that can't be read."""
        self._parts += 1
        if depth > DEPTH_MAX or self._parts > PARTS_MAX:
            raise _Incompatible(f"{where} is nested too deeply, or in itself")
        theirs = definition(theirs, self._their_names)
        ours = definition(ours, self._our_names) if ours is not None else None
        if isinstance(theirs, list):
            self._compare_nullable(theirs, ours, where, depth)
            return
        if isinstance(ours, list):
            # A value where we allow null as well: it became nullable.
            ours = definition(ours[1], self._our_names)
        if isinstance(theirs, dict):
            self._compare_complex(theirs, ours, where, depth)
        elif theirs not in _PRIMITIVES:
            raise _Incompatible(f"{where} has the type {theirs}, which is not read here")
        elif ours is not None and (theirs, ours) not in (*_SAME, ("int", "long")):
            raise _Incompatible(f"{where} is {_kind(theirs)}, not {_kind(ours)}")

    def _compare_nullable(self, theirs: list[Any], ours: Any, where: str, depth: int) -> None:
        if len(theirs) != 2 or theirs[0] != "null" or isinstance(theirs[1], list):
            raise _Incompatible(f"{where} is a union of other than null and one type")
        if ours is not None and not isinstance(ours, list):
            raise _Incompatible(f"{where} may be null")
        self.compare(theirs[1], None if ours is None else ours[1], where, depth + 1)

    def _compare_complex(self, theirs: Json, ours: Any, where: str, depth: int) -> None:
        kind = theirs["type"]
        if ours is not None and (not isinstance(ours, dict) or ours["type"] != kind):
            raise _Incompatible(f"{where} is {_kind(theirs)}, not {_kind(ours)}")
        if kind == "record":
            self._compare_fields(theirs, ours, where, depth)
        elif kind == "enum":
            _compare_symbols(theirs, ours, where)
        elif kind in ("array", "map"):
            inner = "items" if kind == "array" else "values"
            self.compare(theirs[inner], None if ours is None else ours[inner], where, depth + 1)
        else:
            raise _Incompatible(f"{where} has the type {kind}, which is not read here")

    def _compare_fields(self, theirs: Json, ours: Any, where: str, depth: int) -> None:
        if not theirs["fields"]:
            # Its items take no bytes, so a count of them is not bounded by the record's size.
            raise _Incompatible(f"{where} has no fields")
        our_fields = {} if ours is None else {field["name"]: field for field in ours["fields"]}
        for field in theirs["fields"]:
            name = field["name"]
            ours_too = our_fields.pop(name, None)
            our_type = None if ours_too is None else ours_too["type"]
            self.compare(field["type"], our_type, f"{where}.{name}", depth + 1)
        for name, field in our_fields.items():
            if "default" not in field:
                raise _Incompatible(f"{where}.{name} is missing and has no default")


_SAME: Final = tuple((kind, kind) for kind in _PRIMITIVES)


def _compare_symbols(theirs: Json, ours: Any, where: str) -> None:
    if not all(isinstance(symbol, str) for symbol in theirs["symbols"]):
        raise _Incompatible(f"{where} has symbols that are no names")
    if ours is None or "default" in ours:
        return
    # Without a default the numbers are what counts: one list must continue the other.
    length = min(len(theirs["symbols"]), len(ours["symbols"]))
    if theirs["symbols"][:length] != ours["symbols"][:length]:
        raise _Incompatible(f"{where} has other symbols")


def _kind(schema: Any) -> str:
    return str(schema["type"]) if isinstance(schema, dict) else str(schema)
