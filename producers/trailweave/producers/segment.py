"""One file of the spool: appended whole frames, read from the front, deleted when acknowledged."""

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trailweave.producers.frames import HEAD_BYTES, MAGIC, PAYLOAD_BYTES_MAX, Stored, read_frame

#: One read takes some hundred events; a frame that is longer gets a read of its own.
_WINDOW_BYTES: Final = 256 << 10

#: `os.write`, or a test's disk.
Write = Callable[[int, bytes], int]


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment that are no frame, or whose CRC is wrong."""

    at: int
    found: bytes


@dataclass(slots=True, eq=False)
class Segment:
    """A file of frames, and how far it was read and acknowledged."""

    path: Path
    fd: int
    size: int
    #: Of another process: its events are in that one's counts, not in ours.
    adopted: bool = False
    #: This process may still append to it.
    writable: bool = False
    #: Written since the last sync.
    dirty: bool = False
    read_at: int = len(MAGIC)
    in_flight: int = 0
    #: Places of events that were taken and given back.
    again: deque[int] = field(default_factory=deque)
    _window: bytes = b""
    _window_at: int = 0

    @property
    def drained(self) -> bool:
        """Everything in it so far is acknowledged."""
        return self.read_at >= self.size and not self.in_flight and not self.again

    def append(self, frame: bytes, write: Write) -> None:
        """Write the whole frame, or nothing and raise OSError."""
        try:
            done = 0
            while done < len(frame):
                done += write(self.fd, frame[done:] if done else frame)
        except OSError:
            # Half a frame in the middle would hide those that follow it: until it is gone, and
            # if it can't be removed, nothing more is written here.
            self.writable = False
            os.ftruncate(self.fd, self.size)
            self.writable = True
            raise
        self.size += len(frame)
        self.dirty = True

    def take(self) -> tuple[int, Stored] | Damage | None:
        """The next event and its place, bytes that are none, or None at the end.

        The place goes into `again` if the event could not be sent.
        """
        if self.again:
            at = self.again.popleft()
            found = self._frame_at(at)
            # The frame was whole a moment ago; now it is not, and its place is passed over.
            if found is None or found[0] is None:
                return Damage(at, b"")
            self.in_flight += 1
            return at, found[0]
        if self.read_at >= self.size:
            return None
        at = self.read_at
        found = self._frame_at(at)
        if found is None:
            self.read_at = self.size
            return Damage(at, os.pread(self.fd, self.size - at, at))
        stored, self.read_at = found
        if stored is None:
            return Damage(at, os.pread(self.fd, self.read_at - at, at))
        self.in_flight += 1
        return at, stored

    def _frame_at(self, at: int) -> tuple[Stored | None, int] | None:
        """The event there (None: damaged) and where the next frame begins; None: no frame."""
        found = read_frame(self._window, at - self._window_at) if self._covers(at) else None
        if found is None:
            self._read_window(at, _WINDOW_BYTES)
            found = read_frame(self._window, 0)
        if found is None and self.size - at > len(self._window):
            self._read_window(at, HEAD_BYTES + PAYLOAD_BYTES_MAX)
            found = read_frame(self._window, 0)
        return None if found is None else (found[0], self._window_at + found[1])

    def _covers(self, at: int) -> bool:
        return self._window_at <= at < self._window_at + len(self._window)

    def _read_window(self, at: int, size: int) -> None:
        self._window, self._window_at = os.pread(self.fd, min(size, self.size - at), at), at


def create_segment(path: Path, write: Write) -> Segment:
    """A new file, open for writing; nothing is left of it when that fails with OSError."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    segment = Segment(path, fd, 0, writable=True, dirty=True)
    try:
        segment.append(MAGIC, write)
    except OSError:
        os.close(fd)
        path.unlink()
        raise
    return segment


def open_segment(path: Path) -> Segment:
    """A file that a dead process left."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    size = os.fstat(fd).st_size
    # Without the magic nothing in it can be trusted to be frames: all of it is damage. A file
    # that ends inside the magic was killed while it was made, and never held an event.
    whole = size >= len(MAGIC) and os.pread(fd, len(MAGIC), 0) == MAGIC
    return Segment(path, fd, size, adopted=True, read_at=len(MAGIC) if whole else 0)
