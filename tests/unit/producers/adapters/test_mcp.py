"""MCP messages of both protocol versions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trailweave.producers.adapters import mcp
from trailweave.schemas.errors import Rejected

Reading = Callable[..., list[dict[str, Any]]]
ContextOf = Callable[..., Any]

CALL: dict[str, Any] = {"name": "get_weather", "arguments": {"location": "New York"}}


def request(number: object, method: str = "tools/call", **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params or CALL}


def result(number: object, **body: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "result": body or {"content": []}}


def sample(vectors: Path, name: str) -> bytes:
    return (vectors / "mcp" / name).read_bytes()


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [each["event_type"] for each in found]


def test_a_call_that_needs_input_and_is_tried_again_is_one_call(
    vectors: Path, reading: Reading
) -> None:
    found = reading("mcp", sample(vectors, "2026-07-28/tools-call-flow.jsonl"))

    assert kinds(found) == ["tool_requested", "approval_requested", "approval_decided"]
    assert len({each["call_id"] for each in found}) == 1
    assert len({each["trace_id"] for each in found}) == 1
    assert found[1]["approval_id"] == found[2]["approval_id"]
    assert found[2]["effect"] == "allow"
    assert "octocat" not in json.dumps(found)


def test_the_result_of_the_second_try_ends_the_one_call(vectors: Path, reading: Reading) -> None:
    flow = sample(vectors, "2026-07-28/tools-call-flow.jsonl")
    found = reading("mcp", flow, result(3))

    assert kinds(found)[-1] == "tool_executed"
    assert len({each["call_id"] for each in found}) == 1


def test_without_a_request_state_the_tool_and_its_arguments_tie_the_second_try(
    reading: Reading,
) -> None:
    asked = {"k": {"method": "elicitation/create", "params": {"message": "may I?"}}}
    found = reading(
        "mcp",
        request(1),
        result(1, resultType="input_required", inputRequests=asked),
        request(2, **CALL, inputResponses={"k": {"action": "decline"}}),
    )

    assert kinds(found) == ["tool_requested", "approval_requested", "approval_decided"]
    assert (found[2]["effect"], found[2]["reason"]) == ("deny", "decline")


def test_declined_and_cancelled_are_denied(vectors: Path, reading: Reading) -> None:
    found = reading("mcp", sample(vectors, "constructed-decline-cancel.jsonl"))
    decided = [each for each in found if each["event_type"] == "approval_decided"]

    assert [each["reason"] for each in decided] == ["decline", "cancel", "decline", "cancel"]
    assert {each["effect"] for each in decided} == {"deny"}


def test_a_session_of_the_older_version_is_read(vectors: Path, reading: Reading) -> None:
    asked, done = reading("mcp", sample(vectors, "2025-11-25/tools-call-session.jsonl"))

    assert (asked["server"], asked["server_version"]) == ("ExampleServer", "1.0.0")
    assert asked["actor"]["subject"] == "ExampleClient"
    assert asked["call_id"] == done["call_id"]
    assert asked["trace_id"] == done["trace_id"]
    assert done["status"] == "ok"


def test_an_elicitation_of_the_older_version_is_an_approval(
    vectors: Path, reading: Reading
) -> None:
    asked, decided = reading("mcp", sample(vectors, "2025-11-25/elicitation-form.jsonl"))

    assert asked["approval_id"] == decided["approval_id"]
    assert asked["trace_id"] == decided["trace_id"]
    assert decided["effect"] == "allow"


def test_an_elicitation_during_the_only_open_call_is_about_that_call(reading: Reading) -> None:
    found = reading("mcp", request(7), request(1, "elicitation/create", message="may I?"))

    assert found[1]["call_id"] == found[0]["call_id"]


def test_meta_gives_the_trace_and_the_models_call_id(vectors: Path, reading: Reading) -> None:
    (traced,) = reading("mcp", sample(vectors, "2026-07-28/tools-call-with-traceparent.json"))
    (named,) = reading("mcp", request(1, **CALL, _meta={"claudecode/toolUseId": "toolu_1"}))

    assert traced["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert (traced["parent_span_id"], traced["parent_remote"]) == ("00f067aa0ba902b7", True)
    assert traced["call_id_source"] == "synthesized"
    assert (named["call_id"], named["call_id_source"]) == ("toolu_1", "provider")


@pytest.mark.parametrize(
    ("name", "kind", "status"),
    [
        ("CallToolResult--invalid-tool-input-error", "tool_executed", "error"),
        ("CallToolResult--result-with-structured-content", "tool_executed", "ok"),
        ("CallToolResultResponse--call-tool-result-response", "tool_executed", "ok"),
        ("ElicitRequest--elicitation-request", "approval_requested", None),
        ("ElicitRequestURLParams--elicit-sensitive-data", "approval_requested", None),
        ("ElicitResult--input-single-field", "approval_decided", None),
        ("InputResponses--elicitation-and-sampling-input-responses", "approval_decided", None),
        ("CallToolRequest--call-tool-request", "tool_requested", None),
    ],
)
def test_the_published_examples_come_through_alone(
    vectors: Path, reading: Reading, name: str, kind: str, status: str | None
) -> None:
    (found,) = reading("mcp", sample(vectors, f"2026-07-28/{name}.json"))

    assert found["event_type"] == kind
    assert found.get("status") == status


def test_of_several_inputs_only_what_a_person_is_asked_is_an_approval(
    vectors: Path, reading: Reading
) -> None:
    folder = vectors / "mcp" / "2026-07-28"
    (path,) = folder.glob("InputRequiredResult--*.json")

    assert kinds(reading("mcp", path.read_bytes())) == ["approval_requested"]


@pytest.mark.parametrize(
    "name", ["HeaderMismatchError--header-mismatch", "InvalidParamsError--unknown-tool"]
)
def test_an_error_that_answers_nothing_known_is_passed_over_and_counted(
    vectors: Path, context_of: ContextOf, name: str
) -> None:
    record = json.loads(sample(vectors, f"2026-07-28/{name}.json"))
    made = mcp.step(mcp.Conversation(), record, context_of("mcp"), 0)

    assert made.skipped == ("an error that answers no tool call of this file",)


def test_a_protocol_error_is_the_outcome_of_its_call(reading: Reading) -> None:
    error = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "secret text"}}
    asked, failed = reading("mcp", request(1), error)

    assert failed["call_id"] == asked["call_id"]
    assert (failed["status"], failed["error"]) == ("error", "jsonrpc -32602")


def test_a_listed_tools_definition_is_that_of_later_calls(reading: Reading) -> None:
    listing = {"tools": [{"name": "get_weather", "description": "now"}]}
    (found,) = reading("mcp", request(1, "tools/list"), result(1, **listing), request(2))

    assert found["definition_hash"].startswith("hmac:k1:")


def test_a_log_line_adds_the_time_and_the_session(reading: Reading) -> None:
    line = {"time": "2026-11-20T20:00:00Z", "session_id": "s1", "message": request(1)}
    later = {**line, "message": request(2)}
    one, other = reading("mcp", line, later)

    assert one["occurred_at"] == 1_795_204_800_000_000
    assert one["correlation"]["how"] == "handle"
    assert one["trace_id"] == other["trace_id"]
    assert one["call_id"] != other["call_id"]


def test_two_equal_messages_are_two_calls(reading: Reading) -> None:
    found = reading("mcp", request(1), result(1), request(1), result(1))

    assert len({each["event_id"] for each in found}) == 4
    assert len({each["call_id"] for each in found}) == 2


@pytest.mark.parametrize(
    "record",
    [
        [],
        "x",
        {},
        {"jsonrpc": "2.0", "id": 1},
        {"note": "x"},
        {"message": {}},
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"arguments": {}}},
    ],
)
def test_what_is_no_message_is_malformed(record: object, context_of: ContextOf) -> None:
    with pytest.raises(Rejected, match="malformed"):
        mcp.step(mcp.Conversation(), record, context_of("mcp"), 0)
