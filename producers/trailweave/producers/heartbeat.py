"""A producer's totals as a record, so that a missing event is missed. Pure but for the clock."""

import time
from typing import Any

from trailweave.producers.transport import Counts, Producer, library_version


def heartbeat(
    producer: Producer, seq: int, counts: Counts, interval_s: float, *, final: bool
) -> dict[str, Any]:
    """A `producer_heartbeat`. After a `final` one, nothing more comes from this producer."""
    return {
        "producer_id": producer.producer_id,
        "producer_epoch": producer.epoch,
        "tenant": producer.tenant,
        "heartbeat_seq": seq,
        "sent_at": time.time_ns() // 1000,
        "interval_s": interval_s,
        "recorded": counts.recorded,
        "delivered": counts.delivered,
        "buffered": counts.buffered,
        "spooled": counts.spooled,
        "failed": counts.failed,
        "host": producer.host,
        "version": library_version(),
        "final": final,
    }
