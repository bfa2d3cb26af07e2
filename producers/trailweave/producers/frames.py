"""The bytes of a spool segment: a magic, then frames of length, CRC-32 and one event. Pure.

    segment = "TWSPOOL1" frame*
    frame   = length of the payload (4 bytes) | CRC-32 of the payload (4) | payload
    payload = length (1) topic | length (2) key | length (2) note | value

All numbers are big endian. A process killed in the middle of a write leaves a frame cut short at
the end; a power cut may leave zeros or any bytes there. Both fail the CRC or the length.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from trailweave.schemas.codec import EVENT_BYTES_MAX

MAGIC: Final = b"TWSPOOL1"
HEAD_BYTES: Final = 8
#: No payload is longer; so a damaged length is seen before anything is allocated for it.
PAYLOAD_BYTES_MAX: Final = EVENT_BYTES_MAX + 66_000

_HEAD: Final = struct.Struct(">II")
_SHORT: Final = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class Stored:
    """One event at rest. `note` says why Kafka refused it, in the failed file; else empty."""

    topic: str
    key: bytes
    value: bytes
    note: str = ""


def write_frame(stored: Stored) -> bytes:
    """The frame of one event."""
    topic, note = stored.topic.encode(), stored.note.encode()[:1000]
    payload = b"".join(
        (
            len(topic).to_bytes(1, "big"),
            topic,
            _SHORT.pack(len(stored.key)),
            stored.key,
            _SHORT.pack(len(note)),
            note,
            stored.value,
        )
    )
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def read_frame(buf: bytes, start: int) -> tuple[Stored | None, int] | None:
    """The event of the frame at `start` and where the next one begins.

    The event is None when the payload's CRC is wrong but its length is plausible: one damaged
    frame among whole ones. None in all when the bytes end inside the frame or are no frame.
    """
    if len(buf) - start < HEAD_BYTES:
        return None
    length, crc = _HEAD.unpack_from(buf, start)
    end = start + HEAD_BYTES + length
    if not 5 <= length <= PAYLOAD_BYTES_MAX or end > len(buf):
        return None
    payload = buf[start + HEAD_BYTES : end]
    return (_read_payload(payload) if zlib.crc32(payload) == crc else None), end


def _read_payload(payload: bytes) -> Stored:
    at = 1 + payload[0]
    topic = payload[1:at].decode()
    (length,) = _SHORT.unpack_from(payload, at)
    key = payload[at + 2 : at + 2 + length]
    at += 2 + length
    (length,) = _SHORT.unpack_from(payload, at)
    note = payload[at + 2 : at + 2 + length].decode(errors="replace")
    return Stored(topic, key, payload[at + 2 + length :], note)
