"""Send what is left in a spool directory: after an outage, without starting the agents again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trailweave.producers.kafka import KafkaTransport
from trailweave.producers.limits import KafkaLimits


@dataclass(frozen=True, slots=True)
class Drained:
    """What `drain` did."""

    sent: int
    #: Refused by Kafka for good; they are in the spool's `failed` folder.
    failed: int
    #: Segments that could not be read throughout; the bytes are in the spool's `damaged` folder.
    damaged: int
    #: Nothing is left but what running processes hold.
    finished: bool


def drain(
    spool_dir: Path | str,
    config: Mapping[str, Any],
    timeout_s: float = 60.0,
    *,
    failed: bool = False,
) -> Drained:
    """Send the events that dead processes left, and those that Kafka refused if `failed`.

    Waits for `timeout_s` at most; what is not sent by then stays. Raises `Fatal` for settings or
    a directory that can't be used.
    """
    limits = KafkaLimits(close_timeout_s=0.0)
    transport = KafkaTransport(config, spool_dir, limits)
    transport.start(None, adopt_failed=failed)
    try:
        finished = transport.flush(timeout_s)
    finally:
        transport.close()
    counts = transport.counts
    return Drained(counts.adopted, counts.failed, counts.damaged, finished)
