"""CPU and memory of a process and of all that it started, while it runs. Reads `/proc`: Linux only.

Sampled often and kept with its time, so that what a measurement took can be read afterwards for
any span of it, however the process says when it began and what tells that it is done.
"""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

#: Fine enough for runs of a second; a sample of a few processes costs a tenth of a millisecond.
SAMPLE_EVERY_S: Final = 0.05
#: Adding up the pages of a large process takes milliseconds.
MEMORY_EVERY_S: Final = 0.5
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Usage:
    """Samples of a process tree: (wall clock, CPU seconds so far), and the most memory seen."""

    cpu: list[tuple[float, float]] = field(default_factory=list)
    peak_bytes: int = 0

    def cpu_s(self, begin: float, end: float) -> float:
        """CPU seconds between two moments of the wall clock."""
        return self._at(end) - self._at(begin)

    def _at(self, moment: float) -> float:
        return min(self.cpu, key=lambda sample: abs(sample[0] - moment))[1]


class Watch:
    """Samples process trees in a thread, from entering it to leaving it."""

    def __init__(self, **pids: int) -> None:
        self.usage = {name: Usage() for name in pids}
        self._pids = pids
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._sample(memory=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._sample(memory=True)

    def _run(self) -> None:
        look_at = 0.0
        while not self._done.wait(SAMPLE_EVERY_S):
            memory = time.monotonic() > look_at
            if memory:
                look_at = time.monotonic() + MEMORY_EVERY_S
            self._sample(memory)

    def _sample(self, memory: bool) -> None:
        for name, pid in self._pids.items():
            usage, pids = self.usage[name], list(tree(pid))
            spent = sum(_cpu_s(each) for each in pids)
            if spent:  # a tree that has ended tells nothing more
                # The kernel may leave a child out of a list; what was spent never gets less.
                before = usage.cpu[-1][1] if usage.cpu else 0.0
                usage.cpu.append((time.time(), max(spent, before)))
            if memory:
                usage.peak_bytes = max(usage.peak_bytes, sum(map(memory_bytes, pids)))


def tree(pid: int) -> Iterator[int]:
    """The process and those below it, as far as they still run."""
    yield pid
    try:
        tasks = [task.name for task in Path(f"/proc/{pid}/task").iterdir()]
        lists = [Path(f"/proc/{pid}/task/{task}/children").read_text() for task in tasks]
    except OSError:
        return
    for child in " ".join(lists).split():
        yield from tree(int(child))


def _cpu_s(pid: int) -> float:
    """Its own CPU seconds and those of its children that have ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS_PER_S


def memory_bytes(pid: int) -> int:
    """Proportional set size: pages that several processes share count once in all."""
    return _rollup(pid, "Pss:")


def anonymous_bytes(pid: int) -> int:
    """Memory that is no file's. Proportional size grows when another process ends with which a
    program shared its libraries.
    """
    return _rollup(pid, "Anonymous:")


def _rollup(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
