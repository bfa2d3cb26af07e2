"""Keeps the parts of `trailweave up` running, and stops them in order.

A part is an engine or a worker process. One that ends by itself is started again after a pause
that doubles; what ended, and what is being done about it, is said each time.
"""

import logging
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from trailweave.deploy.local.child import Child
from trailweave.deploy.local.datadir import DataDir
from trailweave.deploy.local.errors import EngineError
from trailweave.schemas.errors import TrailError

log = logging.getLogger(__name__)

CHECK_S: Final = 0.2
BACKOFF_FIRST_S: Final = 0.5
#: A part that keeps dying is tried twice a minute: often enough to heal, seldom enough to read.
BACKOFF_MAX_S: Final = 30.0
#: A part that ran this long had recovered; its next end begins with a short pause again.
STEADY_S: Final = 60.0
#: A worker commits its batch and goes; a batch is bounded by the transaction timeout.
WORKER_GRACE_S: Final = 25.0


class Part(Protocol):
    """Something that runs beside us.

    `start` returns once it works and raises `TrailError`; `stop` ends it cleanly and may be called
    again, also when it has ended by itself.
    """

    @property
    def running(self) -> bool: ...

    def start(self) -> object: ...

    def stop(self) -> None: ...


class Worker:
    """One worker as a process of its own, which ends when this process is gone."""

    def __init__(
        self, command: str, arguments: Sequence[str], env: Mapping[str, str], folder: Path
    ) -> None:
        self.command = command
        self.console = folder / f"{command}.log"
        self._arguments = arguments
        self._env = env
        self._folder = folder
        self._child: Child | None = None
        self._dir: DataDir | None = None

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int:
        """The process id; raises `EngineError` before the start."""
        if self._child is None:
            raise EngineError(f"couldn't tell the process id of {self.command}: it isn't running")
        return self._child.pid

    def start(self) -> None:
        """Start the process; it shows by running on that its settings were good."""
        self.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        if self.console.exists():
            # What the last one said before it died is what a person will look for.
            self.console.replace(self.console.with_suffix(".previous.log"))
        self._dir = folder = DataDir(self._folder / self.command)
        self._child = Child(
            self.command,
            [sys.executable, "-m", "trailweave.deploy.cli", self.command, *self._arguments],
            folder.lock_fd,
            self.console,
            grace_s=WORKER_GRACE_S,
            env=self._env,
        )

    def stop(self) -> None:
        """Ask it to drain, and wait."""
        if self._child is not None:
            self._child.stop()
        if self._dir is not None:
            self._dir.release()
        self._child = self._dir = None

    def last_words(self) -> str:
        """The last line that it wrote."""
        try:
            lines = self.console.read_text("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""


@dataclass(slots=True)
class _Watched:
    name: str
    part: Part
    started_at: float = 0.0
    pause_s: float = BACKOFF_FIRST_S
    #: When to start it again; None while it runs.
    due_at: float | None = None
    restarts: int = 0


@dataclass(slots=True)
class Supervisor:
    """Starts parts in the order of `add`, watches them, stops them in the opposite order."""

    _parts: list[_Watched] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str, part: Part, *, started: bool = False) -> None:
        """Take over a part, starting it unless it runs. Raises what its start raises."""
        watched = _Watched(name, part)
        self._parts.append(watched)
        if not started:
            part.start()
        watched.started_at = time.monotonic()

    @property
    def restarts(self) -> dict[str, int]:
        """How often each part had to be started again."""
        return {watched.name: watched.restarts for watched in self._parts}

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set."""
        while not stop.wait(CHECK_S):
            self.check(time.monotonic())

    def check(self, now: float) -> None:
        """Start again what has ended and is due."""
        for watched in self._parts:
            if watched.due_at is not None:
                if now >= watched.due_at:
                    self._restart(watched, now)
            elif not watched.part.running:
                self._plan(watched, now)

    def stop(self) -> None:
        """Stop everything: workers drain before the engines that they need go away."""
        while self._parts:
            watched = self._parts.pop()
            log.info("stopping %s", watched.name)
            try:
                watched.part.stop()
            except TrailError as error:
                log.warning("%s", error)

    def _plan(self, watched: _Watched, now: float) -> None:
        if now - watched.started_at > STEADY_S:
            watched.pause_s = BACKOFF_FIRST_S
        words = watched.part.last_words() if isinstance(watched.part, Worker) else ""
        log.warning(
            "%s ended by itself%s; starting it again in %.1f s",
            watched.name,
            f" ({words})" if words else "",
            watched.pause_s,
        )
        watched.due_at = now + watched.pause_s
        watched.pause_s = min(watched.pause_s * 2, BACKOFF_MAX_S)

    def _restart(self, watched: _Watched, now: float) -> None:
        try:
            # An engine releases its directory first.
            watched.part.stop()
            watched.part.start()
        except TrailError as error:
            watched.due_at = now + watched.pause_s
            watched.pause_s = min(watched.pause_s * 2, BACKOFF_MAX_S)
            log.warning("%s; trying again in %.1f s", error, watched.due_at - now)
            return
        watched.due_at, watched.started_at = None, now
        watched.restarts += 1
        log.warning("%s runs again", watched.name)
