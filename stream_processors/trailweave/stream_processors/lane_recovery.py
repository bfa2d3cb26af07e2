"""Lanes as their last commits left them: `recovery` with what Kafka holds. Edge.

Per lane: the committed offsets; then, up to the ends that the broker names after that, the cuts of
the records since, the live chunks, and the input from the lows to the positions. Nothing is written
here. A broker that is coming back may answer from a part of its offsets only: none, or those of an
older transaction. So they are held against the records and against what this worker knows, and are
asked for again for a while before a person has to look.
"""

import itertools
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from confluent_kafka import Consumer
from trailweave.schemas import events
from trailweave.schemas.codec import Decoder
from trailweave.schemas.errors import Retryable
from trailweave.stream_processors import chunks, lane_reader, recovery
from trailweave.stream_processors.lanes import Lane
from trailweave.stream_processors.session import ClosingTimes

#: Offsets that can't be right are asked for again for so long: above the time in which a broker
#: that has begun to answer reads what it holds of a group.
PATIENCE_S: Final = 20.0


class LaneRecovery:
    """Recovers lanes of one worker. Remembers the newest transaction that it knows of each."""

    def __init__(
        self, kafka: Mapping[str, Any], group: str, times: ClosingTimes, decoder: Decoder
    ) -> None:
        """`decoder` is the lanes' own."""
        self._kafka, self._group = dict(kafka), group
        self._times, self._decoder = times, decoder
        self._topics = events.event_topics()
        self._topic_index = {topic: index for index, topic in enumerate(self._topics)}
        #: Per lane, the number of the newest transaction known to be committed.
        self._numbers: dict[int, int] = {}
        self._doubtful_since: float | None = None

    def committed(self, lane: int, number: int) -> None:
        """The worker has committed a transaction of the lane."""
        self._numbers[lane] = number

    def committed_since(self, consumer: Consumer, lane: Lane) -> bool:
        """Whether somebody else has committed for the lane."""
        stored = lane_reader.committed(consumer, self._topics, lane.index)
        point = recovery.checkpoint(lane.index, stored)
        return point is not None and point.number > lane.committed_number

    def lanes(self, consumer: Consumer, assigned: Collection[int], room: int) -> dict[int, Lane]:
        """The lanes; sessions may take `room` bytes of memory in each, about.

        Raises `Retryable` (call again), `Fatal` when going on would lose or double something.
        """
        reader = lane_reader.reading_consumer(self._kafka)
        try:
            found = {index: self._lane_of(consumer, reader, index, room) for index in assigned}
        except recovery.OffsetsError as error:
            if self._doubtful_since is None:
                self._doubtful_since = time.monotonic()
            if time.monotonic() - self._doubtful_since < PATIENCE_S:
                raise Retryable(str(error)) from error
            raise
        finally:
            reader.close()
        self._doubtful_since = None
        return found

    def _lane_of(self, consumer: Consumer, reader: Consumer, index: int, room: int) -> Lane:
        point = recovery.checkpoint(index, lane_reader.committed(consumer, self._topics, index))
        bounds = [lane_reader.watermarks(reader, topic, index) for topic in self._topics]
        _, sessions_end = lane_reader.watermarks(reader, events.SESSIONS_TOPIC, index)
        live = lane_reader.read_keys(reader, events.OPEN_SESSIONS_TOPIC, index)
        known = [self._numbers.get(index, 0), *map(chunks.number_of, live)]
        headers = lane_reader.read_headers(
            reader, events.SESSIONS_TOPIC, index, point.sessions_from if point else 0, sessions_end
        )
        newest = max(itertools.chain(known, recovery.numbers_of(headers)))
        recovery.check_newest(index, self._group, point, newest)
        if point is None:
            return self._new(index, [low for low, _ in bounds], sessions_end)
        self._numbers[index] = point.number
        recovery.check_log_starts(index, self._topics, point, [low for low, _ in bounds])
        lane = self._new(index, list(point.positions), sessions_end)
        replay = self._input(reader, index, point)
        recovery.replay(lane, point, headers, self._chunks(reader, index, live), replay, room)
        return lane

    def _new(self, index: int, positions: list[int], sessions_end: int) -> Lane:
        return Lane(index, positions, self._times, self._decoder, sessions_end=sessions_end)

    def _input(
        self, reader: Consumer, index: int, point: recovery.Checkpoint
    ) -> Iterator[tuple[int, int, int, bytes | None, bytes | None]]:
        ranges = {
            (topic, index): (low, position)
            for topic, low, position in zip(self._topics, point.lows, point.positions, strict=True)
        }
        for message in lane_reader.read_range(reader, ranges):
            number = self._topic_index[message.topic()]
            place = (number, message.offset(), message.timestamp()[1])
            yield *place, message.key(), message.value()

    def _chunks(
        self, reader: Consumer, index: int, live: dict[bytes, int]
    ) -> Iterator[chunks.Stored]:
        found = lane_reader.read_at(reader, events.OPEN_SESSIONS_TOPIC, index, live.values())
        for message in found:
            yield message.key() or b"", message.offset(), chunks.read(message.value() or b"")
