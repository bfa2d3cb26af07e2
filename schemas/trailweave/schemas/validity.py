"""Which records of an event topic are events: the one answer that join and load share.

Load gives a record a row exactly if it is valid; join dead-letters exactly the others. Because both
ask this pure function, every offset ends in one of the two places and none in both.
"""

from typing import Final

from trailweave.schemas import events
from trailweave.schemas.codec import TENANT_BYTES_MAX, Decoder, Head, head
from trailweave.schemas.errors import Rejected

_HEX_DIGITS: Final = b"0123456789abcdef"
_TOPIC_OF: Final = {name: kind.topic for name, kind in events.event_types().items()}


def validity(
    topic: str, key: bytes | None, value: bytes | None, decoder: Decoder
) -> tuple[str, Head]:
    """The event's type and identity; `decoder` is a `codec.event_checker`.

    Raises `Rejected`: `no_value`, `wrong_key`, `wrong_topic`, `not_an_event`, and the codes of
    `Decoder.decode` (`not_framed`, `unknown_schema`, `foreign_schema`, `truncated`,
    `trailing_bytes`, `not_avro`, `kind_mismatch`). Passes on `Retryable` from the schema source.
    """
    name = valid_type(topic, key, value, decoder)
    assert value is not None
    return name, head(value)


def valid_type(topic: str, key: bytes | None, value: bytes | None, decoder: Decoder) -> str:
    """As `validity`, for who wants the type only: every record that is loaded passes here."""
    if value is None:
        raise Rejected("no_value", "the record has no value")
    name, _ = decoder.decode(value)
    if _TOPIC_OF.get(name) != topic:
        raise Rejected("wrong_topic", f"a record of type {name} does not belong in this topic")
    start = 10 if value[0] else 5  # behind either framing
    if not _has_head(value, start):
        head(value)  # says why
    if key is None or key != value[start + 38 : start + 70]:
        raise Rejected("wrong_key", "the Kafka key is not the event's trace_id")
    if key.translate(None, _HEX_DIGITS):
        raise Rejected("not_an_event", "trace_id is not 32 lower-case hex digits")
    return name


def _has_head(value: bytes, start: int) -> bool:
    """What `head` looks at, of bytes that are a record and so are UTF-8."""
    return (
        len(value) > start + 70
        and value[start] == 72
        and value[start + 37] == 64
        and value[start + 70] <= 2 * TENANT_BYTES_MAX
        and value[start + 1 : start + 70].isascii()
    )
