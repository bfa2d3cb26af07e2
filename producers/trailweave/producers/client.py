"""librdkafka as this room uses it: its settings, and what its errors mean. No state."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer
from trailweave.schemas.client_log import client_log
from trailweave.schemas.codec import EVENT_BYTES_MAX
from trailweave.schemas.errors import Fatal

#: Where librdkafka's own lines go.
log = logging.getLogger(__name__)

#: Not to be changed: Java clients must choose the same partition, and no acknowledged event may go.
FORCED: Final[Mapping[str, Any]] = {
    "partitioner": "murmur2_random",
    "enable.idempotence": True,
    "acks": "all",
}

DEFAULTS: Final[Mapping[str, Any]] = {
    "compression.type": "lz4",
    # Few large batches: an agent's events are small, and nobody waits for the acknowledgement.
    "linger.ms": 50,
    # What is not acknowledged by then goes to the spool, which waits as long as it takes.
    "delivery.timeout.ms": 30_000,
    # Ours is checked first; the batch's framing needs some hundred bytes more.
    "message.max.bytes": EVENT_BYTES_MAX + 16_384,
    # After an outage Kafka is found again within a second or so.
    "reconnect.backoff.max.ms": 1_000,
    "log.connection.close": False,
}

#: Sending the same event again would be refused again.
_PERMANENT: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.POLICY_VIOLATION,
        KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
    }
)


def new_client(
    config: Mapping[str, Any], name: str, events_max: int, bytes_max: int, error_cb: Any
) -> Any:
    """A producer with its queue a little larger than our own limits, which so come first.

    Raises `Fatal` for settings that librdkafka refuses.
    """
    settings = {
        "client.id": name,
        "queue.buffering.max.messages": events_max,
        "queue.buffering.max.kbytes": bytes_max // 1024,
        **DEFAULTS,
        **config,
        **FORCED,
        "error_cb": error_cb,
    }
    try:
        return Producer(settings, logger=client_log(log))
    except (KafkaException, TypeError, ValueError) as error:
        raise Fatal(f"couldn't use the Kafka settings: {_text(error)}") from None


def _text(error: Exception) -> str:
    cause = error.args[0] if error.args else error
    return str(cause.str()) if isinstance(cause, KafkaError) else str(error)


def error_of(error: KafkaException) -> KafkaError:
    """What librdkafka said."""
    found: KafkaError = error.args[0]
    return found


def is_permanent(error: KafkaError) -> bool:
    """Whether Kafka would refuse the same event again."""
    return error.code() in _PERMANENT
