"""MemoryTransport: what users' tests look at."""

import pytest
from trailweave.producers.memory import MemoryTransport
from trailweave.producers.recorder import Recorder
from trailweave.producers.transport import Counts, TransportClosed


def test_it_shows_what_was_sent_as_bytes_as_events_and_by_type() -> None:
    transport = MemoryTransport()
    with Recorder(transport, tenant="acme", agent="clerk") as recorder, recorder.session("t"):
        pass

    assert transport.names == ["session_started", "session_ended"]
    assert transport.of("session_ended")[0]["status"] == "ok"
    assert transport.sent[0].topic == "trailweave.prompts"
    assert transport.counts == Counts(recorded=2, delivered=2)
    assert transport.closed


def test_a_misspelt_event_type_is_an_error_and_not_an_empty_list() -> None:
    with pytest.raises(KeyError, match="tool_request'"):
        MemoryTransport().of("tool_request")


def test_it_refuses_after_close() -> None:
    transport = MemoryTransport()
    recorder = Recorder(transport, tenant="acme", agent="clerk")
    recorder.close()

    with pytest.raises(TransportClosed):
        recorder.session("task").__enter__()
