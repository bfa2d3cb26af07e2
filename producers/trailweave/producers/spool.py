"""The disk spool: events that could not be sent yet, or that Kafka refused, as files.

    DIR/<producer>-<random>/lock              held (flock) while its process lives
    DIR/<producer>-<random>/00000001.segment  events, deleted when all are acknowledged
    DIR/failed/<producer>-<random>.segment    events that Kafka refused for good, with the reason
    DIR/damaged/…                             bytes that were no frame: power loss or a bad disk

Every process has a folder of its own, so that several share a spool; the folder of a dead process
is adopted by the next one, which sends what is in it. Not thread-safe: the transport calls it
under its lock.

What survives: a frame is in the operating system's page cache when `append` returns, so it outlives
the process, SIGKILL included. A power cut loses what was not yet written out: see `to_sync`. A
segment is deleted only after all its events were acknowledged; a crash in between sends them again
(the same bytes, which the join counts as duplicates), and never loses one.
"""

import fcntl
import logging
import os
import re
import uuid
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trailweave.producers.frames import Stored, write_frame
from trailweave.producers.segment import Damage, Segment, Write, create_segment, open_segment
from trailweave.schemas.errors import Fatal

log = logging.getLogger(__name__)

#: The unit of deletion: small enough to free space early, large enough for few files.
SEGMENT_BYTES_MAX: Final = 8 << 20
#: A segment that is acknowledged but still open for writing is given up above this.
RECYCLE_BYTES_MIN: Final = 1 << 20
#: What a folder is named after; file systems allow 255 bytes.
_NAME_CHARS_MAX: Final = 80

FAILED: Final = "failed"
DAMAGED: Final = "damaged"
_LOCK: Final = "lock"
_SUFFIX: Final = ".segment"


class NoRoom(Exception):
    """The event was not written: the spool's limit, or the disk. Becomes `SpoolFull` outside."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A spooled event on its way to Kafka; acknowledge it or give it back."""

    segment: Segment
    at: int
    stored: Stored


@dataclass(frozen=True, slots=True)
class _Home:
    """A folder that this process holds: its own, or a dead one's."""

    path: Path
    lock_fd: int


class Spool:
    """The part of a spool directory that this process holds.

    `bytes_max` bounds its segments, those it adopted and its failed file included.
    Raises `Fatal` when the directory can't be used.
    """

    def __init__(self, directory: Path, name: str, bytes_max: int, write: Write = os.write) -> None:
        self.directory = directory
        self.bytes_max = bytes_max
        self.bytes = 0
        #: Places that held no frame.
        self.damaged = 0
        self._write = write
        self._segments: deque[Segment] = deque()
        self._active: Segment | None = None
        self._failed: Segment | None = None
        self._number = 0
        self._adopted: list[_Home] = []
        try:
            for folder in (directory, directory / FAILED, directory / DAMAGED):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._home = _new_home(directory, name)
        except OSError as error:
            raise Fatal(
                f"couldn't use the spool directory {directory}: {error.strerror}; name another"
                " with TRAILWEAVE_PRODUCER_SPOOL"
            ) from None

    def append(self, stored: Stored) -> None:
        """Put one event at the end. Raises `NoRoom`, and then has not taken it."""
        self._put(stored, failed=False)

    def keep_failed(self, stored: Stored) -> None:
        """Keep an event that Kafka refused for good. Raises `NoRoom`."""
        self._put(stored, failed=True)

    def take(self) -> Taken | None:
        """The next event to send, oldest segment first, or None."""
        for segment in tuple(self._segments):
            while (found := segment.take()) is not None:
                if not isinstance(found, Damage):
                    return Taken(segment, *found)
                self._keep_damage(segment, found)
            self._drop_if_drained(segment)
        return None

    def acknowledge(self, taken: Taken) -> None:
        """The event is safe elsewhere; its segment goes when all of it is."""
        taken.segment.in_flight -= 1
        self._drop_if_drained(taken.segment)

    def give_back(self, taken: Taken) -> None:
        """The event was not sent: `take` returns it again."""
        taken.segment.in_flight -= 1
        taken.segment.again.append(taken.at)

    @property
    def pending(self) -> bool:
        """Whether anything here waits for Kafka's acknowledgement."""
        return any(not segment.drained for segment in self._segments)

    def recycle(self, bytes_min: int = RECYCLE_BYTES_MIN) -> None:
        """Give up a segment that is acknowledged but still open for writing."""
        active = self._active
        if active is not None and active.drained and active.size >= bytes_min:
            self._close_active()

    def to_sync(self) -> list[int]:
        """Descriptors of what only the page cache holds, to `os.fdatasync` and close.

        They are copies, so that the caller may do it without the lock, while a segment goes.
        """
        dirty = [each for each in (*self._segments, self._failed) if each and each.dirty]
        for segment in dirty:
            segment.dirty = False
        return [os.dup(segment.fd) for segment in dirty]

    def adopt(self, *, failed: bool = False) -> int:
        """Take over the folders of dead processes, and the failed files if asked to.

        Returns how many segments that gave.
        """
        before = len(self._segments)
        for folder in sorted(self.directory.iterdir()):
            if folder.name not in (FAILED, DAMAGED) and (home := _lock(folder)) is not None:
                self._adopted.append(home)
                self._adopt_segments(folder)
        if failed:
            self._adopt_segments(self.directory / FAILED)
        count = len(self._segments) - before
        self._leave_empty_homes()
        return count

    def close(self) -> None:
        """End; what is not acknowledged waits for the next process."""
        self._close_active()
        self.abandon()
        for home in (self._home, *self._adopted):
            _remove_if_empty(home.path)

    def abandon(self) -> None:
        """Close every descriptor and touch nothing: after a fork, the files are the parent's."""
        for segment in (*self._segments, self._failed):
            if segment is not None:
                os.close(segment.fd)
        self._segments.clear()
        self._active = self._failed = None
        for home in (self._home, *self._adopted):
            os.close(home.lock_fd)

    def _put(self, stored: Stored, *, failed: bool) -> None:
        frame = write_frame(stored)
        if self.bytes + len(frame) > self.bytes_max:
            raise NoRoom(
                f"couldn't spool the event: {self.directory} holds {self.bytes} bytes and its"
                f" limit is {self.bytes_max}"
            )
        try:
            segment = self._failed_file() if failed else self._writable(len(frame))
            segment.append(frame, self._write)
        except OSError as error:
            raise NoRoom(
                f"couldn't spool the event: the disk of {self.directory} took no more"
                f" ({error.strerror})"
            ) from None
        self.bytes += len(frame)

    def _writable(self, size: int) -> Segment:
        active = self._active
        if active is not None and not (active.writable and active.size + size <= SEGMENT_BYTES_MAX):
            self._close_active()
            active = None
        if active is None:
            self._number += 1
            active = create_segment(self._home.path / f"{self._number:08}{_SUFFIX}", self._write)
            self._active = active
            self._segments.append(active)
            self.bytes += active.size
        return active

    def _failed_file(self) -> Segment:
        while self._failed is None or not self._failed.writable:
            if self._failed is not None:
                os.close(self._failed.fd)
            name = f"{self._home.path.name}-{uuid.uuid4().hex[:4]}{_SUFFIX}"
            made = create_segment(self.directory / FAILED / name, self._write)
            # Held, so that nobody adopts and deletes it while this process writes to it.
            made.writable = _flock(made.fd, made.path)
            self._failed = made
        return self._failed

    def _close_active(self) -> None:
        active, self._active = self._active, None
        if active is not None:
            active.writable = False
            self._drop_if_drained(active)

    def _drop_if_drained(self, segment: Segment) -> None:
        if segment.writable or not segment.drained or segment not in self._segments:
            return
        self._segments.remove(segment)
        self.bytes -= segment.size
        os.close(segment.fd)
        segment.path.unlink(missing_ok=True)
        if segment.adopted:
            self._leave_empty_homes()

    def _adopt_segments(self, folder: Path) -> None:
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            segment = open_segment(path)
            if folder.name == FAILED and not _flock(segment.fd, path):
                os.close(segment.fd)
                continue
            self._segments.append(segment)
            self.bytes += segment.size
            self._drop_if_drained(segment)

    def _leave_empty_homes(self) -> None:
        used = {segment.path.parent for segment in self._segments}
        for home in [home for home in self._adopted if home.path not in used]:
            self._adopted.remove(home)
            # Removed before it is unlocked: who waits for the lock sees that the file is gone.
            _remove_if_empty(home.path)
            os.close(home.lock_fd)

    def _keep_damage(self, segment: Segment, damage: Damage) -> None:
        self.damaged += 1
        log.error(
            "couldn't read %d bytes at %d of the spool's %s; they are kept in %s",
            len(damage.found), damage.at, segment.path.name, self.directory / DAMAGED,
        )  # fmt: skip
        name = f"{segment.path.parent.name}-{segment.path.stem}-{damage.at}"
        try:
            (self.directory / DAMAGED / name).write_bytes(damage.found)
        except OSError as error:
            log.error("couldn't keep them: %s", error.strerror)  # noqa: TRY400 - no trace needed


def _new_home(directory: Path, name: str) -> _Home:
    """A folder that nobody else holds."""
    plain = re.sub(r"[^A-Za-z0-9.@-]+", "_", name)[:_NAME_CHARS_MAX]
    while True:
        folder = directory / f"{plain}-{uuid.uuid4().hex[:12]}"
        folder.mkdir(mode=0o700)
        (folder / _LOCK).touch(mode=0o600)
        # Another process may have taken it for a dead one's in between, and removed it.
        home = _lock(folder)
        if home is not None:
            return home


def _lock(folder: Path) -> _Home | None:
    """Hold the folder, if it is one of the spool's and nobody else does."""
    try:
        fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    if _flock(fd, folder / _LOCK):
        return _Home(folder, fd)
    os.close(fd)
    return None


def _flock(fd: int, path: Path) -> bool:
    """Hold the file, if nobody does and it is still the one at `path`.

    It may have been removed, and even made anew, between opening and locking it.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def _remove_if_empty(folder: Path) -> None:
    if any(folder.glob(f"*{_SUFFIX}")):
        return
    try:
        (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()
    except OSError as error:
        log.warning("couldn't remove %s from the spool: %s", folder, error.strerror)
