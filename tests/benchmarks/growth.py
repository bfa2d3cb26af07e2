"""How the join's rate and memory grow: with the number of events, and of partitions.

Each beside plain consuming of the same topics, right before: the machine's own speed of the moment.
"""

from dataclasses import dataclass

from tests.benchmarks import feed, peers
from tests.benchmarks.run import consume


@dataclass(frozen=True, slots=True)
class Size:
    """One size, and what was measured there."""

    events: int
    partitions: int
    consume_per_s: float
    join: peers.Figures


def measure(traces: int, per_trace: int, partitions: int) -> Size:
    """One size, on engines of its own."""
    with feed.engines(partitions) as both:
        address = both.kafka.address
        sent = feed.produce(address, feed.sessions(traces, per_trace))
        field = peers.Field(address, both.kafka.pid, sent, per_trace, "bytes", partitions)
        plain = consume(address, field.total, "bench-plain")
        return Size(field.total, partitions, plain, peers.measure(peers.peers()[0], field))
