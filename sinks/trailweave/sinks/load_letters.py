"""Dead letters of what load alone reads: sessions, findings, heartbeats, dead letters.

Bad events are the join's to report; both judge by `validity`, so each is reported once. A letter's
key is the record's place: a repeat after a crash is the same letter.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaException, Producer
from trailweave.schemas import codec, events
from trailweave.schemas.errors import Reason, Retryable
from trailweave.schemas.group_slot import connection_settings
from trailweave.sinks.load_build import Record, Source

STAGE: Final = "load"
DELIVERY_TIMEOUT_S: Final = 10.0


class Letters:
    """Writes dead letters; connects when there is a first one."""

    def __init__(self, kafka: Mapping[str, Any]) -> None:
        self._kafka = kafka
        self._encoder = codec.Encoder()
        self._producer: Producer | None = None

    def send(self, source: Source, rejected: Sequence[tuple[Record, Reason]]) -> None:
        """Returns when the broker has them all. Raises `Retryable` if it doesn't take them."""
        if not rejected:
            return
        producer = self._connected()
        failed: list[str] = []
        try:
            for record, reason in rejected:
                producer.produce(
                    events.DEAD_LETTERS_TOPIC,
                    key=f"{source.topic}|{source.partition}|{record.offset}".encode(),
                    value=self._letter(source, record, reason),
                    on_delivery=lambda error, _: failed.append(error.name()) if error else None,
                )
        except (BufferError, KafkaException) as error:
            raise Retryable(f"couldn't queue dead letters: {type(error).__name__}") from None
        deadline = time.monotonic() + DELIVERY_TIMEOUT_S
        while len(producer) and time.monotonic() < deadline:
            producer.flush(0.1)
        if failed or len(producer):
            why = failed[0] if failed else f"no answer within {DELIVERY_TIMEOUT_S:g} s"
            raise Retryable(f"couldn't write dead letters: {why}")

    def close(self) -> None:
        """Every letter was delivered when `send` returned."""
        self._producer = None

    def _connected(self) -> Producer:
        if self._producer is None:
            self._producer = Producer(
                {
                    # Its errors are raised; polled too rarely to hand on lines of its own.
                    "log_level": 0,
                    **connection_settings(self._kafka),
                    "enable.idempotence": True,
                    "acks": "all",
                    # The letter is larger than the record in it; the topic's own limit decides.
                    "message.max.bytes": 4 * 1024 * 1024,
                    "compression.type": "zstd",
                    "partitioner": "murmur2_random",
                }
            )
        return self._producer

    def _letter(self, source: Source, record: Record, reason: Reason) -> bytes:
        return self._encoder.encode(
            "dead_letter",
            {
                "topic": source.topic,
                "partition": source.partition,
                "offset": record.offset,
                "stage": STAGE,
                "code": reason.code,
                "reason": reason.detail,
                "recorded_at": record.recorded_at,
                "key": record.key,
                "value": record.value or b"",
            },
        )
