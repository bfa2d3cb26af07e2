"""One engine process under a guard: started, waited for, stopped or killed.

Used by `kafka.py` and `clickhouse.py`, which know what to run and how to tell that it is ready.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trailweave.deploy.local import guard
from trailweave.deploy.local.errors import EngineError

log = logging.getLogger(__name__)

READY_POLL_S = 0.02
LOG_TAIL_LINES = 15
#: The guard's own end after the engine's: it only has to report the exit code.
GUARD_END_S = 5.0


class Child:
    """A running engine. `stop` and `kill` may be called again, from any thread."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        lock_fd: int,
        console: Path,
        *,
        grace_s: float,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.console = console
        self.grace_s = grace_s
        self._ending = threading.Lock()
        guarded = [sys.executable, "-I", "-S", guard.__file__]
        guarded += ["--parent", str(os.getpid()), "--grace-s", str(grace_s)]
        guarded += ["--keep-fd", str(lock_fd), "--", *command]
        with console.open("wb") as output:
            self._guard = subprocess.Popen(
                guarded,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                pass_fds=(lock_fd,),
                env=None if env is None else {**os.environ, **env},
                # Ctrl-C goes to a terminal's whole group; whoever runs us decides on the order
                # in which things stop, so it must not reach the engine by itself.
                start_new_session=True,
            )
        first = self._guard.stdout.readline() if self._guard.stdout else b""
        if not first:
            self._guard.wait()
            raise EngineError(f"couldn't start {name}: {self.log_tail()}")
        self.pid = int(first)

    @property
    def running(self) -> bool:
        """Whether the engine process lives."""
        return self._guard.poll() is None

    def wait_ready(self, is_ready: Callable[[], bool], timeout_s: float) -> None:
        """Return once `is_ready` says so; raise `EngineError` if the engine ends or is late."""
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            if not self.running:
                raise EngineError(
                    f"couldn't start {self.name}: it ended with code {self._guard.returncode};"
                    f" the end of its log: {self.log_tail()}"
                )
            if time.monotonic() >= deadline:
                raise EngineError(
                    f"couldn't start {self.name}: no answer within {timeout_s:.0f} s;"
                    f" the end of its log: {self.log_tail()}"
                )
            time.sleep(READY_POLL_S)

    def stop(self) -> None:
        """Ask the engine to end, wait for it, kill it when it takes too long."""
        with self._ending:
            if self.running:
                if self._guard.stdin is not None:
                    with contextlib.suppress(OSError):
                        self._guard.stdin.close()
                # A forked copy of this process may hold the pipe open; the signal gets through.
                self._guard.send_signal(signal.SIGTERM)
            self._reap(self.grace_s + GUARD_END_S)

    def kill(self) -> None:
        """End the engine as a power cut of the process would: SIGKILL, nothing flushed."""
        with self._ending:
            # While the guard lives it hasn't reaped the engine, or is about to end: the process
            # id can't have been given to another process before we read `running` as false.
            if self.running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            self._reap(GUARD_END_S)

    def log_tail(self) -> str:
        """The last lines that the engine wrote to its console."""
        lines = self.console.read_text(errors="replace").splitlines()
        return "\n".join(["", *lines[-LOG_TAIL_LINES:]]) if lines else f"{self.console} is empty"

    def _reap(self, timeout_s: float) -> None:
        try:
            code = self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.warning("%s did not end within %.0f s; killing it", self.name, timeout_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._guard.kill()
            code = self._guard.wait()
        for pipe in (self._guard.stdin, self._guard.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        log.debug("%s ended with code %d", self.name, code)
