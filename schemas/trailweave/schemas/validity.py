"""Which records of an event topic are events: the one answer that join and load share.

Load gives a record a row exactly if it is valid; join dead-letters exactly the others. Because both
ask this pure function, every offset ends in one of the two places and none in both.
"""

import re
from typing import Final

from trailweave.schemas import events
from trailweave.schemas.codec import Decoder, Head, head
from trailweave.schemas.errors import Rejected

_TRACE_ID: Final = re.compile(rb"[0-9a-f]{32}").fullmatch
_TOPIC_OF: Final = {name: kind.topic for name, kind in events.event_types().items()}


def validity(
    topic: str, key: bytes | None, value: bytes | None, decoder: Decoder
) -> tuple[str, Head]:
    """The event's type and identity; `decoder` is a `codec.event_checker`.

    Raises `Rejected`: `no_value`, `wrong_key`, `wrong_topic`, `not_an_event`, and the codes of
    `Decoder.decode` (`not_framed`, `unknown_schema`, `foreign_schema`, `truncated`,
    `trailing_bytes`, `not_avro`, `kind_mismatch`). Passes on `Retryable` from the schema source.
    """
    if value is None:
        raise Rejected("no_value", "the record has no value")
    name, _ = decoder.decode(value)
    if _TOPIC_OF.get(name) != topic:
        raise Rejected("wrong_topic", f"a record of type {name} does not belong in this topic")
    found = head(value)
    if key is None or key != found.trace_id.encode():
        raise Rejected("wrong_key", "the Kafka key is not the event's trace_id")
    if _TRACE_ID(key) is None:
        raise Rejected("not_an_event", "trace_id is not 32 lower-case hex digits")
    return name, found
