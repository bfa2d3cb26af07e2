"""What the joins that `make bench-peers` compares are told, and what they say back.

Each is a program in a process of its own. All are told how many events a trace has and what to
carry of an event, so that they end a trace at the same moment and write the same bytes: every event
of the trace behind its length. Standard library only: most run in an environment without ours.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

#: Of every event's bytes: framing (10) and a length (1), then the event id.
ID_AT, ID_END = 11, 47


@dataclass(frozen=True, slots=True)
class Told:
    """One run of one program."""

    broker: str
    topics: list[str]
    out: str
    per_trace: int
    #: `bytes`: whole events; `ids`: their ids only.
    carry: str
    partitions: int
    state: Path

    def piece(self, value: bytes) -> bytes:
        """What the join keeps of one event: its length and itself."""
        kept = value if self.carry == "bytes" else value[ID_AT:ID_END]
        return len(kept).to_bytes(4) + kept


def arguments() -> Told:
    """From the command line."""
    broker, topics, out, per_trace, carry, partitions, state = sys.argv[1:8]
    whole = topics.split(",")
    return Told(broker, whole, out, int(per_trace), carry, int(partitions), Path(state))


def first() -> None:
    """Say that the first event has come."""
    # Not through `sys.stdout`, which Faust turns into its log.
    os.write(1, f"first {time.time()}\n".encode())
