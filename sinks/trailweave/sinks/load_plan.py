"""The load worker's decisions: what an offset's metadata says, what to insert, under which token.

Pure: `load` asks, and does what comes out. The protocol and why each step is there: a range is
announced by committing its start with its end as metadata (the intent), inserted under tokens that
only the range determines, and finished by committing its end. Whoever finds an open intent redoes
exactly this range, so that a repeated insert is recognised by its token or by the rows' places.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from trailweave.schemas.errors import Fatal

#: (offset, ordinal) of a row within its partition.
Place = tuple[int, int]

_VERSION: Final = "v1"


@dataclass(frozen=True, slots=True)
class Range:
    """Records from offset `start` to the data record at `end`, both included."""

    start: int
    end: int
    #: Changed only for an intended reload: other tokens, so that ClickHouse takes the rows again.
    epoch: int

    def metadata(self) -> str:
        """What the intent's commit carries."""
        return f"{_VERSION};{self.end};{self.epoch}"


@dataclass(frozen=True, slots=True)
class Target:
    """Where ranges of one partition go; all of it is part of every token."""

    cluster_id: str
    #: A recreated topic has the same offsets and another id.
    topic_id: str
    group: str
    partition: int


def open_intent(start: int, metadata: str | None) -> Range | None:
    """The range that a committed offset announces; None when none is open.

    Raises `Fatal` for metadata of another kind: somebody else commits for this group.
    """
    if not metadata:
        return None
    parts = metadata.split(";")
    try:
        version, end, epoch = parts[0], int(parts[1]), int(parts[2])
    except (IndexError, ValueError):
        version, end, epoch = "", -1, -1
    if version != _VERSION or len(parts) != 3 or end < start:
        raise Fatal(
            f"couldn't read the metadata {metadata!r} of the committed offset {start}:"
            " does another program commit for this group?"
        )
    return Range(start, end, epoch)


def token(target: Target, rng: Range, table: str, part: str) -> str:
    """The name of one insert: the same for the same rows, and for no others."""
    fields = (
        target.cluster_id, target.topic_id, target.group, rng.epoch,
        target.partition, rng.start, rng.end, table, part,
    )  # fmt: skip
    return "|".join(map(str, fields))


@dataclass(frozen=True, slots=True)
class Step:
    """Insert these places, under this token; nothing is left to do when there are none."""

    missing: frozenset[Place]
    token: str
    #: What the tokens of parts of it begin with.
    own: str


def decide(
    own: str, expected: Collection[Place], present: Collection[Place], swallowed: int
) -> Step:
    """What an insert still has to do, after looking which of its rows are there.

    `own` is its token; `swallowed` counts the inserts of this attempt that ClickHouse acknowledged
    and that left rows missing all the same: their token had been used, so it needs another.
    """
    missing = frozenset(expected).difference(present)
    if swallowed:
        own = f"{own}|v|{swallowed}"
    whole = swallowed or len(missing) == len(expected)
    return Step(missing, own if whole else part_token(own, missing), own)


def part_token(own: str, places: Collection[Place]) -> str:
    """The name of an insert of some of the rows that `own` names."""
    named = ",".join(f"{offset}.{ordinal}" for offset, ordinal in sorted(places))
    return f"{own}|r|{hashlib.sha256(named.encode()).hexdigest()}"


def halves(places: Sequence[Place]) -> tuple[Sequence[Place], Sequence[Place]]:
    """The two parts of rows of which ClickHouse refuses one: the same whoever asks."""
    middle = len(places) // 2
    return places[:middle], places[middle:]


def resume(
    committed: int | None, metadata: str | None, log_start: int, log_end: int, topic: str
) -> tuple[int, Range | None]:
    """Where to go on, and the range that is open there; `committed` is None for a new group.

    Raises `Fatal` when what has to be read is not in the log.
    """
    offset = first_offset(committed, log_start, log_end, topic)
    intent = None if committed is None else open_intent(offset, metadata)
    if intent is not None and intent.end >= log_end:
        raise Fatal(
            f"couldn't redo the range {intent.start} to {intent.end} of {topic}: Kafka ends at"
            f" {log_end}; were records lost with a broker?"
        )
    return offset, intent


def first_offset(committed: int | None, log_start: int, log_end: int, topic: str) -> int:
    """Where to read from; `committed` is None for a group that never committed here.

    Raises `Fatal` when records between were deleted unread, or the offset is beyond the end.
    """
    if committed is None:
        return log_start
    if committed < log_start:
        raise Fatal(
            f"couldn't go on at offset {committed} of {topic}: retention has deleted what lies"
            f" before {log_start}; set the group's offset to accept the loss"
        )
    if committed > log_end:
        raise Fatal(
            f"couldn't go on at offset {committed} of {topic}: it ends at {log_end}; was the"
            " topic recreated? Set the group's offset to go on"
        )
    return committed


def range_end(offsets: Collection[int], intent: Range | None) -> int | None:
    """The end of the next range over these offsets; None while an intent's end is not yet read.

    Raises `Fatal` when the intent's last record is gone: a shorter range would be another one.
    """
    last = max(offsets, default=-1)
    if intent is None:
        return last
    if last < intent.end:
        return None
    if intent.end not in offsets:
        raise Fatal(
            f"couldn't redo the range {intent.start} to {intent.end}: its last record is no"
            " longer in Kafka"
        )
    return intent.end
