"""From a session's last event to its queryable chain, at several rates, until they are too high.

Join and load run as processes, the broker and ClickHouse beside them, and so does the producer: all
on the same cores. The delay of a chain is the time at which a query first could see it less the
broker's timestamp of its session's last event.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from threading import Event, Thread
from typing import Any, Final

from trailweave.sinks import clickhouse

from tests.benchmarks import feed
from tests.benchmarks.loads import rows
from tests.benchmarks.peers import WrongError
from tests.benchmarks.workers import workers

#: How often a query looks for new chains: delays are exact to this.
LOOK_S: Final = 0.05
#: Chains that come no more after so long.
PATIENCE_S: Final = 90.0
#: A rate is too high when the events come slower than this share of it ...
RATE_SHARE_MIN: Final = 0.95
#: ... or when chains are still missing so long after the last event.
BEHIND_S_MAX: Final = 10.0


@dataclass(frozen=True, slots=True)
class Delay:
    """One rate: events/s asked for and reached, delays in seconds."""

    rate: float
    reached: float
    p50_s: float
    p99_s: float
    behind_s: float

    @property
    def kept_up(self) -> bool:
        """Whether the rate can be held."""
        return self.reached >= RATE_SHARE_MIN * self.rate and self.behind_s < BEHIND_S_MAX

    def as_dict(self) -> dict[str, Any]:
        """For the JSON result."""
        return asdict(self) | {"kept_up": self.kept_up}


class _Looker:
    """Asks ClickHouse how far the chains are, and keeps (time, {partition: newest offset})."""

    def __init__(self, dsn: str) -> None:
        self.seen: list[tuple[float, dict[int, int]]] = []
        self.count = 0
        self._client = clickhouse.connect(dsn)
        self._done = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        query = "SELECT partition, max(offset), count() FROM chains GROUP BY partition"
        while not self._done.wait(LOOK_S):
            found = rows(self._client, query)
            # After the answer: a chain counts from when somebody could have read it.
            self.seen.append((time.time(), {lane: offset for lane, offset, _ in found}))
            self.count = sum(count for _, _, count in found)

    def wait(self, chains: int) -> None:
        """Until so many chains can be seen."""
        deadline = time.monotonic() + PATIENCE_S
        while self.count < chains:
            if time.monotonic() > deadline:
                raise WrongError(f"{chains - self.count:,} chains are missing")
            time.sleep(LOOK_S)

    def first_seen(self, lane: int, offset: int) -> float:
        """When a query first could see a chain."""
        return next(at for at, newest in self.seen if newest.get(lane, -1) >= offset)

    def close(self) -> None:
        """Ask no more."""
        self._done.set()
        self._thread.join()
        self._client.close()


def measure(rates: Sequence[float], seconds: float, per_trace: int) -> list[Delay]:
    """One rate after the other, up to and with the first that is too high."""
    found: list[Delay] = []
    with feed.engines(4) as both, workers(both, "join", "load"):
        looker = _Looker(both.clickhouse.dsn)
        client = clickhouse.connect(both.clickhouse.dsn)
        try:
            # The first sessions meet processes that still start and tables not yet made.
            feed.produce(both.kafka.address, feed.sessions(256, per_trace))
            looker.wait(256)
            for rate in rates:
                found.append(_at(rate, seconds, per_trace, both.kafka.address, looker, client))
                if not found[-1].kept_up:
                    break
        finally:
            looker.close()
            client.close()
    return found


def _wait_for_events(client: Any, total: int) -> None:
    """Until all events are there, which go their own way: their times are needed below."""
    deadline = time.monotonic() + PATIENCE_S
    while rows(client, "SELECT count() FROM events") < [(total,)]:
        if time.monotonic() > deadline:
            raise WrongError("events are missing")
        time.sleep(LOOK_S)


def _at(
    rate: float, seconds: float, per_trace: int, address: str, looker: _Looker, client: Any
) -> Delay:
    before, traces = looker.count, max(256, int(rate * seconds / per_trace))
    newest = dict(looker.seen[-1][1])
    looker.seen.clear()
    sessions = feed.sessions(traces, per_trace, seed=int(rate))
    reached = feed.produce_at(address, sessions, rate)
    ended = time.time()
    looker.wait(before + traces)
    behind_s = time.time() - ended
    _wait_for_events(client, (before + traces) * per_trace)
    query = (
        "SELECT c.partition, c.offset, e.last FROM chains AS c INNER JOIN (SELECT trace_id,"
        " toUnixTimestamp64Milli(max(recorded_at)) / 1000 AS last FROM events GROUP BY trace_id)"
        " AS e ON e.trace_id = c.trace_id"
    )
    chains = [row for row in rows(client, query) if row[1] > newest.get(row[0], -1)]
    if len(chains) != traces:
        raise WrongError(f"{len(chains):,} chains instead of {traces:,}")
    delays = [looker.first_seen(lane, offset) - last for lane, offset, last in chains]
    cuts = statistics.quantiles(delays, n=100)
    return Delay(rate, reached, statistics.median(delays), cuts[98], behind_s)
