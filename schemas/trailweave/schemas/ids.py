"""Identifiers: new ones, and ones that repeat when work is repeated."""

import os
import time
import uuid
from typing import Final

#: Namespace of every UUIDv5 that Trailweave makes; never change it, ids would no longer repeat.
NAMESPACE: Final = uuid.UUID("6f1d2a0e-4c1b-5d0e-9a57-7c0f3b9f2e11")

ZERO_TRACE_ID: Final = "0" * 32


def new_event_id() -> str:
    """A UUIDv7 (RFC 9562): milliseconds first, then random bits."""
    value = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    value[6] = value[6] & 0x0F | 0x70
    value[8] = value[8] & 0x3F | 0x80
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_trace_id() -> str:
    """A W3C trace-id: 32 lower-case hex digits, never all zero."""
    value = os.urandom(16)
    return value.hex() if any(value) else "0" * 31 + "1"


def new_span_id() -> str:
    """A W3C parent-id: 16 lower-case hex digits, never all zero."""
    value = os.urandom(8)
    return value.hex() if any(value) else "0" * 15 + "1"


def derived_id(*parts: str) -> str:
    """The UUIDv5 of the parts: the same parts give the same id, anywhere and at any time.

    Each part is preceded by its length, so that no two lists of parts run together.
    """
    return str(uuid.uuid5(NAMESPACE, "".join(f"{len(part)}:{part}" for part in parts)))


def derived_trace_id(*parts: str) -> str:
    """A trace id made the same way, for records that come without one."""
    return uuid.UUID(derived_id(*parts)).hex
