"""Adding the offsets to a transaction, with a timeout that holds. Edge.

librdkafka keeps none: it waits for ever when the coordinator's broker was missing from the metadata
for a moment, as while a broker starts (its issues 5456 and 5511). So the call runs in a thread of
its own. Who still waits there is left behind with its producer, which the `init_transactions` of
the next one fences: what it may still send does not count.
"""

import threading
from typing import Any, Final

from confluent_kafka import Producer, TopicPartition
from trailweave.schemas.errors import Retryable

#: A group coordinator that answers does so in milliseconds; the transaction outlives this.
TIMEOUT_S: Final = 10.0


def send_offsets(producer: Producer, offsets: list[TopicPartition], generation: Any) -> None:
    """Add them; raises what the producer raises, and `Retryable` when no answer came in time.

    After `Retryable` the producer must not be used again.
    """
    failed: list[BaseException] = []

    def send() -> None:
        try:
            producer.send_offsets_to_transaction(offsets, generation, TIMEOUT_S)
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            failed.append(error)

    sending = threading.Thread(target=send, name="send-offsets", daemon=True)
    sending.start()
    sending.join(TIMEOUT_S)
    if sending.is_alive():
        raise Retryable(
            f"couldn't commit a batch: no group coordinator took the offsets within"
            f" {TIMEOUT_S:.0f} s"
        )
    if failed:
        raise failed[0]
