"""One range on its way into ClickHouse: what it holds, and the order of its effects.

`announce`, `Inserter.attempt` in `load_insert`, `finish`: in this order, and again from the start
after any failure. Whoever drives them (the worker, or a model of it) says when.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from trailweave.schemas.errors import Reason
from trailweave.sinks.load_build import RECORD_OF, Built, Record, Source
from trailweave.sinks.load_plan import Place, Range, Target


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
    records: list[Record]
    built: Built
    seen: Seen
    #: Somebody may have tried before: look first.
    doubt: bool
    #: The lease, by the monotonic clock: an insert may start until then.
    leased_until: float = 0.0
    done: int = 0
    #: Something was inserted without a look at what is there, before or after.
    unlooked: bool = False
    attempts: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    #: Rows that ClickHouse takes in no company, by table and place.
    refused: dict[tuple[str, Place], Reason] = field(default_factory=dict)

    def letters(self) -> list[tuple[Record, Reason]]:
        """What has to be dead-lettered here: of events, the join reports what is no event."""
        reasons = {offset: reason for (_, (offset, _)), reason in self.refused.items()}
        found = [(r, reasons[r.offset]) for r in self.records if r.offset in reasons]
        return found + (self.built.rejected if self.source.topic in RECORD_OF else [])


class Offsets(Protocol):
    """The group's committed offsets; `load_group.Group` in earnest."""

    def commit(self, source: Source, offset: int, metadata: str) -> None:
        """Returns when the group has accepted it from its member; else raises `Retryable`."""


class LetterBox(Protocol):
    """The dead-letter topic; `load_letters.Letters` in earnest."""

    def send(self, source: Source, rejected: Sequence[tuple[Record, Reason]]) -> None:
        """Returns when the letters are kept; else raises `Retryable`."""


def announce(job: Job, offsets: Offsets, asked: float, lease_s: float) -> None:
    """Commit the intent; also before every retry, from then on inserts may start for `lease_s`.

    A commit that the group accepts says that the range is still ours, and that no other worker
    has it before the session that was alive at `asked` has timed out.
    """
    offsets.commit(job.source, job.range.start, job.range.metadata())
    job.leased_until = asked + lease_s
    job.attempts += 1


def finish(job: Job, letters: LetterBox, offsets: Offsets) -> None:
    """Letters, then the offset behind the range: a crash between repeats, and loses nothing."""
    letters.send(job.source, job.letters())
    offsets.commit(job.source, job.range.end + 1, "")
