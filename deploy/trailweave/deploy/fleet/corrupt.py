"""Records that are no events: each is one event of a trace of its own, spoiled in one way.

None shares a trace with a session of the fleet, so none can change a verdict. Each must end in the
dead letters, under the code by which its function goes.
"""

import random
from collections.abc import Callable
from typing import Final

from trailweave.schemas.codec import SINGLE_OBJECT

#: (key, value) of a good event -> (key, value) of a record that is none.
Spoiler = Callable[[bytes, bytes, random.Random], tuple[bytes, bytes]]


def truncated(key: bytes, value: bytes, pick: random.Random) -> tuple[bytes, bytes]:
    """The connection broke: the rest is missing."""
    return key, value[: len(value) - pick.randint(1, len(value) // 3)]


def unknown_schema(key: bytes, value: bytes, pick: random.Random) -> tuple[bytes, bytes]:
    """The writer's schema was never published."""
    start = len(SINGLE_OBJECT)
    return key, value[:start] + pick.randbytes(8) + value[start + 8 :]


def wrong_key(key: bytes, value: bytes, _: random.Random) -> tuple[bytes, bytes]:
    """The event lies under another trace's key."""
    return key[::-1], value


def trailing_bytes(key: bytes, value: bytes, pick: random.Random) -> tuple[bytes, bytes]:
    """A second, forged event follows the first."""
    return key, value + value[pick.randint(0, 12) :]


#: Every way to spoil a record, by the dead letter's code.
CORRUPTIONS: Final[dict[str, Spoiler]] = {
    spoil.__name__: spoil for spoil in (truncated, unknown_schema, wrong_key, trailing_bytes)
}
