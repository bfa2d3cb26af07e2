"""A consumer that hears nothing: because nothing is there, or because it no longer can? Edge.

A client that was told of a cluster without brokers, as while all of them restart, asks nobody any
more and says nothing of it (librdkafka issue 5301): its worker would look idle for ever. So after a
silence a second client looks whether there is something to read, and the first one is given up if
it is told so twice.
"""

import time
import uuid
from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

#: Nobody is asked before so much silence, nor again before as much has passed.
SILENCE_S: Final = 30.0
#: Between the two looks: what came after the first silence ended has then been heard.
CONFIRM_S: Final = 2.0
#: A look that takes longer is given up: Kafka is away for everybody.
LOOK_S: Final = 5.0


class Silence:
    """What one worker has heard, over all its clients. Not thread-safe."""

    def __init__(self, kafka: Mapping[str, Any], silence_s: float = SILENCE_S) -> None:
        """`kafka` holds the settings of the worker's own consumer."""
        self._settings = {
            **kafka,
            "group.id": f"trailweave-look-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
            # What it would say, the worker's own consumer has said.
            "log_level": 0,
        }
        self._silence_s = silence_s
        self._suspect = False
        self._look_at = 0.0
        self.heard()

    def heard(self) -> None:
        """The worker's consumer got something, or was not to get anything."""
        self._suspect = False
        self._look_at = time.monotonic() + self._silence_s

    def is_deaf(self, positions: Mapping[tuple[str, int], int]) -> bool:
        """Whether somebody else can read what the worker's consumer does not get.

        `positions` are the offsets that it would read next, by topic and partition. Blocks for
        `LOOK_S` at the most, after a silence only.
        """
        if time.monotonic() < self._look_at or not positions:
            return False
        if not self._something_is_there(positions):
            self.heard()
            return False
        if not self._suspect:
            self._suspect = True
            self._look_at = time.monotonic() + CONFIRM_S
            return False
        self.heard()
        return True

    def _something_is_there(self, positions: Mapping[tuple[str, int], int]) -> bool:
        reader = Consumer(self._settings)
        try:
            reader.assign([TopicPartition(*part, offset) for part, offset in positions.items()])
            deadline, left = time.monotonic() + LOOK_S, len(positions)
            while left > 0 and time.monotonic() < deadline:
                for message in reader.consume(len(positions), 0.1):
                    if message.error() is None:
                        return True
                    left -= 1
        except KafkaException:
            pass
        finally:
            reader.close()
        return False
