"""Complete synthetic sessions onto the event topics, at once or at a steady rate."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from tempfile import TemporaryDirectory

from trailweave.deploy.fleet.arrival import Sent
from trailweave.deploy.fleet.send import FleetProducer
from trailweave.deploy.fleet.synthetic import synthetic_events
from trailweave.deploy.local.engines import LocalEngines
from trailweave.deploy.settings import read_settings
from trailweave.deploy.topics import apply_topics

from tests.benchmarks.programs.told import ID_AT, ID_END

#: A rate is held over steps of this.
STEP_S = 0.02


@contextmanager
def engines(partitions: int) -> Iterator[LocalEngines]:
    """Fresh Kafka with the topics, fresh ClickHouse."""
    with (
        TemporaryDirectory(prefix="trailweave-bench-") as folder,
        LocalEngines(folder) as both,
    ):
        flags = {"kafka.bootstrap.servers": both.kafka.address}
        flags["topics.partitions"] = str(partitions)
        apply_topics(read_settings(None, {}, flags))
        yield both


def produce(address: str, sessions: Iterable[Sent]) -> dict[bytes, set[bytes]]:
    """Send them as fast as it goes; trace to the ids of its events."""
    sent: dict[bytes, set[bytes]] = {}
    with FleetProducer(address) as producer:
        for topic, key, value in ((one.topic, one.key, one.value) for one in sessions):
            producer.send(topic, key, value)
            sent.setdefault(key, set()).add(value[ID_AT:ID_END])
    return sent


def sessions(traces: int, per_trace: int, seed: int = 1) -> Iterator[Sent]:
    """Complete sessions that began now."""
    return synthetic_events(traces, time.time_ns() // 1000, per_trace, seed)


def produce_at(address: str, events: Iterable[Sent], rate: float) -> float:
    """Send them at so many a second, or as near as it goes; the rate that it was."""
    events, count = iter(events), 0
    # Every event goes at once: a wait for fuller batches would count as a delay of ours.
    with FleetProducer(address, {"linger.ms": "5"}) as producer:
        began = time.monotonic()
        while True:
            due = int((time.monotonic() - began + STEP_S) * rate) - count
            batch = list(islice(events, max(due, 0)))
            for sent in batch:
                producer.send(sent.topic, sent.key, sent.value)
            count += len(batch)
            if due > len(batch):
                return count / (time.monotonic() - began)
            time.sleep(max(0.0, began + count / rate - time.monotonic()))
