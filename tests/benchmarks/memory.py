"""Whether memory stays as it is: join and load at a steady rate for an hour.

Everything runs as processes; the anonymous memory of each, children included, is looked at every
half minute.
What grows without end shows between the second quarter of the time and the last one: in the first,
caches fill. It counts only if every session became a chain and every event a row.
"""

import statistics
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Final

from trailweave.sinks import clickhouse

from tests.benchmarks import feed
from tests.benchmarks.loads import rows
from tests.benchmarks.peers import WrongError
from tests.benchmarks.processes import anonymous_bytes, tree
from tests.benchmarks.workers import workers
from tests.integration.join_kafka import until

EVERY_S: Final = 30.0
#: The last events are on their way for no longer.
PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Program:
    """Megabytes of one program, its children included, one value per look."""

    name: str
    megabytes: list[float] = field(default_factory=list)

    def quarter(self, number: int) -> float:
        """The mean of one quarter of the time, 0 to 3."""
        size = len(self.megabytes) / 4
        return statistics.fmean(self.megabytes[int(number * size) : int((number + 1) * size)])


def measure(rate: float, minutes: float, per_trace: int) -> list[Program]:
    """Every program of the pipeline; raises `WrongError` if something is missing in the end."""
    traces = int(rate * minutes * 60 / per_trace)
    with feed.engines(4) as both, workers(both, "join", "load") as pids:
        pids |= {"ClickHouse": both.clickhouse.pid, "Kafka": both.kafka.pid}
        found = [Program(name) for name in pids]
        done = Event()

        def look() -> None:
            while not done.wait(EVERY_S):
                for program in found:
                    size = sum(map(anonymous_bytes, tree(pids[program.name])))
                    program.megabytes.append(size / 2**20)

        looking = Thread(target=look, daemon=True)
        looking.start()
        try:
            feed.produce_at(both.kafka.address, feed.sessions(traces, per_trace), rate)
            done.set()
            looking.join()
            _check(both.clickhouse.dsn, traces, per_trace)
        finally:
            done.set()
    return found


def _check(dsn: str, traces: int, per_trace: int) -> None:
    query = (
        "SELECT (SELECT count() FROM chains WHERE completeness = 'complete'),"
        " (SELECT count() FROM events)"
    )
    wanted = [(traces, traces * per_trace)]
    with closing(clickhouse.connect(dsn)) as client:
        if not until(lambda: rows(client, query) == wanted, PATIENCE_S):
            there = rows(client, query)
            raise WrongError(f"{there} chains and rows instead of {traces} of {per_trace} events")
