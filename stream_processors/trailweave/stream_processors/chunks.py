"""Chunks: what a session that is open for long holds, so that no recovery reads it again. Pure.

A chunk takes all that its session holds outside of chunks, below its cut. `join` writes chunks in
the transaction of the turn that made them, and deletes them in that of the session's closing:
a session's events are in its chunks, or at or above the lows that the lane's offsets carry. Once
they are committed, memory may let go of what is in them until the session closes.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Final

from trailweave.schemas.codec import Decoder
from trailweave.stream_processors.lanes import OFFSET_BITS, OFFSET_MASK, Lane, Turn
from trailweave.stream_processors.session import Session

#: A chunk is written once its events have so many bytes: one more event of the largest size still
#: fits into a record of the topic.
CHUNK_BYTES: Final = 512 * 1024
#: A chunk of small events is no larger than this either: each needs room for its place.
CHUNK_EVENTS_MAX: Final = 10_000
#: About what a turn takes into chunks because it is old, and again because memory is full. The
#: broker ends a transaction that lasts too long, and what then follows would be no smaller.
TURN_BYTES_MAX: Final = 32 * 1024 * 1024

#: Key on the topic, and the record (schema `session_chunk`).
Chunk = tuple[bytes, dict[str, Any]]
#: The same with the offset at which it lies.
Stored = tuple[bytes, int, dict[str, Any]]


def promote(
    lane: Lane, turn: Turn, after_ms: int, bytes_max: int = TURN_BYTES_MAX
) -> Iterator[tuple[Session, Chunk]]:
    """Chunks of the open sessions that have held an event outside of them for `after_ms`.

    Again and again for the same session: one that gets an event now and then would else pin the
    replay to each of them. Those above `bytes_max` are left for the next turn.
    """
    for session in lane.overdue(turn, after_ms):
        bytes_max -= _outside(session)
        for chunk in promoted(lane, session, turn):
            yield session, chunk
        if bytes_max <= 0:
            return


def largest(
    turns: list[tuple[Lane, Turn]], size: int, bytes_max: int = TURN_BYTES_MAX
) -> Iterator[tuple[Lane, Turn, Session]]:
    """The open sessions that hold most in memory, until they hold `size` bytes together.

    Or until `bytes_max` of that is not in chunks yet. A session whose chunks are on their way can't
    leave before they are committed.
    """
    if size <= 0:
        return  # without a look at every session, which each turn would cost
    every = [(lane, turn, open_) for lane, turn in turns for open_ in lane.sessions.values()]
    every.sort(key=lambda item: item[2].size, reverse=True)
    for lane, turn, session in every:
        if size <= 0 or bytes_max <= 0:
            return
        if -1 not in session.chunks.values():
            size -= session.size
            bytes_max -= _outside(session)
            yield lane, turn, session


def _outside(session: Session) -> int:
    return sum(map(len, session.values[session.promoted :]))


def promoted(lane: Lane, session: Session, turn: Turn) -> list[Chunk]:
    """Chunks of what one session holds outside of them."""
    made = list(_chunks(session, turn))
    lane.in_chunks(session, {key: -1 for key, _ in made})
    return made


def _chunks(session: Session, turn: Turn) -> Iterator[Chunk]:
    events: list[dict[str, Any]] = []
    size = index = 0
    for at in range(session.promoted, len(session.values)):
        place, value = session.places[at], session.values[at]
        events.append(
            {
                "topic": place >> OFFSET_BITS,
                "offset": place & OFFSET_MASK,
                "recorded_at": session.times[at],
                "value": value,
            }
        )
        size += len(value)
        if size >= CHUNK_BYTES or len(events) == CHUNK_EVENTS_MAX:
            yield _chunk(session, turn, index, events)
            events, size, index = [], 0, index + 1
    if events:
        yield _chunk(session, turn, index, events)


def _chunk(session: Session, turn: Turn, index: int, events: list[dict[str, Any]]) -> Chunk:
    record = {
        "session": session.key,
        "number": turn.number,
        "index": index,
        "cut": list(turn.positions),
        "events": events,
    }
    return b"%b|%d|%d" % (session.key, turn.number, index), record


def restore(lane: Lane, found: Iterable[Stored], bytes_max: int) -> None:
    """Before the replay: the sessions of live chunks, and their cuts; `found` in the log's order.

    Above `bytes_max` of the lane's, what a session has in chunks is left there.
    """
    for key, offset, chunk in found:
        session: bytes = chunk["session"]
        cut: list[int] = chunk["cut"]
        for place, recorded_ms, value in events_of(chunk):
            topic, at = place >> OFFSET_BITS, place & OFFSET_MASK
            lane.fold_again(topic, at, recorded_ms, session[:32], value)
        lane.in_chunks(lane.sessions[session], {key: offset})
        lane.cuts[session] = list(map(max, lane.cuts.get(session, cut), cut))
        if lane.held_bytes > bytes_max:
            lane.leave(lane.sessions[session])


def number_of(key: bytes) -> int:
    """The transaction of the lane that wrote a chunk with this key."""
    return int(key.rsplit(b"|", 2)[1])


def read(value: bytes) -> dict[str, Any]:
    """A chunk as it is stored; raises `Rejected`."""
    return _decoder().decode(value)[1]


@cache
def _decoder() -> Decoder:
    return Decoder()


def events_of(chunk: dict[str, Any]) -> Iterator[tuple[int, int, bytes]]:
    """Place, broker time and bytes of each event of a chunk."""
    for event in chunk["events"]:
        place = event["topic"] << OFFSET_BITS | event["offset"]
        yield place, event["recorded_at"], event["value"]
