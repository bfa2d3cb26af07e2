"""What a lane's committed offsets and record headers say about where it was. Pure.

`lane_reader` reads them from Kafka; `lane_recovery` puts a lane back together from both.
"""

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from trailweave.schemas.errors import Fatal
from trailweave.stream_processors import chunks
from trailweave.stream_processors.chunks import Stored
from trailweave.stream_processors.lanes import Lane, Metadata

#: Headers of every record on the sessions topic: who wrote it, what it is, the lane's transaction
#: number, the session's key, and the positions below which its events are in it or before it.
WRITER, KIND, NUMBER, SESSION, CUT = "w", "kind", "n", "session", "cut"

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a lane stood at its last commit; `number` 0: it never committed."""

    number: int
    positions: tuple[int, ...]
    lows: tuple[int, ...]
    sessions_from: int


class OffsetsError(Fatal):
    """The committed offsets can't be those of the lane's last transaction.

    Going on from them would lose or double what open sessions held.
    """


def checkpoint(lane: int, committed: Sequence[tuple[str, int, str | None]]) -> Checkpoint | None:
    """The checkpoint in a lane's committed (topic, offset, metadata), offset < 0: none.

    None when nothing was ever committed. Raises `OffsetsError` when the offsets can't be those of
    one transaction.
    """
    if all(offset < 0 for _, offset, _ in committed):
        return None
    found = []
    for topic, offset, text in committed:
        meta = Metadata.parse(text or "") if offset >= 0 else None
        if meta is None:
            raise OffsetsError(
                f"lane {lane}: the committed offset of {topic} is missing or not written by the "
                "join; restore the group's offsets, or use a new group name on new output topics"
            )
        found.append((offset, meta))
    numbers = {meta.number for _, meta in found}
    if len(numbers) != 1:
        raise OffsetsError(
            f"lane {lane}: its committed offsets come from different transactions "
            f"({sorted(numbers)}); somebody reset one topic's offset"
        )
    return Checkpoint(
        number=numbers.pop(),
        positions=tuple(offset for offset, _ in found),
        lows=tuple(meta.low for _, meta in found),
        sessions_from=found[0][1].sessions_from,
    )


#: A broker that was killed may come back with a part of what it keeps of groups, for good: its next
#: start reads the whole.
_REMEDY: Final = (
    "if the broker that coordinates the group has just been killed, restart it once more, for it"
    " may have read only a part of the group's offsets; else restore the group's offsets"
)


def check_newest(lane: int, group: str, point: Checkpoint | None, newest: int) -> None:
    """Raise `OffsetsError` when records are of a newer transaction than the offsets.

    A newer transaction that wrote no record goes unnoticed: it took nothing for good.
    """
    if point is None and newest:
        raise OffsetsError(
            f"lane {lane}: the group {group} has no committed offsets, though there are records of"
            f" its transaction {newest}; {_REMEDY}"
        )
    if point is not None and point.number < newest:
        raise OffsetsError(
            f"lane {lane}: the committed offsets of {group} are those of transaction"
            f" {point.number}, though there are records of {newest}; {_REMEDY}"
        )


def check_cuts(lane: int, point: Checkpoint, cuts: Iterable[Sequence[int]]) -> None:
    """Raise `OffsetsError` when records took events that the offsets say are still to be read.

    Those would be taken twice. Numbers alone don't tell: that of a transaction which wrote no
    record may have been used again.
    """
    for cut in cuts:
        if any(map(operator.gt, cut, point.positions)):
            raise OffsetsError(
                f"lane {lane}: records took events up to {list(cut)}, though the committed offsets"
                f" are {list(point.positions)}; {_REMEDY}"
            )


def numbers_of(records: Iterable[Mapping[str, bytes]]) -> Iterator[int]:
    """The transactions of the lane that wrote these records; `reassess` writes in none."""
    return (int(headers[NUMBER]) for headers in records if headers.get(WRITER) == b"join")


def check_log_starts(
    lane: int, topics: Sequence[str], point: Checkpoint, starts: Sequence[int]
) -> None:
    """Raise `Fatal` when retention removed what the lane still needs."""
    for topic, low, start in zip(topics, point.lows, starts, strict=True):
        if low < start:
            raise Fatal(
                f"lane {lane}: {topic} begins at offset {start}, but events from {low} on are "
                "still needed; retention removed them before they were joined"
            )


def replay(
    lane: Lane,
    point: Checkpoint,
    headers: Iterable[Mapping[str, bytes]],
    found: Iterable[Stored],
    events: Iterable[tuple[int, int, int, bytes | None, bytes | None]],
    bytes_max: int,
) -> None:
    """Bring a new lane at `point.positions` to the state of its last commit.

    `headers` are those of the sessions records from `point.sessions_from` on; `found` are the
    chunks that were not deleted, of which memory takes about `bytes_max`; `events` are the
    arguments of `Lane.refold` for each topic's records from its low up to its position, in order.
    Raises `OffsetsError` when the point is not the last commit's.
    """
    lane.number = lane.committed_number = point.number
    lane.cuts = cuts_of(headers)
    chunks.restore(lane, found, bytes_max)
    check_cuts(lane.index, point, lane.cuts.values())
    lane.restored(point.sessions_from)
    for event in events:
        lane.refold(*event)
    lane.replayed()


def session_headers(kind: str, number: int, session: bytes, cut: tuple[int, ...]) -> Headers:
    """Headers of a record that the join writes."""
    return [
        (WRITER, b"join"),
        (KIND, kind.encode()),
        (NUMBER, str(number).encode()),
        (SESSION, session),
        (CUT, _cut_text(cut)),
    ]


@lru_cache(maxsize=256)
def _cut_text(cut: tuple[int, ...]) -> bytes:
    """One for all records of a turn."""
    return ",".join(map(str, cut)).encode()


def reassess_headers(number: int, session: bytes) -> Headers:
    """Headers of a record that `reassess` writes, of the session up to a part of this number.

    Without a cut: it takes no events.
    """
    return [
        (WRITER, b"reassess"),
        (KIND, b"chain"),
        (NUMBER, str(number).encode()),
        (SESSION, session),
    ]


def chunk_headers(number: int) -> Headers:
    """Headers of a chunk or its deletion: which transaction of the lane it belongs to."""
    return [(WRITER, b"join"), (NUMBER, str(number).encode())]


def cuts_of(records: Iterable[Mapping[str, bytes]]) -> dict[bytes, list[int]]:
    """Per session, the largest cut of the records that took its events for good.

    Open revisions and what `reassess` writes take nothing: counting them as a closing would leave
    out events that no record has.
    """
    found: dict[bytes, list[int]] = {}
    for headers in records:
        if headers.get(WRITER) != b"join" or headers.get(KIND) == b"open":
            continue
        cut = [int(part) for part in headers[CUT].split(b",")]
        known = found.get(headers[SESSION])
        found[headers[SESSION]] = cut if known is None else list(map(max, known, cut))
    return found
