"""A transport for tests of programs that record: it keeps everything, and sends nothing."""

import threading
from dataclasses import dataclass
from typing import Any

from trailweave.producers.transport import Counts, Producer, TransportClosed
from trailweave.schemas import events
from trailweave.schemas.codec import Decoder
from trailweave.schemas.events import Event


@dataclass(frozen=True, slots=True)
class Sent:
    """One record as Kafka would have got it."""

    topic: str
    key: bytes
    value: bytes


class MemoryTransport:
    """A `Transport` whose `sent` and `events` a test can look at. Unbounded.

    transport = MemoryTransport()
    with Recorder(tenant="acme", agent="clerk", transport=transport) as recorder:
        ...
    assert transport.names == ["session_started", "session_ended"]
    """

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.producer: Producer | None = None
        self.closed = False
        #: Set it to see what a program records while Kafka is away.
        self.delayed = False
        self._lock = threading.Lock()
        self._decoder: Decoder | None = None

    @property
    def counts(self) -> Counts:
        """Everything counts as delivered at once."""
        return Counts(recorded=len(self.sent), delivered=len(self.sent))

    @property
    def events(self) -> list[Event]:
        """What was sent, decoded, every field there."""
        decoder = self._decoder = self._decoder or Decoder()
        return [Event(*decoder.decode(sent.value)) for sent in self.sent]

    @property
    def names(self) -> list[str]:
        """The types of what was sent, in order."""
        return [event.name for event in self.events]

    def of(self, name: str) -> list[dict[str, Any]]:
        """The records of one event type, in order."""
        if name not in events.event_types():
            raise KeyError(f"there is no event type {name!r}")
        return [event.record for event in self.events if event.name == name]

    def start(self, producer: Producer) -> None:
        """Begin, in the name of `producer`."""
        self.producer = producer

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        """Keep it."""
        with self._lock:
            if self.closed or self.producer is None:
                raise TransportClosed("couldn't send: the transport is closed or was not started")
            self.sent.append(Sent(topic, key, value))

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002 - the protocol's argument
        """Nothing to wait for."""
        return True

    def close(self, timeout_s: float | None = None) -> None:  # noqa: ARG002 - as above
        """Take no more; what was sent stays to be looked at."""
        self.closed = True
