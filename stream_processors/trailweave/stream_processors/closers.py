"""Closings on several cores: a join worker's child processes, and its own share. Edge.

Decoding, rules, hashes and encoding are three quarters of a worker's time, and pure Python on one
core. `Closers.begin` splits what is due between the children and the worker itself; while they are
at it, the worker commits the batch before, closes of its own share as long as the broker lets it
wait (`close_one`), and folds the next batch; `Closers.finish` closes what is left of that share and
gives all of it back in the order in which it was due. Closing is pure, so it may go on beside a
commit whose outcome nobody knows yet: what was closed is dropped with the batch. A child holds no
state and talks to nobody but its worker: the records are the same bytes, whoever made them.
Whatever goes wrong with a child, the worker still has its sessions and closes them itself.
"""

import atexit
import contextlib
import heapq
import logging
import marshal
import signal
import socket
import struct
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, Pipe
from multiprocessing.context import SpawnProcess
from typing import Any, Final, Literal, NamedTuple

from trailweave.schemas import events
from trailweave.schemas.codec import Encoder
from trailweave.schemas.errors import Reason
from trailweave.schemas.garbage import rare_collections
from trailweave.stream_processors.chain import Source, event_decoder
from trailweave.stream_processors.closing import Sealed, close, seal
from trailweave.stream_processors.lanes import Lane, Refused, Turn
from trailweave.stream_processors.own_rules import own_rules
from trailweave.stream_processors.session import Session
from trailweave.stream_processors.verdict import Own, RulesConfig

log = logging.getLogger(__name__)

#: Fewer events than this are closed before a child would have answered.
EVENTS_MIN: Final = 300
#: What is shared out at once: bounds what worker and children hold beside the sessions themselves.
ROUND_BYTES_MAX: Final = 64 * 1024 * 1024
#: A child that neither reads nor answers for so long is ended; below `max.poll.interval.ms`.
STALL_S: Final = 60
#: Between two starts of children that ended before they were ready.
RESTART_WAIT_S: Final = 30.0
#: Sessions in one message to a child, which begins with the first: about a quarter of a megabyte.
_PART_SESSIONS: Final = 32
#: Both ends of a pipe: a share is sent in fewer turns of its two processes.
_PIPE_BYTES: Final = 1024 * 1024

_READY: Final = b"ready"
#: Sent by the terminal or the service manager to all of the group; the worker decides.
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM)


class Due(NamedTuple):
    """A session that a lane wants closed in a turn."""

    lane: Lane
    turn: Turn
    session: Session
    reason: str


class Job(NamedTuple):
    """What a child is told of one of them, and of its turn: as plain as `marshal` takes it, which
    carries bytes three times as fast as `pickle` does.
    """

    reason: str
    key: bytes
    values: list[bytes]
    #: The session's arrays, as bytes.
    places: bytes
    times: bytes
    clock_ms: int
    number: int
    partition: int


#: None: not to be closed yet. `elsewhere`: the worker must close it.
Answer = Sealed | Literal["elsewhere"] | None

#: Closes one session in the worker; None when it is not to be closed yet.
Here = Callable[[Due], Sealed | None]


@dataclass(slots=True, eq=False)
class _Child:
    process: SpawnProcess
    pipe: Connection
    ready: bool = False


@dataclass(slots=True, eq=False)
class _Round:
    """What was shared out and is not collected yet."""

    due: list[Due] = field(default_factory=list)
    #: Children with what they were sent, by index in `due`.
    sent: list[tuple[_Child, list[int]]] = field(default_factory=list)
    #: The worker's own share, what is left of it; and what became of the rest.
    own: deque[int] = field(default_factory=deque)
    answers: dict[int, Answer] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Pace:
    """What the worker does while its children work, and how fast they and it close, as measured.

    Waiting for a commit counts, as far as it has nothing left to close meanwhile: the children need
    not wait for the worker then. For messages it waits hardly at all while they are at work.
    """

    #: Seconds per byte of the worker, and of a child, which takes jobs and answers out and in.
    own: float = 0.0
    theirs: float = 0.0
    #: Seconds.
    beside: float = 0.0
    _begun_s: float = 0.0
    _own_s: float = 0.0
    _own_bytes: int = 0

    def begun(self) -> None:
        """The children have their shares."""
        self._begun_s = time.monotonic()
        self._own_s, self._own_bytes = 0.0, 0

    def closed(self, size: int, seconds: float) -> None:
        """The worker itself has closed a session of `size` bytes."""
        self._own_s += seconds
        self._own_bytes += size

    def finishing(self) -> None:
        """The worker has done what else there was to do."""
        self.beside = time.monotonic() - self._begun_s - self._own_s

    def answered(self, size: int, seconds: float) -> None:
        """A child has closed its share of `size` bytes."""
        self.theirs = seconds / size

    def finished(self) -> None:
        """The worker has closed its own share, too."""
        if self._own_bytes:
            self.own = self._own_s / self._own_bytes


@dataclass(slots=True, eq=False)
class Closers:
    """The children of one worker, up to `count`; 0: it closes everything itself.

    Sessions are closed without them until they are ready. Not thread-safe.
    """

    count: int
    config: RulesConfig
    #: Called for each child that ended by itself.
    on_lost: Callable[[], None] = lambda: None
    _children: list[_Child] = field(default_factory=list)
    #: Monotonic time before which no child is started.
    _start_at: float = 0.0
    _closed: list[tuple[Due, Sealed]] = field(default_factory=list)
    #: Closed sessions that still hold their events.
    _spent: list[Session] = field(default_factory=list)
    _round: _Round = field(default_factory=_Round)
    _pace: _Pace = field(default_factory=_Pace)

    @property
    def ready(self) -> int:
        """How many children take part."""
        return sum(child.ready for child in self._children)

    @property
    def busy(self) -> bool:
        """Whether children still work on what was begun."""
        return bool(self._round.sent)

    def start(self) -> None:
        """Start those that are not there; `begin` does it for one that was lost."""
        if len(self._children) == self.count or time.monotonic() < self._start_at:
            return
        # Before multiprocessing's own: it would wait for children that nobody told to end.
        atexit.unregister(self.stop)
        atexit.register(self.stop)
        try:
            while len(self._children) < self.count:
                self._children.append(_started(self.config))
        except OSError as error:
            self._start_at = time.monotonic() + RESTART_WAIT_S
            log.warning("couldn't start a child for closings: %s", error)

    def begin(self, due: list[Due], here: Here) -> None:
        """Share out what is due; lanes must have closed it.

        Raises what `here` raises, as `finish` does: lanes must then be rebuilt. So they must when
        what was begun is never finished: the next `begin` drops it.
        """
        self._forget()
        self._tend()
        self.start()
        parts = list(_rounds(due))
        for number, part in enumerate(parts, 1):
            self._share_out(part)
            self._let_go()
            if number < len(parts):
                self._collect(here)
        self._let_go()
        self._pace.begun()

    def close_one(self, here: Here) -> bool:
        """Close one session of the worker's own share; whether there was one left."""
        shared = self._round
        if not shared.own:
            return False
        index = shared.own.popleft()
        began_s = time.monotonic()
        try:
            shared.answers[index] = here(shared.due[index])
        except BaseException:
            # An answer that nobody waits for any more must not meet the next question.
            self.stop()
            raise
        self._pace.closed(shared.due[index].session.size, time.monotonic() - began_s)
        return True

    def finish(self, here: Here) -> list[tuple[Due, Sealed]]:
        """What was begun, closed, in the order of `due`; waits for the children.

        Lanes take back what is not to be closed yet.
        """
        self._pace.finishing()
        self._collect(here)
        self._pace.finished()
        closed, self._closed = self._closed, []
        return closed

    def stop(self) -> None:
        """End the children; they hold nothing. `begin` starts new ones."""
        atexit.unregister(self.stop)
        for child in self._children:
            _end(child)
        self._children.clear()
        self._round, self._closed = _Round(), []

    # --- sharing out ---

    def _share_out(self, due: list[Due]) -> None:
        sizes = _sizes(due) if self.count else {}
        if sum(len(due[index].session.values) for index in sizes) < EVENTS_MIN:
            sizes = {}
        children = [child for child in self._children if child.ready]
        _, *shares = _balanced(sizes, len(children) + 1, self._pace)
        sent = [
            (child, share)
            for child, share in zip(children, shares, strict=True)
            if share and self._send(child, [due[index] for index in share])
        ]
        theirs = {index for _, share in sent for index in share}
        own = deque(index for index in range(len(due)) if index not in theirs)
        self._round = _Round(due, sent, own)

    def _collect(self, here: Here) -> None:
        while self.close_one(here):
            pass
        shared, self._round = self._round, _Round()
        answers = shared.answers
        for child, share in shared.sent:
            found, seconds = self._receive(child)
            if found:
                self._pace.answered(sum(shared.due[index].session.size for index in share), seconds)
            answers.update(zip(share, found, strict=False))
        for index, item in enumerate(shared.due):
            answer = answers.get(index, "elsewhere")
            sealed = here(item) if answer == "elsewhere" else answer
            if sealed is None:
                item.lane.reopen(item.session)
            else:
                self._spent.append(item.session)
                self._closed.append((item, sealed))

    def _let_go(self) -> None:
        """Free what closed sessions held: some ten milliseconds, for which no child should wait."""
        for session in self._spent:
            session.forget()
        self._spent.clear()

    def _forget(self) -> None:
        """Drop what was begun and never finished, with the answers under way."""
        shared, self._round, self._closed = self._round, _Round(), []
        for child, _ in shared.sent:
            self._receive(child)

    def _send(self, child: _Child, due: list[Due]) -> bool:
        """A part at a time, and a last one without anything: it is at the first one while the next
        is being sent, but answers once it has all, when the worker does not send any more.
        """
        try:
            for at in range(0, len(due) + _PART_SESSIONS, _PART_SESSIONS):
                jobs = [tuple(_job(item)) for item in due[at : at + _PART_SESSIONS]]
                # Without references, which would be looked for at each value.
                child.pipe.send_bytes(marshal.dumps(jobs, 2))
        except OSError:
            self._lost(child)
            return False
        return True

    def _receive(self, child: _Child) -> tuple[list[Answer], float]:
        """The child's answers, and how many seconds they took it; none if it is lost: the worker
        then closes its share.
        """
        try:
            if not child.pipe.poll(STALL_S):
                raise TimeoutError
            answers, seconds = marshal.loads(child.pipe.recv_bytes())  # noqa: S302 - our child
        except (OSError, EOFError):
            self._lost(child)
            return [], 0.0
        return [_answer(told) for told in answers], seconds

    # --- the children's lives ---

    def _tend(self) -> None:
        """Notice who is ready by now, and who has ended."""
        for child in list(self._children):
            try:
                if not child.ready and child.pipe.poll():
                    child.ready = child.pipe.recv_bytes() == _READY
            except (OSError, EOFError):
                self._lost(child)
            else:
                if not child.process.is_alive():
                    self._lost(child)

    def _lost(self, child: _Child) -> None:
        self._children.remove(child)
        if not child.ready:
            # It would not fare better at once, and every batch would start one.
            self._start_at = time.monotonic() + RESTART_WAIT_S
        self.on_lost()
        log.warning("a child for closings ended with %s; going on without it", _end(child))


def _started(config: RulesConfig) -> _Child:
    ours, theirs = Pipe()
    try:
        with socket.fromfd(ours.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIPE_BYTES)
            # A child that was stopped and not ended would otherwise block the worker for ever.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", STALL_S, 0))
        # Spawned: librdkafka's threads are no company for a fork.
        process = get_context("spawn").Process(
            target=serve, args=(theirs, config), name="closer", daemon=True
        )
        # It would unblock the signals below if it were started by `start`.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
        try:
            # With the signals blocked, until it ignores them by itself.
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except BaseException:
        ours.close()
        raise
    finally:
        # Who holds the child's end open does not see it end.
        theirs.close()
    return _Child(process, ours)


def _end(child: _Child) -> int | None:
    """End a child and reap it; its exit code."""
    child.pipe.close()
    child.process.kill()
    child.process.join()
    code = child.process.exitcode
    child.process.close()
    return code


def _rounds(due: list[Due]) -> Iterator[list[Due]]:
    part, size = [], 0
    for item in due:
        part.append(item)
        size += item.session.size
        if size >= ROUND_BYTES_MAX:
            yield part
            part, size = [], 0
    if part:
        yield part


def _sizes(due: list[Due]) -> dict[int, int]:
    """Index and bytes of each session that a child may close.

    Not one with an event of a schema that is not built in: whether that counts is asked of Kafka.
    """
    return {index: item.session.size for index, item in enumerate(due) if not item.session.foreign}


def _balanced(sizes: dict[int, int], count: int, pace: _Pace) -> list[list[int]]:
    """The indexes in `count` shares that take about as long: the largest first, to the one that
    is done first.

    The first share is of the worker, who has other things to do beside.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    measured = pace.own and pace.theirs
    own, theirs, beside = (pace.own, pace.theirs, pace.beside) if measured else (1.0, 1.0, 0.0)
    loads = [(0.0, number) for number in range(1, count)]
    heapq.heappush(loads, (beside, 0))
    for index in sorted(sizes, key=sizes.__getitem__, reverse=True):
        load, number = loads[0]
        shares[number].append(index)
        heapq.heapreplace(loads, (load + sizes[index] * (theirs if number else own), number))
    return shares


def _job(due: Due) -> Job:
    lane, turn, session, reason = due
    return Job(
        reason,
        session.key,
        session.values,
        session.places.tobytes(),
        session.times.tobytes(),
        turn.clock_ms,
        turn.number,
        lane.index,
    )


#: An answer as `marshal` takes it.
Told = tuple[Any, ...] | Literal["elsewhere"] | None


def _told(answer: Answer) -> Told:
    if not isinstance(answer, Sealed):
        return answer
    return (*answer[:-1], [astuple(one) for one in answer.refused])


def _answer(told: Told) -> Answer:
    if not isinstance(told, tuple):
        return told
    *rest, refused = told
    return Sealed._make((*rest, [_refused(*one) for one in refused]))


def _refused(
    topic: int,
    offset: int,
    recorded_ms: int,
    key: bytes | None,
    value: bytes,
    reason: tuple[str, str],
) -> Refused:
    return Refused(topic, offset, recorded_ms, key, value, Reason(*reason))


# --- in the child ---


class _ElsewhereError(Exception):
    """The session holds an event that only the worker can judge."""


class Desk:
    """Closes jobs; made once per child."""

    def __init__(self, config: RulesConfig, own: Own | None = None) -> None:
        self._config, self._own = config, own
        self._encoder = Encoder()
        self._decoder = event_decoder()
        self._sources: dict[int, Source] = {}

    def answer(self, job: Job) -> Answer:
        """The session's records, as the worker itself would make them."""
        places, times = array("q", job.places), array("q", job.times)
        session = Session(job.key, [], job.values, places, times)
        try:
            source = self._source(job.partition)
            closing = close(session, job.reason, job, source, self._config, self._own)
        except _ElsewhereError:
            return "elsewhere"
        return None if closing is None else seal(closing, self._encoder)

    def _source(self, partition: int) -> Source:
        if partition not in self._sources:
            topics = events.event_topics()
            self._sources[partition] = Source(topics, partition, self._decoder, _elsewhere)
        return self._sources[partition]


def _elsewhere(_key: bytes, _recorded_ms: int) -> bool:
    raise _ElsewhereError


def serve(pipe: Connection, config: RulesConfig) -> None:
    """A child's life: answers until the worker closes its end, or is gone."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    with own_rules(config) as own, rare_collections(), contextlib.suppress(EOFError, OSError):
        desk = Desk(config, own)
        pipe.send_bytes(_READY)
        while True:
            pipe.poll(None)
            began_s = time.monotonic()
            answers = [_told(desk.answer(job)) for job in _jobs(pipe)]
            pipe.send_bytes(marshal.dumps((answers, time.monotonic() - began_s), 2))


def _jobs(pipe: Connection) -> Iterator[Job]:
    """Those of one share, each as soon as it is there. What has come is taken before the next one
    is begun: the worker waits where a pipe is full.
    """
    waiting: deque[tuple[Any, ...]] = deque()
    more = True
    while more or waiting:
        while more and (not waiting or pipe.poll()):
            jobs = marshal.loads(pipe.recv_bytes())  # noqa: S302 - from our worker
            waiting.extend(jobs)
            more = bool(jobs)
        if waiting:
            yield Job(*waiting.popleft())
