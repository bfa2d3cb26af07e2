"""OTLP/JSON traces and logs, current and older names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trailweave.producers.adapters.documents import problems
from trailweave.schemas.hashing import TenantKey, keyed_hash

Reading = Callable[..., list[dict[str, Any]]]
ContextOf = Callable[..., Any]

KEY = TenantKey("k1", b"made-up key")
TRACE, SPAN = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174"
START, END = "1795206426382339639", "1795206426382422662"


def sample(vectors: Path, name: str) -> bytes:
    return (vectors / "otlp" / name).read_bytes()


def request(attributes: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An export request with one span."""
    span = {
        "traceId": TRACE,
        "spanId": SPAN,
        "startTimeUnixNano": START,
        "endTimeUnixNano": END,
        "attributes": [{"key": k, "value": value(v)} for k, v in attributes.items()],
        **more,
    }
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def value(plain: Any) -> dict[str, Any]:
    if isinstance(plain, int):
        return {"intValue": str(plain)}
    if isinstance(plain, list):
        return {"arrayValue": {"values": [value(each) for each in plain]}}
    if isinstance(plain, dict):
        rows = [{"key": k, "value": value(v)} for k, v in plain.items()]
        return {"kvlistValue": {"values": rows}}
    return {"stringValue": plain}


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [each["event_type"] for each in found]


def test_tool_calls_and_their_results_come_out_of_the_messages(
    vectors: Path, reading: Reading
) -> None:
    name = "replayed-openai-chat-tool-calls-content-traces.json"
    found = reading("otlp", sample(vectors, name))
    first, second = (each for each in found if each["event_type"] == "model_responded")
    prompts = [(e["role"], e["origin"]) for e in found if e["event_type"] == "prompt_submitted"]

    assert [each["call_id"] for each in first["proposed"]] == [
        "call_JpNb8OiAkbIbHzDggfpdDHpi",
        "call_vaFQc3zK6hHTRZKXRI5Eo2cJ",
    ]
    assert first["proposed"][0]["arguments_hash"] == keyed_hash(KEY, {"location": "Seattle, WA"})
    assert second["proposed"] == []
    assert second["content"].startswith("Today, the weather in Seattle")
    assert (first["input_tokens"], first["output_tokens"]) == (75, 51)
    assert first["model_version"] == "fp_0ba0d124f1"
    assert prompts == [
        ("system", "system"),
        ("user", "human"),
        ("history", "memory"),
        ("tool", "tool"),
        ("tool", "tool"),
    ]


def test_older_names_give_the_same_facts_without_content(vectors: Path, reading: Reading) -> None:
    name = "replayed-openai-chat-tool-calls-no-content-oldsemconv-traces.json"
    first, second = reading("otlp", sample(vectors, name))

    assert (first["provider"], first["model"]) == ("openai", "gpt-4o-mini-2024-07-18")
    assert [first["finish_reasons"], second["finish_reasons"]] == [["tool_calls"], ["stop"]]
    assert first["content"] is None


def test_message_events_of_log_records_are_prompts_and_proposals(
    vectors: Path, reading: Reading
) -> None:
    name = "replayed-openai-chat-tool-calls-no-content-oldsemconv-logs.json"
    found = reading("otlp", sample(vectors, name))
    first, second = (each for each in found if each["event_type"] == "model_responded")

    assert len(found) == 9
    assert {each["trace_id"] for each in found} == {"b2dc7f16d7c15f2d419067e27564746f"}
    assert [each["tool"] for each in first["proposed"]] == ["get_current_weather"] * 2
    assert first["status"] == second["status"] == "unknown"


def test_two_choices_are_one_response_with_two_finish_reasons(
    vectors: Path, reading: Reading
) -> None:
    found = reading("otlp", sample(vectors, "replayed-openai-chat-two-choices-traces.json"))

    assert found[-1]["finish_reasons"] == ["stop", "stop"]
    assert len(json.loads(found[-1]["content"])) == 2


def test_a_failed_call_has_its_error_and_no_model(vectors: Path, reading: Reading) -> None:
    (found,) = reading("otlp", sample(vectors, "replayed-openai-chat-404-error-traces.json"))

    assert (found["status"], found["error"], found["model"]) == ("error", "NotFoundError", None)
    assert found["request_model"] == "this-model-does-not-exist"


def test_offered_tools_and_proposed_calls_of_another_provider(
    vectors: Path, reading: Reading
) -> None:
    found = reading("otlp", sample(vectors, "replayed-anthropic-tools-content-traces.json"))

    assert [each["tool"] for each in found[-1]["proposed"]] == ["get_weather", "get_time"]
    assert found[-1]["attributes"]["gen_ai.tool.definitions"] == "get_weather,get_time"
    assert found[-1]["finish_reasons"] == ["tool_call"]


def test_a_tool_result_under_the_users_role_is_of_the_tool(vectors: Path, reading: Reading) -> None:
    found = reading("otlp", sample(vectors, "replayed-anthropic-tools-history-traces.json"))

    assert [(e["role"], e["origin"]) for e in found[:2]] == [
        ("history", "memory"),
        ("user", "tool"),
    ]
    assert "Sunny and 65" in found[1]["content"]


def test_an_agents_root_span_is_a_session(vectors: Path, reading: Reading) -> None:
    found = reading("otlp", sample(vectors, "constructed-agent-tool-traces.json"))
    by_kind = {each["event_type"]: each for each in found}

    assert sorted(by_kind) == [
        "model_responded",
        "session_ended",
        "session_started",
        "tool_executed",
        "tool_requested",
    ]
    assert by_kind["session_ended"]["root"] is True
    assert by_kind["session_started"]["agent_id"] == "agent-7"
    asked, done = by_kind["tool_requested"], by_kind["tool_executed"]
    assert asked["call_id"] == done["call_id"] == "call_A1"
    assert asked["occurred_at"] == done["started_at"] < done["occurred_at"]


def test_an_agent_below_another_span_ends_no_trace(reading: Reading) -> None:
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "helper"}
    found = reading("otlp", request(attributes, parentSpanId="eee19b7ec3c1b173", flags=0x300))

    assert (found[1]["root"], found[1]["parent_remote"]) == (False, True)


def test_the_log_of_claude_code_is_a_session_tied_by_its_id(
    vectors: Path, reading: Reading
) -> None:
    found = reading("otlp", sample(vectors, "constructed-claude-code-logs.json"))

    assert kinds(found) == ["prompt_submitted", "tool_requested", "policy_decided", "tool_executed"]
    assert len({each["trace_id"] for each in found}) == 1
    assert {each["correlation"]["how"] for each in found} == {"handle"}
    assert {each["call_id"] for each in found[1:]} == {"toolu_constructed01"}
    assert (found[2]["effect"], found[2]["policy_id"]) == ("allow", "config")
    assert found[3]["started_at"] == found[3]["occurred_at"] - 12_000


def test_a_person_who_refuses_a_tool_decides_an_approval(reading: Reading) -> None:
    attributes = {
        "event.name": "tool_decision",
        "session.id": "s",
        "decision": "reject",
        "source": "user_reject",
        "tool_name": "Bash",
        "tool_use_id": "t1",
    }
    row = {
        "timeUnixNano": START,
        "body": {"stringValue": "claude_code.tool_decision"},
        "attributes": [{"key": k, "value": value(v)} for k, v in attributes.items()],
    }
    found = reading("otlp", {"resourceLogs": [{"scopeLogs": [{"logRecords": [row]}]}]})

    assert kinds(found) == ["tool_requested", "approval_decided"]
    assert (found[1]["effect"], found[1]["by"]["kind"]) == ("deny", "human")


def test_bare_attribute_maps_are_spans_without_a_trace(vectors: Path, reading: Reading) -> None:
    chat = reading("otlp", sample(vectors, "attributes-openinference-genai-chat-tool-calls.json"))
    tool = reading("otlp", sample(vectors, "attributes-openinference-genai-execute-tool.json"))

    assert kinds(chat) == ["prompt_submitted", "prompt_submitted", "model_responded"]
    assert {each["correlation"]["how"] for each in chat} == {"uncorrelated"}
    assert kinds(tool) == ["tool_requested", "tool_executed"]
    assert tool[0]["call_id"] == "1234"
    assert tool[0]["arguments"] == '{"city":"New York"}'
    assert "sunny" in tool[1]["result"]


def test_spans_of_the_javascript_sdk_are_read(vectors: Path, reading: Reading) -> None:
    found = reading("otlp", sample(vectors, "sdkspans-vercel-ai-generatetext.json"))
    responses = [each for each in found if each["event_type"] == "model_responded"]

    assert [each["output_tokens"] for each in responses] == [20, 9]
    assert responses[1]["content"] == "3 + 3 equals 6."
    assert len({each["trace_id"] for each in found}) == 2


def test_every_content_document_passes_or_fails_as_published(vectors: Path) -> None:
    lines = sample(vectors, "semconv-genai-content-cases.jsonl").decode().splitlines()
    cases = [json.loads(line) for line in lines if line]
    found = [[[p.path, p.keyword] for p in problems(c["schema"], c["document"])] for c in cases]

    assert len(cases) == 7
    assert [sorted(each) for each in found] == [
        sorted([e["path"], e["keyword"]] for e in c["errors"]) for c in cases
    ]


OLD_INDEXED = {
    "llm.request.type": "chat",
    "gen_ai.system": "openai",
    "gen_ai.request.model": "gpt-4",
    "gen_ai.usage.prompt_tokens": 7,
    "gen_ai.usage.completion_tokens": 3,
    "gen_ai.prompt.0.role": "system",
    "gen_ai.prompt.0.content": "be brief",
    "gen_ai.prompt.1.role": "user",
    "gen_ai.prompt.1.content": "hello",
    "gen_ai.completion.0.role": "assistant",
    "gen_ai.completion.0.finish_reason": "tool_calls",
    "gen_ai.completion.0.tool_calls.0.id": "call_1",
    "gen_ai.completion.0.tool_calls.0.name": "search",
    "gen_ai.completion.0.tool_calls.0.arguments": '{"q":"x"}',
}


def test_indexed_attributes_of_older_instrumentations_are_messages(reading: Reading) -> None:
    found = reading("otlp", request(OLD_INDEXED))

    assert [(e["role"], e["content"]) for e in found[:2]] == [
        ("system", "be brief"),
        ("user", "hello"),
    ]
    assert (found[2]["input_tokens"], found[2]["output_tokens"]) == (7, 3)
    assert found[2]["proposed"] == [
        {
            "call_id": "call_1",
            "call_id_source": "provider",
            "tool": "search",
            "arguments_hash": keyed_hash(KEY, {"q": "x"}),
        }
    ]
    assert found[2]["finish_reasons"] == ["tool_calls"]


@pytest.mark.parametrize(
    ("attributes", "kind", "found"),
    [
        ({"gen_ai.operation.name": "embeddings"}, 3, ["context_retrieved"]),
        ({"gen_ai.operation.name": "retrieval"}, 3, ["context_retrieved"]),
        ({"gen_ai.operation.name": "update_memory"}, 3, ["memory_accessed"]),
        ({"mcp.method.name": "tools/call"}, 3, ["tool_requested", "tool_executed"]),
        ({"mcp.method.name": "tools/call"}, 2, ["downstream_observed"]),
        ({"mcp.method.name": "resources/read"}, 3, ["context_retrieved"]),
        ({"traceloop.span.kind": "tool"}, 1, ["tool_requested", "tool_executed"]),
        ({"gen_ai.operation.name": "create_agent"}, 1, []),
        ({"mcp.method.name": "tools/list"}, 2, []),
        ({"http.request.method": "GET"}, 2, []),
    ],
)
def test_an_operation_says_which_events_a_span_is(
    reading: Reading, attributes: dict[str, Any], kind: int, found: list[str]
) -> None:
    assert kinds(reading("otlp", request(attributes, kind=kind))) == found


def test_a_content_that_was_cut_short_is_kept_as_it_is(reading: Reading) -> None:
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.input.messages": '[{"role": "us'}
    prompt, _ = reading("otlp", request(attributes))

    assert prompt["content"] == '[{"role": "us'
    assert prompt["boundary"] == "unreadable: not a list of messages"


@pytest.mark.parametrize(
    ("capture", "has_hash", "has_text"),
    [
        ("metadata", False, False),
        ("hashed", True, False),
        ("redacted", True, True),
        ("full", True, True),
    ],
)
def test_content_is_kept_as_the_capture_level_says(
    reading: Reading, context_of: ContextOf, capture: str, has_hash: bool, has_text: bool
) -> None:
    found = reading("otlp", request(OLD_INDEXED), context=context_of("otlp", capture))

    for prompt in found[:2]:
        assert prompt["capture"] == capture
        assert (prompt["content_hash"] is not None, prompt["content"] is not None) == (
            has_hash,
            has_text,
        )


def test_a_secret_in_a_tools_arguments_is_taken_out_at_every_level(reading: Reading) -> None:
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "login",
        "gen_ai.tool.call.arguments": {"user": "bob", "password": "hunter2!"},
    }
    found = reading("otlp", request(attributes))

    assert "hunter2!" not in json.dumps(found)
    assert [each["kind"] for each in found[0]["redactions"]] == ["secret"]
