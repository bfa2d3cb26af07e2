"""Trace ids as outside records write them."""

import json
from pathlib import Path

import pytest
from trailweave.producers.adapters.trace_ids import header_traceparent, hex_id
from trailweave.producers.traceparent import read_traceparent

TRACE = "5b8efff798038103d269b633813fc60c"


@pytest.mark.parametrize(
    "written",
    [TRACE, TRACE.upper(), "W47/95gDgQPSabYzgT/GDA==", "W47/95gDgQPSabYzgT/GDA"],
)
def test_hex_of_any_case_and_base64_are_the_same_trace(written: str) -> None:
    assert hex_id(written, 16) == TRACE


@pytest.mark.parametrize("written", ["7uGbfsPBsXQ=", "EEE19B7EC3C1B174"])
def test_a_span_id_may_be_base64_too(written: str) -> None:
    assert hex_id(written, 8) == "eee19b7ec3c1b174"


@pytest.mark.parametrize("written", [None, "", "0" * 32, TRACE[:-1], TRACE + "0", "x" * 24, 7, []])
def test_what_is_no_trace_id_is_none(written: object) -> None:
    assert hex_id(written, 16) is None


def test_every_published_traceparent_is_read_as_stated(vectors: Path) -> None:
    lines = (vectors / "trace-context" / "traceparent.jsonl").read_text("utf-8").splitlines()
    cases = [json.loads(line) for line in lines if line]

    wrong = [c for c in cases if (read_traceparent(c["header"]) is not None) != c["valid"]]

    assert len(cases) == 20
    assert wrong == []


def test_every_published_request_continues_or_restarts_its_trace(vectors: Path) -> None:
    lines = (vectors / "trace-context" / "request-level.jsonl").read_text("utf-8").splitlines()
    cases = [json.loads(line) for line in lines if line]

    found = [header_traceparent(dict(c["headers"])) is not None for c in cases]

    assert found == [c["expect"] == "continue trace" for c in cases]


def test_a_header_that_was_sent_twice_continues_nothing() -> None:
    one, other = f"00-{TRACE}-00f067aa0ba902b7-01", f"00-{TRACE}-00f067aa0ba902b8-01"

    assert header_traceparent({"traceparent": [one, other]}) is None
