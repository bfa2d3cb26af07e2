"""`traceparent` against the W3C's own cases."""

import json
from pathlib import Path
from typing import Any

import pytest
from trailweave.producers.traceparent import TraceParent, read_traceparent, traceparent_of

VECTORS = Path(__file__).parents[4] / "shared" / "vectors" / "trace-context"


def cases(name: str) -> list[dict[str, Any]]:
    path = VECTORS / name
    if not path.exists():
        pytest.skip(f"the W3C vectors are not beside the repository: {path.name}")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_header_of_the_w3c_suite_is_judged_as_the_suite_says() -> None:
    judged = {
        case["header"]: read_traceparent(case["header"]) for case in cases("traceparent.jsonl")
    }

    wrong = [
        case
        for case in cases("traceparent.jsonl")
        if (judged[case["header"]] is not None) != case["valid"]
    ]
    assert wrong == []


def test_requests_continue_or_restart_the_trace_as_the_suite_says() -> None:
    wrong = [
        case
        for case in cases("request-level.jsonl")
        if (traceparent_of([(n, v) for n, v in case["headers"]]) is not None)
        != (case["expect"] == "continue trace")
    ]

    assert wrong == []


def test_two_headers_restart_the_trace() -> None:
    header = ("traceparent", "00-12345678901234567890123456789012-1234567890123456-01")

    assert traceparent_of([header, header]) is None


@pytest.mark.parametrize(
    "header",
    [
        "ff-12345678901234567890123456789012-1234567890123456-01",
        "00-00000000000000000000000000000000-1234567890123456-01",
        "00-1234567890123456789012345678901A-1234567890123456-01",
        "00-12345678901234567890123456789012-1234567890123456-01-x",
    ],
)
def test_other_bad_headers_are_refused(header: str) -> None:
    assert read_traceparent(header) is None


def test_a_later_version_with_more_fields_is_read() -> None:
    found = read_traceparent("cc-12345678901234567890123456789012-1234567890123456-01-what")

    assert found == TraceParent("12345678901234567890123456789012", "1234567890123456", "01")


def test_what_is_written_is_read_again() -> None:
    parent = TraceParent("a" * 32, "b" * 16, "00")

    assert read_traceparent(str(parent)) == parent
