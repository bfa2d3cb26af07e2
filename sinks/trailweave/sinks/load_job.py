"""One range on its way into ClickHouse, and the thread's part of bringing it there.

The worker's loop makes jobs and commits offsets; only this talks to ClickHouse, one job at a time.
A job is attempted until it is done: from the second attempt on it looks first what is there.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import Final

from trailweave.schemas import events
from trailweave.schemas.errors import Fatal, Reason, Retryable
from trailweave.sinks.clickhouse import Store
from trailweave.sinks.load_build import Insert, Record, Source
from trailweave.sinks.load_plan import Range, Target, decide, token
from trailweave.sinks.metrics import LoadMetrics

log = logging.getLogger(__name__)

#: Acknowledged inserts of which nothing is to be seen, before a person has to look.
SWALLOWED_MAX: Final = 5

_TABLES_OF: Final = {
    events.SESSIONS_TOPIC: ("chains", "handles"),
    events.FINDINGS_TOPIC: ("findings",),
    events.HEARTBEATS_TOPIC: ("heartbeats",),
    events.DEAD_LETTERS_TOPIC: ("dead_letters",),
}


@dataclass(slots=True)
class Seen:
    """What ClickHouse had of a partition when it was assigned to this worker."""

    #: The largest offset from the first range on; None: not yet asked.
    newest: int | None = None


@dataclass(slots=True)
class Job:
    """A range with its rows, and how far it got."""

    source: Source
    target: Target
    range: Range
    inserts: list[Insert]
    rejected: list[tuple[Record, Reason]]
    records: int
    #: Broker time of the oldest record: rows past their retention may vanish at once.
    oldest_ms: int
    seen: Seen
    #: Somebody may have tried before: look first.
    doubt: bool
    #: The lease, by the monotonic clock: an insert may start until then.
    leased_until: float = 0.0
    done: int = 0
    attempts: int = 0
    rows: dict[str, int] = field(default_factory=dict)


class Inserter:
    """Attempts jobs. Belongs to the insert thread."""

    def __init__(self, store: Store, metrics: LoadMetrics, keep_days: int) -> None:
        self._store = store
        self._metrics = metrics
        self._keep_ms = keep_days * 86_400_000

    def attempt(self, job: Job) -> None:
        """Bring every row of the range into ClickHouse, none twice; go on where it stopped.

        Raises `Retryable` when it can't be said what is there, `Fatal` when a person has to look.
        """
        if job.seen.newest is None:
            job.seen.newest = self._newest(job)
        if job.range.start <= job.seen.newest:
            # The offset went back, or an earlier owner got so far: leave out what is there.
            job.doubt = True
        while job.done < len(job.inserts):
            self._insert(job, job.inserts[job.done])
            job.done += 1

    def _newest(self, job: Job) -> int:
        tables = _TABLES_OF.get(job.source.topic, ("events",))
        place = (job.source.topic_id, job.source.partition, job.range.start)
        return max(self._store.newest(table, *place) for table in tables)

    def _insert(self, job: Job, insert: Insert) -> None:
        layout = insert.layout
        own = token(job.target, job.range, layout.table, layout.part)
        if not job.doubt:
            self._send(job, insert, None, own)
            return
        self._metrics.redone.inc()
        swallowed = 0
        while True:
            present = self._store.present(
                layout.table,
                job.source.topic_id,
                job.source.partition,
                job.range.start,
                job.range.end,
            )
            step = decide(own, insert.places, present, swallowed)
            if not step.missing:
                return
            if swallowed == SWALLOWED_MAX:
                self._give_up(job, insert, len(step.missing))
                return
            self._send(job, insert, step.missing, step.token)
            # Looked at again: an acknowledged insert whose token was used leaves rows missing.
            swallowed += 1

    def _send(
        self, job: Job, insert: Insert, places: frozenset[tuple[int, int]] | None, own: str
    ) -> None:
        if time.monotonic() > job.leased_until:
            raise Retryable("couldn't insert within the lease of the group's membership")
        table = insert.layout.table
        pieces = insert.pieces if places is None else insert.only(places)
        with self._metrics.insert_s.labels(table).time():
            self._store.insert(insert.layout, pieces, own)
        count = len(insert.places) if places is None else len(places)
        job.rows[table] = job.rows.get(table, 0) + count

    def _give_up(self, job: Job, insert: Insert, missing: int) -> None:
        where = f"{job.source.name()} {job.range.start}..{job.range.end}"
        table = insert.layout.table
        if job.oldest_ms < time.time() * 1000 - self._keep_ms + 86_400_000:
            log.warning("%d rows of %s are past the retention of %s", missing, where, table)
            return
        raise Fatal(
            f"couldn't find {missing} rows of {where} in {table}: ClickHouse acknowledged them"
            f" {SWALLOWED_MAX} times; does something delete there?"
        )
