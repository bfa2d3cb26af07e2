"""Trace and span ids as outside records write them: hex of any case, or base64. Pure."""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from trailweave.producers.traceparent import TraceParent, traceparent_of

_HEX = {16: re.compile(r"[0-9a-fA-F]{32}"), 8: re.compile(r"[0-9a-fA-F]{16}")}


def hex_id(value: object, size: int) -> str | None:
    """The id of `size` bytes in lower-case hex; None for none, all zero, or anything else."""
    if not isinstance(value, str):
        return None
    found = value.lower() if _HEX[size].fullmatch(value) else _from_base64(value, size)
    return found if found.strip("0") else None


def _from_base64(value: str, size: int) -> str:
    """OTLP's own JSON mapping says hex, but protobuf's says base64, and some exporters follow it.

    The lengths tell them apart: 24 and 12 characters against 32 and 16.
    """
    if len(value) not in ((24, 22) if size == 16 else (12, 11)):
        return ""
    try:
        found = base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return ""
    return found.hex() if len(found) == size else ""


def header_traceparent(headers: Mapping[str, Any]) -> TraceParent | None:
    """The trace that logged HTTP headers continue: names of any case, values a text or a list."""
    pairs: list[tuple[str, str]] = []
    for name, value in headers.items():
        values = value if isinstance(value, list) else [value]
        pairs += [(name, each) for each in values if isinstance(each, str)]
    return traceparent_of(pairs)
