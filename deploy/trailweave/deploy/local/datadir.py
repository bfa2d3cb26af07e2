"""An engine's data directory: who may use it, and the ports it was last reached on.

Used by `kafka.py` and `clickhouse.py`. Knows nothing of what the engines keep in there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from trailweave.deploy.local.errors import DataDirInUseError, EngineError

#: An engine whose parent was killed takes about a second to go; a start right after it waits.
LOCK_WAIT_S = 5.0
LOCK_POLL_S = 0.05
#: Below the range from which Linux and macOS take the ports of outgoing connections, so that a
#: remembered port isn't lost to a passing client between two starts.
PORTS = range(20_000, 32_000)
PORT_TRIES_MAX = 200


class DataDir:
    """Holds the lock on one directory from `__init__` to `release`.

    The lock belongs to the open file behind `lock_fd`. The engine inherits that descriptor, so the
    directory stays locked while the engine lives, even when this process was killed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.lock_fd = _lock(self.path / "lock")

    def release(self) -> None:
        """Give the directory back. Only after the engine is gone; again is harmless."""
        if self.lock_fd < 0:
            return
        # Explicitly: a forked copy of this process may still hold the descriptor.
        fcntl.flock(self.lock_fd, fcntl.LOCK_UN)
        os.close(self.lock_fd)
        self.lock_fd = -1

    def ports(self) -> dict[str, int]:
        """The ports of the last start, by name; empty before the first."""
        try:
            kept = json.loads((self.path / "ports.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return {str(name): int(port) for name, port in kept.items()}

    def keep_ports(self, ports: Mapping[str, int]) -> None:
        """Remember the ports for the next start."""
        write_whole(self.path / "ports.json", json.dumps(dict(ports)) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a crash leaves either the old text or the new one."""
    beside = path.with_name(path.name + ".new")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on at this moment."""
    for port in random.SystemRandom().sample(PORTS, PORT_TRIES_MAX):
        if is_free(port, host):
            return port
    raise EngineError(f"couldn't find a free port on {host} from {PORTS.start} to {PORTS.stop}")


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on the port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do; without it, the closed connections of the last run would hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def choose_port(asked: int, kept: int | None, what: str, host: str = "127.0.0.1") -> int:
    """The port asked for, else the one of the last start, else a free one."""
    port = asked or kept
    if port is None:
        return free_port(host)
    if not is_free(port, host):
        known = "asked for" if asked else "of the last start"
        raise EngineError(
            f"couldn't start {what}: port {port} ({known}) on {host} is taken;"
            f" stop what listens there or name another port"
        )
    return port


def _lock(path: Path) -> int:
    lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock_fd, 0)
            os.pwrite(lock_fd, b"%d\n" % os.getpid(), 0)
            return lock_fd
        if time.monotonic() >= deadline:
            holder = os.pread(lock_fd, 32, 0).decode().strip() or "unknown"
            os.close(lock_fd)
            raise DataDirInUseError(
                f"couldn't use {path.parent}: an engine started by process {holder} runs on it;"
                f" stop it or name another data directory"
            )
        time.sleep(LOCK_POLL_S)
