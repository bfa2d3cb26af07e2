"""Garbage collection as it pays for workers, which hold many records for a while and few cycles."""

import contextlib
import gc
from collections.abc import Iterator
from typing import Final

#: Allocations between collections. The defaults visit what a worker holds again and again: the
#: events of open sessions, records that wait for their insert. They are no garbage until they are
#: let go, and hold no cycles then; it was 4 to 12 % of the time.
THRESHOLDS: Final = (100_000, 20, 50)


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Collect rarely, and never look at what is loaded by now."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
