"""GenAI spans -> events, by current and older attribute names. Pure.

A model call becomes one `prompt_submitted` for each new message of its input and one
`model_responded`; a tool span `tool_requested` and `tool_executed`; an agent span the start and the
end of a session. What a model call repeats of earlier turns is one event of its own, or each turn
would record all turns before it again.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from trailweave.producers.adapters import documents
from trailweave.producers.adapters.record import (
    Content,
    Context,
    Source,
    Translated,
    json_hash,
    json_in,
    make,
    malformed,
    number,
    scalar_text,
    text,
    texts,
)
from trailweave.producers.adapters.spans import Span, source_of_span
from trailweave.schemas import ids
from trailweave.schemas.events import Event, Json

#: Names that older instrumentations use where `gen_ai.operation.name` is missing.
_OPERATION_NAMES: Final = ("gen_ai.operation.name", "llm.request.type", "traceloop.span.kind")
_OPERATIONS: Final = {
    **dict.fromkeys(["chat", "generate_content", "text_completion", "completion"], "model"),
    **dict.fromkeys(["execute_tool", "tool"], "tool"),
    **dict.fromkeys(["invoke_agent", "invoke_workflow", "agent", "workflow"], "agent"),
    **dict.fromkeys(["embeddings", "embedding", "retrieval", "rerank"], "retrieval"),
}
_MEMORY: Final = {
    "search_memory": "read",
    "create_memory": "write",
    "update_memory": "write",
    "upsert_memory": "write",
    "delete_memory": "delete",
    "delete_memory_store": "delete",
}

_PROVIDER: Final = ("gen_ai.provider.name", "gen_ai.system", "llm.vendor", "ai.model.provider")
_REQUEST_MODEL: Final = ("gen_ai.request.model", "llm.request.model", "ai.model.id")
_RESPONSE_MODEL: Final = ("gen_ai.response.model", "llm.response.model", "ai.response.model")
_RESPONSE_ID: Final = ("gen_ai.response.id", "llm.response.id", "ai.response.id")
_FINGERPRINT: Final = (
    "openai.response.system_fingerprint",
    "gen_ai.openai.response.system_fingerprint",
    "gen_ai.response.system_fingerprint",
)
_INPUT_TOKENS: Final = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.prompt_tokens",
    "llm.usage.prompt_tokens",
    "ai.usage.promptTokens",
)
_OUTPUT_TOKENS: Final = (
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.usage.completion_tokens",
    "ai.usage.completionTokens",
)
_INPUTS: Final = ("gen_ai.input.messages", "gen_ai.prompt", "ai.prompt.messages")
_OUTPUTS: Final = ("gen_ai.output.messages", "gen_ai.completion")
_CONTENT_EVENTS: Final = (
    "gen_ai.client.inference.operation.details",
    "gen_ai.content.prompt",
    "gen_ai.content.completion",
)

_NOT_GENAI: Final = "a span that is no GenAI span"
_NO_EVENT: Final = "a GenAI operation without an event"
_ORIGINS: Final = {"system": "system", "developer": "system", "assistant": "agent", "tool": "tool"}


def events_of(span: Span, context: Context) -> Translated:
    """The events of one span; raises `Rejected` for values that can't be read."""
    reader = _reader(span)
    if isinstance(reader, str):
        return Translated(skipped=(reader,))
    return Translated(tuple(reader(span, source_of_span(span, context), context)))


def _reader(span: Span) -> "Callable[[Span, Source, Context], list[Event]] | str":
    """How to read the span, or why it is passed over."""
    attributes = span.attributes
    operation = text(attributes, *_OPERATION_NAMES)
    method = text(attributes, "mcp.method.name")
    if method is not None and span.kind == "server":
        # The client's span of the same call is the call; this is what the server saw of it.
        return _observed if method == "tools/call" else _NO_EVENT
    if method == "tools/call":
        return _tool
    if method == "resources/read":
        return _retrieval
    if operation in _MEMORY:
        return _memory
    if operation is not None:
        found = _OPERATIONS.get(operation)
        return _READERS[found] if found else _NO_EVENT
    return _unnamed(attributes)


def _unnamed(attributes: Json) -> "Callable[[Span, Source, Context], list[Event]] | str":
    """Spans without an operation: the AI SDK's, and older model calls known by their model."""
    sdk = text(attributes, "ai.operationId") or ""
    if sdk == "ai.toolCall":
        return _tool
    if sdk.startswith("ai.") and not sdk.rpartition(".")[2].startswith("do"):
        return "a span around another span of the same call"
    if text(attributes, *_REQUEST_MODEL) and text(attributes, *_PROVIDER):
        return _retrieval if "embed" in sdk.lower() else _model
    return _NO_EVENT if any(n.startswith("gen_ai.") for n in attributes) else _NOT_GENAI


# --- model calls ------------------------------------------------------------------------------


def _model(span: Span, source: Source, context: Context) -> list[Event]:
    return [
        *_prompts(span, source, context),
        make(context, source, "model_responded", _response(span, context)),
    ]


def _prompts(span: Span, source: Source, context: Context) -> list[Event]:
    made = []
    system = _content(span, ("gen_ai.system_instructions",))
    if system is not None:
        made.append(_prompt("system", "system", json_in(system)))
    raw = _content(span, _INPUTS)
    messages = documents.indexed_messages(span.attributes, "gen_ai.prompt")
    if raw is not None:
        found = documents.messages_of(raw)
        if found is None:
            # Cut at the exporter's length limit, or of a form nobody published: kept as it is.
            unreadable = _prompt("unknown", "human", json_in(raw))
            made.append({**unreadable, "boundary": "unreadable: not a list of messages"})
        messages = found or []
    earlier, new = _turns(messages)
    if earlier:
        history = _prompt("history", "memory", earlier)
        made.append({**history, "boundary": f"{len(earlier)} messages of earlier turns"})
    made += [_prompt_of(message) for message in new]
    return [
        make(context, source, "prompt_submitted", fields, ordinal)
        for ordinal, fields in enumerate(made)
    ]


def _turns(messages: list[Json]) -> tuple[list[Json], list[Json]]:
    """What came up to the model's last answer, and what is new since."""
    last = max((i for i, m in enumerate(messages) if m.get("role") == "assistant"), default=-1)
    return messages[: last + 1], messages[last + 1 :]


def _prompt_of(message: Json) -> Json:
    role = text(message, "role") or "user"
    origin = "tool" if documents.answers_a_tool(message) else _ORIGINS.get(role, "human")
    return _prompt(role, origin, documents.plain(message.get("parts")))


def _prompt(role: str, origin: str, content: object) -> Json:
    return {"role": role, "origin": origin, "content": Content(content)}


def _content(span: Span, names: tuple[str, ...]) -> object:
    """A content attribute of the span, or of a span event that carries its contents."""
    for attributes in (span.attributes, *(a for n, a in span.events if n in _CONTENT_EVENTS)):
        for name in names:
            if attributes.get(name):
                return attributes[name]
    return None


def _response(span: Span, context: Context) -> Json:
    attributes = span.attributes
    messages = _outputs(span)
    status, error = status_of(span)
    calls = documents.tool_calls(messages or [])
    return {
        # A response is there when the span ends.
        "occurred_at": _end(span, context),
        "provider": text(attributes, *_PROVIDER) or "unknown",
        "request_model": text(attributes, *_REQUEST_MODEL),
        "model": text(attributes, *_RESPONSE_MODEL),
        "model_version": text(attributes, *_FINGERPRINT),
        "response_id": text(attributes, *_RESPONSE_ID),
        "status": status,
        "error": error,
        "finish_reasons": _finish_reasons(attributes, messages),
        "proposed": [
            proposal(call, index, span.span_id, context) for index, call in enumerate(calls)
        ],
        "input_tokens": number(attributes, *_INPUT_TOKENS),
        "output_tokens": number(attributes, *_OUTPUT_TOKENS),
        "cost_usd": cost_of(attributes.get("gen_ai.usage.cost")),
        "server_address": text(attributes, "server.address"),
        "region": text(attributes, "cloud.region") or text(span.resource, "cloud.region"),
        "content": Content(_answer(span, messages)),
        "attributes": _offered(attributes),
    }


def _answer(span: Span, messages: list[Json] | None) -> object:
    if messages is None:
        return _content(span, _OUTPUTS)
    alone = documents.plain(messages[0].get("parts")) if len(messages) == 1 else None
    return alone if isinstance(alone, str) else messages


def _outputs(span: Span) -> list[Json] | None:
    """The answers, one for each choice."""
    indexed = documents.indexed_messages(span.attributes, "gen_ai.completion")
    if indexed:
        return indexed
    raw = _content(span, _OUTPUTS)
    if raw is not None:
        return documents.messages_of(raw)
    answer, calls = (
        span.attributes.get("ai.response.text"),
        span.attributes.get("ai.response.toolCalls"),
    )
    if not answer and not calls:
        return None
    message = {"role": "assistant", "content": answer, "tool_calls": json_in(calls)}
    return documents.messages_of([message])


def proposal(call: documents.ToolCall, index: int, span_id: str | None, context: Context) -> Json:
    """A proposed call as the schema has it."""
    made_up = f"{span_id or 'unknown'}:{index}"
    return {
        "call_id": call.call_id or made_up,
        "call_id_source": "provider" if call.call_id else "synthesized",
        "tool": call.tool,
        "arguments_hash": json_hash(context, call.arguments),
    }


def _finish_reasons(attributes: Mapping[str, Any], messages: list[Json] | None) -> list[str]:
    stated = json_in(attributes.get("gen_ai.response.finish_reasons"))
    found = texts(stated if isinstance(stated, list) else [stated])
    if not found and (
        old := text(attributes, "llm.response.finish_reason", "ai.response.finishReason")
    ):
        found = [old]
    return found or texts([message.get("finish_reason") for message in messages or []])


def cost_of(value: object) -> float | None:
    """A cost in dollars that may come as a text; None for what is none."""
    try:
        found = float(value) if isinstance(value, int | float | str) else -1.0
    except (ValueError, OverflowError):
        return None
    return found if 0 <= found < float("inf") else None


def _offered(attributes: Mapping[str, Any]) -> dict[str, str]:
    names = [name for name, _ in documents.definitions(attributes.get("gen_ai.tool.definitions"))]
    return {"gen_ai.tool.definitions": ",".join(names)} if names else {}


# --- tools ------------------------------------------------------------------------------------


def _tool(span: Span, source: Source, context: Context) -> list[Event]:
    attributes = span.attributes
    given = text(attributes, "gen_ai.tool.call.id", "ai.toolCall.id")
    call_id = given or f"span-{span.span_id or ids.derived_id(span.original_id)}"
    arguments = _first(
        attributes,
        "gen_ai.tool.call.arguments",
        "ai.toolCall.args",
        "input",
        "traceloop.entity.input",
    )
    result = _first(
        attributes,
        "gen_ai.tool.call.result",
        "ai.toolCall.result",
        "output",
        "traceloop.entity.output",
    )
    tool = text(attributes, "gen_ai.tool.name", "ai.toolCall.name", "traceloop.entity.name")
    is_mcp = text(attributes, "mcp.method.name") is not None
    status, error = status_of(span)
    requested = {
        "call_id": call_id,
        "call_id_source": "provider" if given else "synthesized",
        "tool": tool or "unknown",
        "server": text(attributes, "server.address") if is_mcp else None,
        "protocol": "mcp" if is_mcp else text(attributes, "gen_ai.tool.type") or "function",
        "arguments": Content(json_in(arguments)),
    }
    executed = {
        "occurred_at": _end(span, context),
        "call_id": call_id,
        "tool": tool,
        "started_at": span.started_at,
        "status": status,
        "error": error,
        "arguments_hash": json_hash(context, arguments),
        "result": Content(json_in(result)),
    }
    return [
        make(context, source, "tool_requested", requested),
        make(context, source, "tool_executed", executed),
    ]


def _first(attributes: Mapping[str, Any], *names: str) -> Any:
    return next((attributes[name] for name in names if attributes.get(name) is not None), None)


def _observed(span: Span, source: Source, context: Context) -> list[Event]:
    status, _ = status_of(span)
    fields = {
        "system": "mcp",
        "operation": "tools/call",
        "resource": text(span.attributes, "gen_ai.tool.name"),
        "call_id": text(span.attributes, "gen_ai.tool.call.id"),
        "principal": text(span.resource, "service.name"),
        "status": status,
        "source_address": text(span.attributes, "client.address"),
    }
    return [make(context, source, "downstream_observed", fields)]


# --- agents, retrieval, memory ----------------------------------------------------------------


def _agent(span: Span, source: Source, context: Context) -> list[Event]:
    attributes = span.attributes
    status, error = status_of(span)
    offered = documents.definitions(attributes.get("gen_ai.tool.definitions"))
    started = {
        "entrypoint": text(attributes, *_OPERATION_NAMES),
        "tools_offered": [
            {"tool": name, "definition_hash": json_hash(context, row)} for name, row in offered
        ],
        "expected_sources": ["agent"],
    }
    # Only the span that nothing stands above ends the trace.
    root = span.trace_id is not None and span.parent_span_id is None
    ended = {"occurred_at": _end(span, context), "outcome": error, "status": status, "root": root}
    return [
        make(context, source, "session_started", started),
        make(context, source, "session_ended", ended),
    ]


def _retrieval(span: Span, source: Source, context: Context) -> list[Event]:
    attributes = span.attributes
    operation = text(attributes, *_OPERATION_NAMES) or "retrieval"
    found = attributes.get("gen_ai.retrieval.documents")
    listing = {
        "gen_ai.request.model": text(attributes, *_REQUEST_MODEL),
        "gen_ai.usage.input_tokens": scalar_text(number(attributes, *_INPUT_TOKENS)),
    }
    is_embedding = operation.startswith("embed")
    store = "embedding" if is_embedding else text(attributes, "gen_ai.data_source.id", "db.system")
    fields = {
        "occurred_at": _end(span, context),
        "source_uri": text(attributes, "mcp.resource.uri"),
        "store": store or "document",
        "document_ids": documents.document_ids(found),
        "content": Content(json_in(found)),
        "attributes": {name: value for name, value in listing.items() if value},
    }
    return [make(context, source, "context_retrieved", fields)]


def _memory(span: Span, source: Source, context: Context) -> list[Event]:
    attributes = span.attributes
    content = _first(attributes, "gen_ai.memory.records", "gen_ai.memory.record.content")
    fields = {
        "store": text(attributes, "gen_ai.memory.store.id", "gen_ai.memory.store.name") or "memory",
        "memory_key": text(attributes, "gen_ai.memory.record.id"),
        "operation": _MEMORY[text(attributes, *_OPERATION_NAMES) or ""],
        "content": Content(json_in(content)),
    }
    return [make(context, source, "memory_accessed", fields)]


_READERS: Final[dict[str, Callable[[Span, Source, Context], list[Event]]]] = {
    "model": _model,
    "tool": _tool,
    "agent": _agent,
    "retrieval": _retrieval,
}


# --- how it ended -----------------------------------------------------------------------------


def status_of(span: Span) -> tuple[str, str | None]:
    """The status, and the error's type: a message may hold anything, a type doesn't."""
    error = text(span.attributes, "error.type")
    if error is None and not span.failed:
        return "ok", None
    kind = (error or "").lower()
    if "timeout" in kind or "deadline" in kind:
        return "timeout", error
    if "cancel" in kind:
        return "cancelled", error
    return "error", error or "error"


def _end(span: Span, context: Context) -> int:
    """When the span ended; raises `Rejected` when that was before it started."""
    if span.ended_at is None:
        return context.default_time_us if span.started_at is None else span.started_at
    if span.started_at is not None and span.ended_at < span.started_at:
        raise malformed("endTimeUnixNano lies before startTimeUnixNano")
    return span.ended_at
