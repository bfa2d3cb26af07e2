"""One example of every type, as JSON that a person can read.

JSON has neither bytes nor times: bytes stand as {"hex": "..."}, times as RFC 3339 text, and
`example` turns both into what the codec takes. Fields at their default are left out.
"""

import json
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any, Final

from trailweave.schemas import events
from trailweave.schemas.compiled import Json, definition, named_types

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS: Final = {
    "timestamp-micros": timedelta(microseconds=1),
    "timestamp-millis": timedelta(milliseconds=1),
}


def example(name: str) -> dict[str, Any]:
    """The example record of a type, ready for `codec.Encoder.encode`."""
    text = resources.files(__package__).joinpath("examples", f"{name}.json").read_text("utf-8")
    kind = {**events.event_types(), **events.record_types()}[name]
    return dict(from_json(json.loads(text), kind.schema))


def from_json(value: Any, schema: Json) -> Any:
    """A JSON value as the codec takes it; raises ValueError for hex or a time that is none."""
    return _convert(value, schema, named_types(schema))


def _convert(value: Any, schema: Any, names: dict[str, Json]) -> Any:
    if isinstance(schema, dict) and schema.get("logicalType") in _UNITS:
        if isinstance(value, str):
            return (datetime.fromisoformat(value) - _EPOCH) // _UNITS[schema["logicalType"]]
        return value
    schema = definition(schema, names)
    if value is None:
        return None
    if isinstance(schema, list):
        return _convert(value, schema[1], names)
    if schema == "bytes":
        return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
    if isinstance(schema, dict) and schema["type"] == "record":
        types = {field["name"]: field["type"] for field in schema["fields"]}
        return {key: _convert(part, types[key], names) for key, part in value.items()}
    if isinstance(schema, dict) and schema["type"] == "array":
        return [_convert(part, schema["items"], names) for part in value]
    if isinstance(schema, dict) and schema["type"] == "map":
        return {key: _convert(part, schema["values"], names) for key, part in value.items()}
    return value
