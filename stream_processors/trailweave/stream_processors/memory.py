"""What open sessions hold in memory, kept within a limit without losing any of it. Edge.

Above the limit, in this order: partitions that are ahead of their lane's clock wait, for only those
behind move it on and let sessions close; and the largest sessions leave memory to their chunks
(`chunks`), from which they come back when they close. Nothing is ever evicted: what is not in a
committed chunk stays.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from confluent_kafka import Consumer, TopicPartition
from trailweave.schemas import events
from trailweave.stream_processors import chunks, lane_reader
from trailweave.stream_processors.closers import Due
from trailweave.stream_processors.lanes import Lane, Turn
from trailweave.stream_processors.session import Session

#: About what is closed in one turn, in bytes of events. When a whole fleet falls silent all its
#: sessions are due at once; the broker ends a transaction that lasts too long.
TURN_BYTES_MAX: Final = 128 * 1024 * 1024


class Memory:
    """The limit of one worker, in bytes of events; what Python needs beside them is not counted."""

    def __init__(self, kafka: Mapping[str, Any], bytes_max: int) -> None:
        self._kafka = dict(kafka)
        self._bytes_max = bytes_max
        self._topics = events.event_topics()
        self._reader: Consumer | None = None
        #: Partitions that wait.
        self._paused: set[tuple[str, int]] = set()
        #: Whether sessions are due that the last turn had no room for.
        self.behind = False

    def excess(self, lanes: Collection[Lane]) -> int:
        """Bytes that sessions should give back: to well below the limit, or none."""
        held = _held(lanes)
        return held - self._bytes_max * 7 // 10 if held > self._bytes_max else 0

    def share(self, lanes: int) -> int:
        """What each of so many lanes may hold."""
        return self._bytes_max // max(1, lanes)

    # --- partitions that wait ---

    @property
    def waits(self) -> bool:
        """Whether any partition waits."""
        return bool(self._paused)

    def assigned(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        """The consumer has a new assignment: nothing of it waits."""
        consumer.resume(parts)
        self._paused = set()
        self.behind = False

    def balance(self, consumer: Consumer, lanes: Collection[Lane]) -> None:
        """Above the limit read on only where it moves a lane's clock; well below it everywhere.

        In between nobody new waits. But whoever is not ahead any more goes on: the clock may by now
        wait for nobody else, the others being at their ends, and then nothing else would move it.
        """
        held = _held(lanes)
        if held <= self._bytes_max and not self._paused:
            return
        wait: set[tuple[str, int]] = set()
        if held > self._bytes_max:
            wait = self._ahead(lanes)
        elif held * 10 > self._bytes_max * 9:
            wait = self._paused & self._ahead(lanes)
        consumer.pause([TopicPartition(*part) for part in sorted(wait - self._paused)])
        consumer.resume([TopicPartition(*part) for part in sorted(self._paused - wait)])
        self._paused = wait

    def _ahead(self, lanes: Collection[Lane]) -> set[tuple[str, int]]:
        return {
            (topic, lane.index)
            for lane in lanes
            for topic, newest_ms in zip(self._topics, lane.newest_ms, strict=True)
            if newest_ms > lane.clock_ms()
        }

    # --- sessions that are away ---

    def take_due(self, turns: list[tuple[Lane, Turn]]) -> list[Due]:
        """Close what is due: no more at a time than one transaction should carry.

        What is away comes back for it, so much at a time as memory may hold.

        Raises `Retryable` when Kafka is away, `Fatal` when a chunk is not there.
        """
        due: list[Due] = []
        back: list[tuple[Lane, Session]] = []
        later: list[tuple[Lane, Session]] = []
        room, carried = self._bytes_max // 2, 0
        for lane, turn in turns:
            for session, reason in lane.due():
                lane.close(session)
                if carried > TURN_BYTES_MAX or (session.away_bytes > room and back):
                    later.append((lane, session))
                    continue
                carried += session.size + session.away_bytes
                if session.away:
                    room -= session.away_bytes
                    back.append((lane, session))
                due.append(Due(lane, turn, session, reason))
        for lane, session in later:
            lane.reopen(session, due=True)
        self.behind = bool(later)
        self._bring_back(back)
        return due

    def _bring_back(self, sessions: list[tuple[Lane, Session]]) -> None:
        by_lane: dict[int, list[Session]] = {}
        for lane, session in sessions:
            by_lane.setdefault(lane.index, []).append(session)
        for index, away in by_lane.items():
            # What is in a chunk whose offset is not known (it is on its way) has not left memory.
            # To Kafka that -1 would be a name of the log's end.
            found = self._read(
                index, [at for session in away for at in session.chunks.values() if at >= 0]
            )
            for session in away:
                session.come_back(_events_away(session, found))

    def _read(self, lane: int, offsets: list[int]) -> dict[int, bytes]:
        if self._reader is None:
            self._reader = lane_reader.reading_consumer(self._kafka)
        topic = events.OPEN_SESSIONS_TOPIC
        found = lane_reader.read_at(self._reader, topic, lane, offsets)
        return {message.offset(): message.value() or b"" for message in found}

    def close(self) -> None:
        """Hand back the client."""
        if self._reader is not None:
            self._reader.close()


def _held(lanes: Collection[Lane]) -> int:
    return sum(lane.held_bytes for lane in lanes)


def _events_away(session: Session, found: Mapping[int, bytes]) -> Iterator[tuple[int, int, bytes]]:
    stored = (found[at] for at in session.chunks.values() if at in found)
    every = (event for value in stored for event in chunks.events_of(chunks.read(value)))
    # What went to chunks since it left is still in memory.
    return itertools.islice(every, session.away)
