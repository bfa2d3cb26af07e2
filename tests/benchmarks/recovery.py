"""SIGKILL of the join with many events in open sessions: how long until it is where it was.

Sessions are sent without their ends, joined, and the join killed with all its children. Time runs
from the kill to the log line by which a new process says that its lanes are back. Then the ends are
sent, and every session has to be one complete chain with all its events.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition
from trailweave.deploy.fleet.arrival import Sent
from trailweave.deploy.fleet.send import FleetProducer
from trailweave.schemas import codec, events

from tests.benchmarks import feed, peers
from tests.benchmarks.processes import Watch
from tests.benchmarks.programs.told import ID_AT, ID_END
from tests.benchmarks.run import note

GROUP: Final = "trailweave-join"
POLL_S: Final = 0.02
PATIENCE_S: Final = 300.0
BACK: Final = "are back with"


@dataclass(frozen=True, slots=True)
class Recovery:
    """One kill: events held, seconds until they were held again, CPU seconds and memory of that."""

    held: int
    seconds: float = 0.0
    cpu_s: float = 0.0
    peak_mb: float = 0.0
    why_not: str = ""


def measure(held: int, per_trace: int, partitions: int = 4) -> Recovery:
    """About `held` events in open sessions; it counts only if none is lost or doubled."""
    try:
        return _measure(held, per_trace, partitions)
    except peers.WrongError as error:
        return Recovery(held, why_not=f"does not count: {error}")


def _measure(held: int, per_trace: int, partitions: int) -> Recovery:
    traces = held // (per_trace - 1)
    with feed.engines(partitions) as both, tempfile.TemporaryDirectory() as name:
        address, folder = both.kafka.address, Path(name)
        ends: list[Sent] = []
        end_key = events.event_types()["session_ended"].fingerprint

        def without_ends() -> Any:
            for sent in feed.sessions(traces, per_trace):
                if codec.frame(sent.value)[0] == end_key:
                    ends.append(sent)
                else:
                    yield sent

        sent = feed.produce(address, without_ends())
        for one in ends:
            sent[one.key].add(one.value[ID_AT:ID_END])
        field = peers.Field(address, both.kafka.pid, sent, per_trace, "bytes", partitions)
        peer = peers.peers()[0]
        command = [*peer.command(folder), *peers.told(peer, field, folder)]
        total = sum(map(len, sent.values())) - len(ends)
        first = peers.Program(command, folder)
        try:
            _until(lambda: _committed(address, partitions) == total, first)
        finally:
            killed = time.time()
            first.kill()
        with peers.running(command, folder) as second, Watch(join=second.pid) as watch:
            _until(lambda: BACK in second.log(), second)
            seconds = time.time() - killed
            words = second.log().partition(BACK)[2].split()
            if int(words[0]) != total:
                raise peers.WrongError(f"{words[0]} events are back instead of {total}")
            with FleetProducer(address) as producer:
                for one in ends:
                    producer.send(one.topic, one.key, one.value)
            try:
                with peers.output(field, peer.out) as output:
                    peers.read(output, peer, field, second)
            except peers.WrongError:
                note(second.log())  # its last words, or nobody could tell why
                raise
    usage = watch.usage["join"]
    cpu_s = usage.cpu_s(killed, killed + seconds)
    return Recovery(total, seconds, cpu_s, usage.peak_bytes / 2**20)


def _committed(address: str, partitions: int) -> int:
    """How many records of the event topics the join has committed."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": GROUP})
    parts = [TopicPartition(t, i) for t in events.event_topics() for i in range(partitions)]
    try:
        return sum(max(0, part.offset) for part in consumer.committed(parts, 10))
    except KafkaException:
        return 0  # a fresh broker is still looking for the group's coordinator
    finally:
        consumer.close()


def _until(done: Callable[[], bool], program: peers.Program) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        if time.monotonic() > deadline:
            raise peers.WrongError("the join did not get there in time")
        program.check()
        time.sleep(POLL_S)
