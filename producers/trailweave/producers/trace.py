"""The sequence of one producer in one trace, and the traces that a recorder remembers.

A sequence number is taken and its event accepted under one lock: an event that is refused leaves
no gap, and two threads can't send the same number.
"""

import threading
import weakref
from typing import Any, Final

from trailweave.producers.transport import Producer, Transport, send_event
from trailweave.schemas.codec import Encoder

#: Traces whose next number is remembered although nobody holds them, so that a gateway that meets
#: a trace again goes on counting. About 10 MB.
REMEMBERED_MAX: Final = 20_000


class Trace:
    """What this producer has sent in one trace."""

    __slots__ = ("__weakref__", "_lock", "count", "epoch", "trace_id")

    def __init__(self, trace_id: str, epoch: int) -> None:
        self.trace_id = trace_id
        self.epoch = epoch
        #: Events accepted, and so the next sequence number.
        self.count = 0
        self._lock = threading.RLock()

    def send(
        self, transport: Transport, encoder: Encoder, name: str, record: dict[str, Any]
    ) -> None:
        """Number the event and send it. Raises as `send_event` does; then no number was taken."""
        with self._lock:
            record["trace_seq"] = self.count
            if name == "session_ended" and record["producer_id"] in record["expected"]:
                record["expected"][record["producer_id"]] = self.count + 1
            if transport.delayed:
                record["delayed"] = True
            send_event(transport, encoder, name, record)
            self.count += 1


class Traces:
    """The traces of one producer. Thread-safe.

    A trace is kept while somebody holds it, and the last `remembered_max` in any case.
    """

    def __init__(self, producer: Producer, remembered_max: int = REMEMBERED_MAX) -> None:
        self._remembered_max = remembered_max
        self._epoch = producer.epoch
        self._lock = threading.Lock()
        self._alive: weakref.WeakValueDictionary[str, Trace] = weakref.WeakValueDictionary()
        self._recent: dict[str, Trace] = {}

    def enter(self, trace_id: str) -> Trace:
        """The trace, going on where this producer was in it."""
        with self._lock:
            trace = self._alive.get(trace_id)
            if trace is None:
                trace = self._alive[trace_id] = Trace(trace_id, self._epoch)
            self._recent.pop(trace_id, None)
            self._recent[trace_id] = trace
            if len(self._recent) > self._remembered_max:
                # A trace that is forgotten and comes back starts at 0 again: in a later epoch,
                # where that number has not been used.
                for old in list(self._recent)[: self._remembered_max // 2 + 1]:
                    del self._recent[old]
                self._epoch += 1
            return trace
