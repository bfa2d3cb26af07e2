"""KafkaTransport while no Kafka is there: nothing accepted is lost, and every count adds up."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from trailweave.producers.kafka import KafkaTransport
from trailweave.producers.limits import KafkaLimits
from trailweave.producers.recorder import Recorder
from trailweave.producers.transport import Counts, Producer, SpoolFull, TransportClosed
from trailweave.schemas.errors import Fatal

#: Nothing listens there.
NOWHERE = {"bootstrap.servers": "127.0.0.1:1", "log_level": "0"}
KEY = b"a" * 32
DEADLINE_S = 10.0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


@contextmanager
def started(spool: Path, **limits: object) -> Iterator[KafkaTransport]:
    settings = {"away_after_s": 0.1, "close_timeout_s": 0.0, **limits}
    transport = KafkaTransport(NOWHERE, spool, KafkaLimits(**settings))  # type: ignore[arg-type]
    transport.start(Producer("p", "acme"))
    try:
        yield transport
    finally:
        transport.close()


def adds_up(counts: Counts) -> bool:
    return counts.recorded == counts.delivered + counts.buffered + counts.spooled + counts.failed


def send(transport: KafkaTransport, size: int = 100) -> None:
    transport.send("trailweave.tools", KEY, b"x" * size)


def send_until_refused(transport: KafkaTransport, size: int = 100) -> int:
    for number in range(1_000_000):
        try:
            send(transport, size)
        except SpoolFull as error:
            error.add_note(f"after {number}")
            raise
    return 0


def test_memory_moves_to_the_spool_when_kafka_does_not_answer(tmp_path: Path) -> None:
    with started(tmp_path) as transport:
        before = transport.delayed
        for _ in range(50):
            send(transport)
        wait_until(lambda: transport.counts.spooled == 50)

        assert not before
        assert transport.delayed
        assert transport.counts == Counts(recorded=50, spooled=50)


def test_when_memory_and_spool_are_full_the_caller_gets_the_counts(tmp_path: Path) -> None:
    with started(tmp_path, memory_events_max=10, spool_bytes_max=2000) as transport:
        with pytest.raises(SpoolFull, match=r"its limit is 2000; recorded \d+ = ") as error:
            send_until_refused(transport)
        counts = error.value.counts

        assert adds_up(counts)
        assert f"after {counts.recorded}" in error.value.__notes__
        assert counts.recorded >= 20


def test_a_caller_that_chose_to_block_waits_until_there_is_room(tmp_path: Path) -> None:
    limits: dict[str, object] = {"memory_events_max": 5, "spool_bytes_max": 500}
    with (
        started(tmp_path / "full", **limits, away_after_s=60.0) as transport,
        pytest.raises(SpoolFull) as full,
    ):
        send_until_refused(transport)
    room = full.value.counts.recorded
    ended: list[str] = []

    def fill() -> None:
        try:
            send_until_refused(transport)
        except TransportClosed as error:
            ended.append(str(error))

    with started(tmp_path, **limits, away_after_s=60.0, on_full="block") as transport:
        caller = threading.Thread(target=fill)
        caller.start()
        wait_until(lambda: transport.counts.recorded == room)
    caller.join()

    assert ended[0].startswith("couldn't send: the transport is")
    assert transport.counts == Counts(recorded=room, spooled=room)


def test_a_full_disk_is_a_clear_message_and_loses_nothing(tmp_path: Path) -> None:
    program = f"""
import resource
from trailweave.producers.kafka import KafkaTransport
from trailweave.producers.limits import KafkaLimits
from trailweave.producers.transport import Producer, SpoolFull
limits = KafkaLimits(memory_events_max=5, close_timeout_s=0.0)
transport = KafkaTransport({NOWHERE!r}, {str(tmp_path)!r}, limits)
transport.start(Producer("p", "acme"))
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, most))
try:
    while True:
        transport.send("trailweave.tools", b"a" * 32, b"x" * 100)
except SpoolFull as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
transport.close()
print(transport.counts)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    refused, closed = done.stdout.splitlines()

    assert f"the disk of {tmp_path} took no more (File too large)" in refused
    recorded = int(refused.split("recorded ")[1].split()[0])
    assert closed == str(Counts(recorded=recorded, spooled=recorded))


def test_closing_puts_memory_on_disk_and_the_next_process_adopts_it(tmp_path: Path) -> None:
    with started(tmp_path) as first:
        for _ in range(20):
            send(first)
    with started(tmp_path) as second:
        waiting = second.flush(0.01)

        assert first.counts == Counts(recorded=20, spooled=20)
        assert not waiting
        assert second.counts.recorded == 0
    assert len(list(tmp_path.rglob("*.segment"))) == 1


def test_durable_events_are_on_disk_before_send_returns(tmp_path: Path) -> None:
    with started(tmp_path, durable=True, away_after_s=60.0) as transport:
        send(transport, 4000)

        assert transport.counts == Counts(recorded=1, spooled=1)
        assert max(path.stat().st_size for path in tmp_path.rglob("*.segment")) > 4000


def test_the_sum_holds_whenever_somebody_looks(tmp_path: Path) -> None:
    accepted: list[int] = []
    seen: list[Counts] = []
    done = threading.Event()
    with started(tmp_path, memory_events_max=50, spool_bytes_max=200_000) as transport:

        def look() -> None:
            while not done.is_set():
                seen.append(transport.counts)

        def work() -> None:
            for _ in range(500):
                try:
                    send(transport)
                    accepted.append(1)
                except SpoolFull as error:
                    seen.append(error.counts)

        workers = [threading.Thread(target=work) for _ in range(4)]
        looker = threading.Thread(target=look)
        for thread in (looker, *workers):
            thread.start()
        for thread in workers:
            thread.join()
        done.set()
        looker.join()

        assert [counts for counts in seen if not adds_up(counts)] == []
        assert transport.counts.recorded == len(accepted)


def test_a_closed_transport_refuses(tmp_path: Path) -> None:
    with started(tmp_path) as transport:
        pass

    with pytest.raises(TransportClosed, match="is closed"):
        send(transport)


def test_a_transport_that_was_not_started_refuses(tmp_path: Path) -> None:
    with pytest.raises(TransportClosed, match="was not started"):
        send(KafkaTransport(NOWHERE, tmp_path))


def test_a_forked_child_is_refused_and_the_parent_goes_on(tmp_path: Path) -> None:
    program = f"""
import os, sys
from trailweave.producers.kafka import KafkaTransport
from trailweave.producers.limits import KafkaLimits
from trailweave.producers.transport import Producer, TransportClosed
transport = KafkaTransport({NOWHERE!r}, {str(tmp_path)!r}, KafkaLimits(close_timeout_s=0.0))
transport.start(Producer("p", "acme"))
transport.send("trailweave.tools", b"a" * 32, b"x")
child = os.fork()
if not child:
    try:
        transport.send("trailweave.tools", b"a" * 32, b"x")
    except TransportClosed as error:
        print(error, flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
transport.send("trailweave.tools", b"a" * 32, b"x")
transport.close()
print(transport.counts.spooled)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.splitlines() == [
        "couldn't send after a fork: make a Recorder in the new process",
        "2",
    ]


def test_a_process_that_forgets_to_close_ends_in_time_and_spools(tmp_path: Path) -> None:
    program = f"""
from trailweave.producers.kafka import KafkaTransport
from trailweave.producers.limits import KafkaLimits
from trailweave.producers.recorder import Recorder
limits = KafkaLimits(close_timeout_s=0.2)
transport = KafkaTransport({NOWHERE!r}, {str(tmp_path)!r}, limits)
session = Recorder(transport, tenant="acme", agent="clerk").session("task").__enter__()
session.prompt_submitted("x")
raise SystemExit(3)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=30, check=False)
    (segment,) = tmp_path.rglob("*.segment")

    assert done.returncode == 3
    assert segment.read_bytes().count(b"trailweave.prompts") == 2


def test_a_recorder_marks_what_it_records_while_kafka_is_away(tmp_path: Path) -> None:
    transport = KafkaTransport(
        NOWHERE, tmp_path, KafkaLimits(away_after_s=0.1, close_timeout_s=0.0)
    )
    with Recorder(transport, tenant="acme", agent="clerk") as recorder:
        with recorder.session("task") as session:
            wait_until(lambda: transport.delayed)
            session.prompt_submitted("x")

        assert adds_up(recorder.counts)
    assert transport.counts == Counts(recorded=3, spooled=3)


def test_bad_settings_are_refused_at_the_start(tmp_path: Path) -> None:
    transport = KafkaTransport({"no.such.setting": "1"}, tmp_path)

    with pytest.raises(Fatal, match="couldn't use the Kafka settings"):
        transport.start(Producer("p", "acme"))
