"""What carries encoded events away from the caller, and the one door to it.

`send_event` is the only place that says which topic an event goes to and that its Kafka key is
its trace id; the Recorder and the adapters of outside formats use it. Transports:
`kafka.KafkaTransport` and `memory.MemoryTransport`.
"""

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any, Final, Protocol

from trailweave.schemas import events
from trailweave.schemas.codec import EVENT_BYTES_MAX, TENANT_BYTES_MAX, Encoder
from trailweave.schemas.errors import Fatal, Rejected, Retryable

#: Names longer than this in a message would hide the rest of it.
_SHOWN_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the events: recorded = delivered + buffered + spooled + failed, always."""

    #: Accepted from the caller.
    recorded: int = 0
    #: Acknowledged by Kafka.
    delivered: int = 0
    #: In memory, not yet acknowledged: what a SIGKILL now would lose.
    buffered: int = 0
    #: On disk, not yet acknowledged.
    spooled: int = 0
    #: Refused by Kafka for good; each is in the spool's `failed` folder.
    failed: int = 0
    #: Of a dead process, delivered from its part of the spool; not in the sum above.
    adopted: int = 0
    #: Places of the spool that power loss or a bad disk left unreadable; kept in `damaged`.
    damaged: int = 0

    def __str__(self) -> str:
        return (
            f"recorded {self.recorded} = delivered {self.delivered} + in memory {self.buffered}"
            f" + spooled {self.spooled} + failed {self.failed}"
        )


class SpoolFull(Retryable):
    """Memory and spool can take no further event. It was not recorded; nothing else was lost."""

    def __init__(self, why: str, counts: Counts) -> None:
        super().__init__(f"{why}; {counts}")
        self.counts = counts


class EventTooLarge(Rejected):
    """The event exceeds `EVENT_BYTES_MAX`; it was not recorded."""

    def __init__(self, name: str, size: int, largest: str) -> None:
        super().__init__(
            "too_large",
            f"couldn't record {name}: it has {size} bytes, the limit is {EVENT_BYTES_MAX};"
            f" largest fields: {largest}",
        )


class TransportClosed(Fatal):
    """The transport was closed, or belongs to the process this one was forked from."""


_last_epoch = 0
_epochs = threading.Lock()


def _new_epoch() -> int:
    """Now in microseconds, and never the same twice in a process."""
    global _last_epoch  # noqa: PLW0603 - two recorders of one process must not share an epoch
    with _epochs:
        _last_epoch = max(_last_epoch + 1, time.time_ns() // 1000)
        return _last_epoch


@dataclass(frozen=True, slots=True)
class Producer:
    """Who writes: one recorder of one process. Sequences count within `epoch`."""

    producer_id: str
    tenant: str
    epoch: int = field(default_factory=_new_epoch)
    host: str = field(default_factory=socket.gethostname)

    def __post_init__(self) -> None:
        if not 0 < len(self.tenant.encode()) <= TENANT_BYTES_MAX:
            raise Fatal(
                f"couldn't use the tenant {self.tenant!r}: it must have 1 to {TENANT_BYTES_MAX}"
                " bytes"
            )


_names: Counter[str] = Counter()


def producer_name(workload: str) -> str:
    """A producer id that nobody else has: workload, host and pid, and a number from the second."""
    name = f"{workload}@{socket.gethostname()}:{os.getpid()}"
    with _epochs:
        _names[name] += 1
        return name if _names[name] == 1 else f"{name}:{_names[name]}"


class Transport(Protocol):
    """Carries bytes to their topic. Every method may be called from any thread.

    Durability: once `send` has returned, the event is delivered, in memory, on disk or in the
    failed file, and `counts` says so; only a crash of the process can lose what is in memory.
    Blocking: `send` never waits for the network; it may wait for room if it was told to.
    """

    @property
    def delayed(self) -> bool:
        """Whether events sent now will reach Kafka late: their bytes should say so."""
        ...

    @property
    def counts(self) -> Counts: ...

    def start(self, producer: Producer) -> None:
        """Begin, in the name of `producer`. Called once, before the first `send`."""
        ...

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        """Take the event. Raises `SpoolFull` or `TransportClosed`, and then has not taken it."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything taken is delivered or failed; False when it took too long."""
        ...

    def close(self, timeout_s: float | None = None) -> None:
        """Deliver for a bounded time, put the rest on disk, end. May be called again."""
        ...


@cache
def default_encoder() -> Encoder:
    """The process's encoder: compiling the writers takes a tenth of a second, once."""
    return Encoder()


@cache
def _topic_of(name: str) -> str:
    return events.event_types()[name].topic


def library_version() -> str:
    """The version of this library, or `unknown` in an odd installation."""
    try:
        return metadata.version("trailweave")
    except metadata.PackageNotFoundError:
        return "unknown"


def send_event(
    transport: Transport, encoder: Encoder, name: str, record: Mapping[str, Any]
) -> None:
    """Encode and send one event: topic by its type, key = its trace id.

    Raises `EventTooLarge`, `Rejected`, `SpoolFull` or `TransportClosed`; then it was not taken.
    """
    value = encoder.encode(name, record)
    if len(value) > EVENT_BYTES_MAX:
        raise EventTooLarge(name, len(value), _largest(record))
    transport.send(_topic_of(name), record["trace_id"].encode(), value)


def _largest(record: Mapping[str, Any]) -> str:
    """The names of the fields with the most in them, never what is in them."""
    sizes = sorted(((len(repr(value)), name) for name, value in record.items()), reverse=True)
    return ", ".join(f"{name} (about {size})" for size, name in sizes[:_SHOWN_MAX])
