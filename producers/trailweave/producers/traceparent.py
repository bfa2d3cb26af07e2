"""W3C Trace Context's `traceparent`: read strictly, written as version 00. Pure.

The Recorder uses it to continue a trace that came in, and to hand one on.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from trailweave.schemas.ids import ZERO_TRACE_ID

HEADER: Final = "traceparent"
SAMPLED: Final = "01"

_ZERO_SPAN_ID: Final = "0" * 16
_LENGTH: Final = 55
_FIELDS: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class TraceParent:
    """Where in which trace a step belongs."""

    trace_id: str
    span_id: str
    flags: str = SAMPLED

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


def read_traceparent(header: str) -> TraceParent | None:
    """The header's value, or None when the specification says to start a new trace instead.

    Of a version after 00, the first four fields are read and the rest is passed over.
    """
    text = header.strip(" \t")
    found = _FIELDS.match(text)
    if found is None:
        return None
    version, trace_id, span_id, flags = found.groups()
    if version == "ff" or trace_id == ZERO_TRACE_ID or span_id == _ZERO_SPAN_ID:
        return None
    if len(text) > _LENGTH and (version == "00" or text[_LENGTH] != "-"):
        return None
    return TraceParent(trace_id, span_id, flags)


def traceparent_of(headers: Iterable[tuple[str, str]]) -> TraceParent | None:
    """The trace that a request's headers continue; None for none, a bad one, or more than one."""
    values = [value for name, value in headers if name.lower() == HEADER]
    return read_traceparent(values[0]) if len(values) == 1 else None
