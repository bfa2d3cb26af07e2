"""The insert thread's part: bring the rows of a job into ClickHouse, each once.

Only this talks to the tables, one job at a time. A job is attempted until it is done: from the
second attempt on, and wherever somebody may have tried before, it looks first what is there.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from trailweave.schemas import events
from trailweave.schemas.errors import Fatal, Rejected, Retryable
from trailweave.sinks.load_build import DAY_MS, Insert
from trailweave.sinks.load_job import Job
from trailweave.sinks.load_plan import Place, Step, decide, halves, part_token, token
from trailweave.sinks.metrics import LoadMetrics
from trailweave.sinks.rows import Layout

log = logging.getLogger(__name__)

#: Acknowledged inserts of which nothing is to be seen, before a person has to look.
SWALLOWED_MAX: Final = 5
#: Rows of a range that ClickHouse may refuse: finding one costs an insert per halving, and more of
#: them say that tables or settings are wrong, and not these rows.
REFUSED_MAX: Final = 100
#: The same where every row of an insert is refused: so many may be bad ones by chance.
ALL_REFUSED_MAX: Final = 10

_TABLES_OF: Final = {
    events.SESSIONS_TOPIC: ("chains", "handles"),
    events.FINDINGS_TOPIC: ("findings",),
    events.HEARTBEATS_TOPIC: ("heartbeats",),
    events.DEAD_LETTERS_TOPIC: ("dead_letters",),
}


class Tables(Protocol):
    """What the tables have to answer; `clickhouse.Store` in earnest."""

    def insert(self, layout: Layout, rows: Iterable[bytes], token: str) -> None:
        """One insert. `Retryable`: it may have happened; `Rejected`: the data never will."""

    def present(
        self, table: str, topic_id: str, partition: int, start: int, end: int
    ) -> set[Place]:
        """The places that are there of a range."""

    def count(self, table: str, topic_id: str, partition: int, start: int, end: int) -> int:
        """How many places are there of a range."""

    def newest(self, table: str, topic_id: str, partition: int, start: int) -> int:
        """The largest offset from `start` on, else -1."""


@dataclass(frozen=True, slots=True)
class _Isolating:
    """An insert of which ClickHouse refuses some rows."""

    job: Job
    insert: Insert
    #: What the halves' tokens begin with.
    own: str
    #: Places that need nothing more: they are there, or were refused alone.
    there: set[Place]

    @property
    def begun(self) -> bool:
        """Whether this process has found such rows in it before."""
        table = self.insert.layout.table
        return any((table, place) in self.job.refused for place in self.insert.places)


class Inserter:
    """Attempts jobs. Belongs to the insert thread."""

    def __init__(
        self,
        store: Tables,
        metrics: LoadMetrics,
        keep_days: int,
        monotonic: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._keep_ms = keep_days * DAY_MS
        self._monotonic = monotonic
        self._now_s = now_s

    def attempt(self, job: Job) -> None:
        """Bring every row of the range into ClickHouse, none twice; go on where it stopped.

        Raises `Retryable` when it can't be said what is there, `Fatal` when a person has to look.
        """
        if job.seen.newest is None:
            job.seen.newest = self._newest(job)
        if job.range.start <= job.seen.newest:
            # The offset went back, or an earlier owner got so far: leave out what is there.
            job.doubt = True
        self._insert_all(job)
        # Acknowledged is not yet stored: an earlier attempt may have used up a token and lost its
        # rows, and an embedded engine says nothing of what goes wrong behind its reader.
        if job.unlooked:
            if not self._whole(job):
                job.doubt, job.done = True, 0
                self._insert_all(job)
            job.unlooked = False

    def _insert_all(self, job: Job) -> None:
        while job.done < len(job.built.inserts):
            self._insert(job, job.built.inserts[job.done])
            job.done += 1

    def _whole(self, job: Job) -> bool:
        wanted: Counter[str] = Counter()
        for insert in job.built.inserts:
            wanted[insert.layout.table] += len(insert.places)
        wanted.subtract(table for table, _ in job.refused)
        place = (job.source.topic_id, job.source.partition, job.range.start, job.range.end)
        return all(self._store.count(table, *place) == n for table, n in wanted.items())

    def _newest(self, job: Job) -> int:
        tables = _TABLES_OF.get(job.source.topic, ("events",))
        place = (job.source.topic_id, job.source.partition, job.range.start)
        return max(self._store.newest(table, *place) for table in tables)

    def _present(self, job: Job, insert: Insert) -> set[Place]:
        place = (job.source.topic_id, job.source.partition, job.range.start, job.range.end)
        return self._store.present(insert.layout.table, *place)

    def _insert(self, job: Job, insert: Insert) -> None:
        table = insert.layout.table
        own = token(job.target, job.range, table, insert.part)
        if not job.doubt:
            job.unlooked = True
            try:
                self._send(job, insert, insert.places, own)
                return
            except Rejected as refusal:
                self._isolate(_Isolating(job, insert, own, set()), insert.places, refusal)
        self._metrics.redone.inc()
        swallowed = 0
        while True:
            # What was refused is as good as there.
            there = self._present(job, insert)
            there |= {place for found, place in job.refused if found == table}
            step = decide(own, insert.places, there, swallowed)
            if not step.missing:
                return
            if swallowed == SWALLOWED_MAX:
                self._give_up(job, insert, len(step.missing))
                return
            self._complete(job, insert, step, there)
            # Looked at again: an acknowledged insert whose token was used leaves rows missing.
            swallowed += 1

    def _complete(self, job: Job, insert: Insert, step: Step, there: set[Place]) -> None:
        isolating = _Isolating(job, insert, step.own, there)
        if isolating.begun:
            # Under the halves' own tokens: one of them may still arrive.
            self._isolate(isolating, insert.places, None)
            return
        missing = [place for place in insert.places if place in step.missing]
        try:
            self._send(job, insert, missing, step.token)
        except Rejected as refusal:
            self._isolate(isolating, insert.places, refusal)

    def _isolate(self, work: _Isolating, places: Sequence[Place], refusal: Rejected | None) -> None:
        """Insert what ClickHouse takes of rows that it refuses together; note what it does not.

        The halves, and with them the tokens, are the same at every attempt, so that one that
        arrives late is recognised: they are cut from all rows, never from those still missing.
        """
        if refusal is not None:
            # A view behind the table may have refused what the table has taken.
            work.there.update(self._present(work.job, work.insert))
            if len(places) == 1 and places[0] not in work.there:
                self._refuse(work.job, work.insert, places[0], refusal)
                return
        for half in halves(places):
            there = work.there.intersection(half)
            if len(there) == len(half):
                continue
            if there:
                self._isolate(work, half, None)
                continue
            try:
                self._send(work.job, work.insert, half, part_token(work.own, half))
            except Rejected as again:
                self._isolate(work, half, again)

    def _refuse(self, job: Job, insert: Insert, place: Place, refusal: Rejected) -> None:
        job.refused[insert.layout.table, place] = refusal.reason
        table = insert.layout.table
        count = sum((table, place) in job.refused for place in insert.places)
        if count > REFUSED_MAX or count == len(insert.places) > ALL_REFUSED_MAX:
            where = f"{job.source.name()} {job.range.start}..{job.range.end}"
            raise Fatal(
                f"couldn't insert {count} rows of {where} into {table}:"
                f" {refusal.reason.detail}; compare the tables with `trailweave tables check`"
            )

    def _send(self, job: Job, insert: Insert, places: Sequence[Place], own: str) -> None:
        if self._monotonic() > job.leased_until:
            raise Retryable("couldn't insert within the lease of the group's membership")
        table = insert.layout.table
        if places is insert.places:
            layout, rows = insert.whole()
        else:
            layout, rows = insert.layout, insert.only(frozenset(places))
        with self._metrics.insert_s.labels(table).time():
            self._store.insert(layout, rows, own)
        job.rows[table] = job.rows.get(table, 0) + len(places)

    def _give_up(self, job: Job, insert: Insert, missing: int) -> None:
        where = f"{job.source.name()} {job.range.start}..{job.range.end}"
        table = insert.layout.table
        # Rows past their retention may vanish at once.
        oldest_ms = min(record.recorded_at for record in job.records)
        if oldest_ms < self._now_s() * 1000 - self._keep_ms + DAY_MS:
            log.warning("%d rows of %s are past the retention of %s", missing, where, table)
            return
        raise Fatal(
            f"couldn't find {missing} rows of {where} in {table}: ClickHouse acknowledged them"
            f" {SWALLOWED_MAX} times; does something delete or refuse them there?"
        )
