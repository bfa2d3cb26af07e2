"""Chunks: what a session that is open for long holds, so that no recovery reads it again. Pure.

A chunk takes all that its session holds outside of chunks, below its cut. `join` writes chunks in
the transaction of the turn that made them, and deletes them in that of the session's closing:
a session's events are in its chunks, or at or above the lows that the lane's offsets carry.
"""

from collections.abc import Iterator
from typing import Any, Final

from trailweave.stream_processors.lanes import OFFSET_BITS, OFFSET_MASK, Lane, Turn
from trailweave.stream_processors.session import Session

#: A chunk is written once its events have so many bytes: one more event of the largest size still
#: fits into a record of the topic.
CHUNK_BYTES: Final = 512 * 1024
#: A chunk of small events is no larger than this either: each needs room for its place.
CHUNK_EVENTS_MAX: Final = 10_000

#: Key on the topic, and the record (schema `session_chunk`).
Chunk = tuple[bytes, dict[str, Any]]


def promote(lane: Lane, turn: Turn, after_ms: int) -> Iterator[Chunk]:
    """Chunks of all open sessions that have held an event outside of them for `after_ms`.

    Again and again for the same session: one that gets an event now and then would else pin the
    replay to each of them.
    """
    for session in lane.overdue(turn, after_ms):
        made = list(_chunks(session, turn))
        lane.in_chunks(session, [key for key, _ in made])
        yield from made


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


def restore(lane: Lane, found: list[Chunk]) -> None:
    """Before the replay: the sessions of live chunks, with what is in them, and their cuts."""
    for key, chunk in sorted(found, key=lambda item: (item[1]["number"], item[1]["index"])):
        session: bytes = chunk["session"]
        cut: list[int] = chunk["cut"]
        for event in chunk["events"]:
            lane.fold_again(
                event["topic"], event["offset"], event["recorded_at"], session[:32], event["value"]
            )
        lane.in_chunks(lane.sessions[session], [key])
        lane.cuts[session] = list(map(max, lane.cuts.get(session, cut), cut))
