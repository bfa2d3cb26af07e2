"""Runs one child process and stops it when the process that asked for it goes away.

`child.py` starts this file as a script, by its path and with the standard library alone, so that
it is up in milliseconds and an engine's own imports can't break it. It knows nothing of engines.

The one who asks holds the other end of our standard input. A pipe closes however its holder dies,
SIGKILL included, and on every POSIX system; nothing has to be asked of the dying process.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

#: A forked copy of the parent may hold the pipe open after the parent's death; so we also look,
#: this often, whether we were handed to another parent.
PARENT_CHECK_S = 1.0
PR_SET_PDEATHSIG = 1


def main() -> int:
    """Start the command, tell its process id on standard output, return its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--grace-s", type=float, required=True)
    parser.add_argument("--keep-fd", type=int, required=True)
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    wake = _wake_on(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    child = _start(asked.command, asked.keep_fd)
    os.write(1, b"%d\n" % child.pid)
    _wait_for_reason_to_stop(child, wake, asked.parent)
    return _stop(child, asked.grace_s)


def _wake_on(*signals: signal.Signals) -> int:
    """A descriptor that gets a byte, the signal's number, for each of these signals."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in signals:
        # The wakeup descriptor is written only for signals that have a Python handler.
        signal.signal(number, lambda *_: None)
    return reader


def _start(command: list[str], keep_fd: int) -> subprocess.Popen[bytes]:
    # The child holds the data directory's lock too: the directory is free only when the engine
    # itself is gone, whatever happened to those above it. preexec_fn is safe here, because this
    # process has one thread; the same goes for the death signal, which is bound to that thread.
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=2,
        pass_fds=(keep_fd,),
        preexec_fn=_die_with_guard if sys.platform == "linux" else None,  # noqa: PLW1509  (one thread)
    )


def _die_with_guard() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_for_reason_to_stop(child: subprocess.Popen[bytes], wake: int, parent: int) -> None:
    while child.poll() is None and os.getppid() == parent:
        ready, _, _ = select.select([0, wake], [], [], PARENT_CHECK_S)
        if wake in ready and set(os.read(wake, 64)) & {signal.SIGTERM, signal.SIGINT}:
            return
        if 0 in ready and not os.read(0, 64):
            return


def _stop(child: subprocess.Popen[bytes], grace_s: float) -> int:
    deadline = time.monotonic() + grace_s
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    with contextlib.suppress(OSError):
        os.write(1, b"exit %d\n" % child.returncode)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
