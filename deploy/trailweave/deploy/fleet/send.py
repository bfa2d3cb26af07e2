"""Sends a fleet to Kafka: as fast as it goes, or at a stated rate."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from confluent_kafka import KafkaError, KafkaException, Producer
from trailweave.deploy.fleet.arrival import Sent
from trailweave.schemas.client_log import client_log
from trailweave.schemas.errors import Fatal, Retryable

log = logging.getLogger(__name__)

#: Takes (topic, key, value); blocks when it has to, and never drops.
Send = Callable[[str, bytes, bytes], None]

_PROGRESS_EVERY: Final = 1_000
#: A full local queue is waited for in steps of this.
_POLL_S: Final = 0.05
#: Longer than librdkafka's own `delivery.timeout.ms` need be for a broker that restarts.
_FLUSH_TIMEOUT_S: Final = 120.0

#: What every producer of event topics sets.
PRODUCER_SETTINGS: Final[Mapping[str, str | int | bool]] = {
    "enable.idempotence": True,
    "acks": "all",
    "partitioner": "murmur2_random",
    "compression.type": "lz4",
    "linger.ms": 20,
    "queue.buffering.max.kbytes": 65_536,
}


def send_fleet(
    records: Iterable[Sent],
    send: Send,
    rate: float | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Send every record, at most `rate` a second; gives how many.

    Arrival within the grace holds for any rate at which the fleet is sent no slower than its own
    clock, about 27 records a second.
    """
    started_s = time.monotonic()
    count = 0
    for record in records:
        if rate:
            ahead_s = started_s + count / rate - time.monotonic()
            if ahead_s > 0:
                time.sleep(ahead_s)
        send(record.topic, record.key, record.value)
        count += 1
        if on_progress and count % _PROGRESS_EVERY == 0:
            on_progress(count)
    if on_progress:
        on_progress(count)
    return count


class FleetProducer:
    """A Kafka producer whose `send` blocks while its queue is full; leaving it delivers the rest.

    Raises `Fatal` for a record that Kafka refused, and `Retryable` when not all were delivered.
    """

    def __init__(self, bootstrap: str, settings: Mapping[str, str] | None = None) -> None:
        config = {"bootstrap.servers": bootstrap, **PRODUCER_SETTINGS, **(settings or {})}
        reports = {"on_delivery": self._delivered, "delivery.report.only.error": True}
        try:
            self._producer = Producer(config | reports, logger=client_log(log))
        except KafkaException as error:
            raise Fatal(f"couldn't make a Kafka producer: {error}") from error
        self._refused: KafkaError | None = None

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        """Queue one record."""
        while True:
            self._check()
            try:
                self._producer.produce(topic, value, key)
            except BufferError:
                self._producer.poll(_POLL_S)
            except KafkaException as error:
                raise Fatal(f"couldn't send to {topic}: {error}") from error
            else:
                self._producer.poll(0)
                return

    def flush(self) -> None:
        """Wait until everything is acknowledged."""
        left = self._producer.flush(_FLUSH_TIMEOUT_S)
        self._check()
        if left:
            raise Retryable(f"couldn't deliver {left} records within {_FLUSH_TIMEOUT_S} s")

    def _delivered(self, error: KafkaError | None, _: Any) -> None:
        self._refused = self._refused or error

    def _check(self) -> None:
        if self._refused is not None:
            raise Fatal(f"couldn't deliver a record: {self._refused}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.flush()
        else:
            self._producer.purge()
            self._producer.flush(_POLL_S)
