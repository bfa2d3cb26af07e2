"""Asking the broker, now and then, whether a lane has read everything: what moves its clock. Edge.

A partition with nothing left counts as the moment at which the question that the broker answered
was *asked*: an event appended later carries a later broker time. A stalled broker answers nothing,
so the clock stands still and no session closes. The worker's wall clock is taken for the broker's:
keep them in step (NTP); a worker that is ahead by x closes sessions x early, and what then comes
late becomes a fragment, never lost.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from trailweave.stream_processors.lanes import Lane

log = logging.getLogger(__name__)

#: How often the end is asked for: part of the delay with which a quiet lane closes sessions.
INTERVAL_S: Final = 0.5
#: An answer that takes longer is given up.
TIMEOUT_S: Final = 10.0


def _latest() -> OffsetSpec:
    spec: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    return spec


class Confirmer:
    """One question at a time, for all lanes in one request; never blocks."""

    def __init__(self, kafka: Mapping[str, Any], topics: Sequence[str]) -> None:
        # What it would say, the worker's consumer says.
        self._kafka = {"log_level": 0, **kafka}
        self._admin = AdminClient(self._kafka)
        self._topics = topics
        self._ends: dict[tuple[str, int], int] = {}
        self._asked_s = 0.0
        self._due_at = 0.0
        self._answers: dict[TopicPartition, Future[Any]] = {}

    def at_end(self, topic: str, partition: int, offset: int) -> None:
        """The consumer met the end of a partition: markers behind the last record are passed."""
        self._ends[topic, partition] = offset

    def reset(self) -> None:
        """Lanes were rebuilt: what was asked for the old ones says nothing of the new."""
        self._ends = {}
        self._answers = {}

    def poll(self, lanes: Mapping[int, Lane], now_s: float) -> None:
        """Use an answer that has come, ask again when it is time; call after folding a batch."""
        if self._answers and all(answer.done() for answer in self._answers.values()):
            self._use(lanes)
        if not self._answers and lanes and time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + INTERVAL_S
            self._asked_s = now_s
            # The high watermark, not the last stable offset: a transaction still open may hold
            # events of a session, and must hold its clock too.
            self._answers = self._admin.list_offsets(
                {
                    TopicPartition(topic, index): _latest()
                    for index in lanes
                    for topic in self._topics
                },
                isolation_level=IsolationLevel.READ_UNCOMMITTED,
                request_timeout=TIMEOUT_S,
            )

    def _use(self, lanes: Mapping[int, Lane]) -> None:
        answers, self._answers = self._answers, {}
        refused = False
        for part, answer in answers.items():
            lane = lanes.get(part.partition)
            try:
                end = answer.result().offset
            except KafkaException as error:
                log.debug("the broker didn't say where %s ends: %s", part, error)
                refused = True
                continue
            if lane is None:
                continue
            topic = self._topics.index(part.topic)
            read = max(lane.positions[topic], self._ends.get((part.topic, part.partition), 0))
            if read >= end:
                lane.confirm(topic, int(self._asked_s * 1000))
        if refused:
            # A client goes on asking with the leader epochs it knows, for minutes after a broker
            # came back with others, and is refused each time; a new one learns them.
            self._admin = AdminClient(self._kafka)

    def close(self) -> None:
        """Nothing to hand back; the client ends with its last reference."""
        self._answers = {}
