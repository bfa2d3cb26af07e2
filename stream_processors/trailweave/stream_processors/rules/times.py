"""What rules say about time alike."""

from typing import Final

from trailweave.stream_processors.chain import Record

#: Two things so close together may have happened in either order: the clocks of their reporters
#: differ. Microseconds.
SKEW_US: Final = 5_000_000


def occurred_at(record: Record) -> int:
    """When it happened by its reporter's clock, in microseconds; 0 when nobody says."""
    return int(record["occurred_at"])


def started_at(record: Record) -> int | None:
    """When a call began; None when nobody says, as in translated records without a time."""
    return record.get("started_at") or record["occurred_at"] or None
