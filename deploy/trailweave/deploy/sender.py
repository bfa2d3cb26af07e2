"""Sends records and knows that they arrived: for `ingest` and `dead-letters replay`."""

from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from trailweave.deploy.clients import kafka_errors, producer, require_topics
from trailweave.deploy.settings import Settings
from trailweave.schemas.errors import Retryable

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

FLUSH_TIMEOUT_S: Final = 120.0
POLL_S: Final = 0.1


class Sender:
    """A context manager; leaving it waits until all is acknowledged.

    `send` blocks while the local queue is full, and raises `Retryable` once Kafka has refused
    something. `delivered` counts what Kafka has acknowledged.
    """

    def __init__(self, settings: Settings, what: str) -> None:
        self.delivered = 0
        self._settings = settings
        self._what = what
        self._failed: str | None = None
        require_topics(settings, what)
        with kafka_errors(settings, what):
            self._producer: Producer = producer(settings)

    def publish_schemas(self) -> None:
        """Let readers of other versions know what our events look like."""
        from trailweave.schemas.schema_topic import publish

        with kafka_errors(self._settings, self._what):
            publish(self._producer, timeout_s=FLUSH_TIMEOUT_S)

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        """Queue one record."""
        while True:
            self._check()
            try:
                with kafka_errors(self._settings, self._what):
                    self._producer.produce(topic, value, key, on_delivery=self._on_delivery)
            except BufferError:
                self._producer.poll(POLL_S)
            else:
                self._producer.poll(0)
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        left = self._producer.flush(FLUSH_TIMEOUT_S if error is None else POLL_S)
        if error is None:
            self._check()
            if left:
                raise Retryable(
                    f"couldn't {self._what}: {left} records were not acknowledged within"
                    f" {FLUSH_TIMEOUT_S:.0f} s; run it again, nothing is stored twice"
                )

    def _on_delivery(self, error: "KafkaError | None", _: "Message") -> None:
        if error is None:
            self.delivered += 1
        else:
            self._failed = self._failed or error.str()

    def _check(self) -> None:
        if self._failed is not None:
            raise Retryable(
                f"couldn't {self._what}: {self._failed}; run it again, nothing is stored twice"
            )
