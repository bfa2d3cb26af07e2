"""Sequence numbers: dense, never used twice."""

import threading
from typing import Any

import pytest
from trailweave.producers.memory import MemoryTransport
from trailweave.producers.recorder import Recorder
from trailweave.producers.trace import Trace, Traces
from trailweave.producers.transport import Counts, EventTooLarge, Producer, SpoolFull
from trailweave.schemas.errors import Rejected


class Refusing(MemoryTransport):
    """Full after some events."""

    room = 10

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        if len(self.sent) >= self.room:
            raise SpoolFull("couldn't spool the event: full", Counts())
        super().send(topic, key, value)


def sequences(transport: MemoryTransport) -> list[int]:
    return [event.record["trace_seq"] for event in transport.events]


def test_an_event_that_is_refused_leaves_no_gap() -> None:
    transport = Refusing()
    with Recorder(transport, tenant="acme", agent="clerk", capture="full") as recorder:
        participant = recorder.session("task")
        with participant as session:
            with pytest.raises(EventTooLarge):
                session.prompt_submitted("x" * 1_100_000)
            with pytest.raises(Rejected):
                session.prompt_submitted("x", role=7)  # type: ignore[arg-type]
            transport.room = 1
            with pytest.raises(SpoolFull):
                session.prompt_submitted("x")
            transport.room = 10
            session.prompt_submitted("x")

    assert sequences(transport) == [0, 1, 2]
    assert list(transport.of("session_ended")[0]["expected"].values()) == [3]


def test_threads_of_one_trace_share_one_dense_sequence() -> None:
    transport = MemoryTransport()
    recorder = Recorder(transport, tenant="acme", agent="clerk")

    with recorder.session("task") as session:

        def work() -> None:
            for _ in range(100):
                session.prompt_submitted("x")

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert sorted(sequences(transport)) == list(range(802))
    assert list(transport.of("session_ended")[0]["expected"].values()) == [802]


def test_a_trace_that_is_joined_again_goes_on_counting() -> None:
    transport = MemoryTransport()
    recorder = Recorder(transport, tenant="acme", agent="gateway")
    header = f"00-{'a' * 32}-{'b' * 16}-01"
    for _ in range(3):
        recorder.join_trace(header).guardrail_checked("g", "pass")

    assert sequences(transport) == [0, 1, 2]


def test_a_trace_that_was_forgotten_starts_again_in_a_later_epoch() -> None:
    traces = Traces(Producer("p", "acme", 100), remembered_max=4)
    first = traces.enter("a")
    before = first.epoch
    del first
    for number in range(10):
        traces.enter(str(number))

    assert traces.enter("a").epoch > before


def test_a_trace_that_somebody_holds_is_never_forgotten() -> None:
    traces = Traces(Producer("p", "acme", 100), remembered_max=4)
    held = traces.enter("a")
    for number in range(10):
        traces.enter(str(number))

    assert traces.enter("a") is held


def test_two_recorders_of_one_process_differ() -> None:
    recorders: list[Any] = [
        Recorder(MemoryTransport(), tenant="acme", agent="clerk") for _ in range(2)
    ]
    epochs = {recorder.transport.producer.epoch for recorder in recorders}

    assert len({recorder.producer_id for recorder in recorders}) == 2
    assert len(epochs) == 2


def test_a_trace_holds_its_place() -> None:
    assert Trace("a", 1).count == 0
