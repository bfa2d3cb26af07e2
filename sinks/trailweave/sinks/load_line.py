"""One insert at a time: a thread, its connection to ClickHouse, and the job that it is at. Edge.

A load worker has several lines. Ranges of different partitions are independent, so each line may
have one; of one partition never more than one is between its intent and its end.
"""

from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from trailweave.sinks.clickhouse import Store
from trailweave.sinks.load_insert import Inserter
from trailweave.sinks.load_job import Job
from trailweave.sinks.metrics import LoadMetrics


class Line:
    """For ranges of some topics. `job` stays from its intent to its end; it is `running` while the
    thread attempts it.
    """

    def __init__(
        self, topics: frozenset[str], store: Store, metrics: LoadMetrics, keep_days: int
    ) -> None:
        self.topics = topics
        self.job: Job | None = None
        self.running: Future[None] | None = None
        #: After a failure, by the monotonic clock.
        self.retry_at = 0.0
        self._store = store
        self._inserter = Inserter(store, metrics, keep_days)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="insert")

    def attempt(self, job: Job) -> None:
        """Have the thread attempt the job, which is announced."""
        self.running = self._thread.submit(self._inserter.attempt, job)

    def give_up(self) -> None:
        """Start no other insert of its job; one under way runs to its end, under its token."""
        if self.job is not None:
            self.job.leased_until = 0.0

    def forget(self) -> None:
        """Have no job."""
        self.job = self.running = None
        self.retry_at = 0.0

    def close(self) -> None:
        """End the thread once its insert is done, if there is one, and drop the connection."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._store.close()


def wait_for_one(lines: Iterable[Line], timeout_s: float) -> None:
    """Until an attempt of one of them is done, or the time is up; at once if none is running."""
    wait(_running(lines), timeout_s, FIRST_COMPLETED)


def wait_for_all(lines: Iterable[Line], timeout_s: float) -> None:
    """Until no attempt of any is running, or the time is up."""
    wait(_running(lines), timeout_s)


def _running(lines: Iterable[Line]) -> list[Future[None]]:
    return [line.running for line in lines if line.running is not None]
