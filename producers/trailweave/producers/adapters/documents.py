"""GenAI content documents: messages, tool arguments, retrieved documents. Pure.

Spans and log records carry them as JSON texts, as structured values, or spread over indexed
attributes (`gen_ai.prompt.0.content`); all end as a list of messages {role, parts, finish_reason?}
in the form of the OpenTelemetry GenAI conventions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from trailweave.producers.adapters.record import json_in, listed, table, text
from trailweave.schemas.events import Json

#: Indexed attributes above this are none: an index is a position in a list of messages.
INDEX_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model proposed."""

    call_id: str | None
    tool: str
    arguments: object


@dataclass(frozen=True, slots=True)
class Problem:
    """Where a content document leaves its schema: the place, and the JSON Schema keyword."""

    path: str
    keyword: str


def messages_of(value: object) -> list[Json] | None:
    """The messages of a content attribute, or None if it holds none (a text cut short, say)."""
    found = json_in(value)
    if isinstance(found, dict):
        found = found.get("messages", [found])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        return None
    messages = [_message(each) for each in found]
    return None if problems("gen-ai-input-messages.json", messages) else messages


def _message(message: Json) -> Json:
    """The message with parts; older forms have `content` and `tool_calls` instead."""
    if "parts" in message:
        return message
    made: Json = {"role": message.get("role", "assistant")}
    called = [_call_part(each) for each in listed(message, "tool_calls") if isinstance(each, dict)]
    made["parts"] = [*_content_parts(message), *called]
    for name in ("finish_reason", "finishReason"):
        if isinstance(message.get(name), str):
            made["finish_reason"] = message[name]
    return made


def _content_parts(message: Json) -> list[Json]:
    content = message.get("content")
    call_id = message.get("tool_call_id", message.get("id"))
    if message.get("role") == "tool" and (content is not None or call_id is not None):
        return [{"type": "tool_call_response", "id": call_id, "response": content}]
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    blocks = content if isinstance(content, list) else []
    return [_block(each) for each in blocks if isinstance(each, dict)]


def _block(block: Json) -> Json:
    """A block of a provider's own message form as a part."""
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "content": block.get("text", block.get("content", ""))}
    if kind in ("tool_use", "tool-call"):
        return {
            "type": "tool_call",
            "id": block.get("id", block.get("toolCallId")),
            "name": block.get("name", block.get("toolName")),
            "arguments": block.get("input", block.get("args")),
        }
    if kind in ("tool_result", "tool-result"):
        response = block.get("content", block.get("output", block.get("result")))
        call_id = block.get("tool_use_id", block.get("toolCallId"))
        return {"type": "tool_call_response", "id": call_id, "response": response}
    return block if isinstance(kind, str) else {"type": "unknown", **block, "kind": "unknown"}


def _call_part(call: Json) -> Json:
    function = call.get("function")
    inner = function if isinstance(function, dict) else call
    return {
        "type": "tool_call",
        "id": call.get("id", call.get("toolCallId")),
        "name": inner.get("name", call.get("toolName")),
        "arguments": json_in(inner.get("arguments", call.get("args", call.get("input")))),
    }


def indexed_messages(attributes: Mapping[str, Any], prefix: str) -> list[Json]:
    """The messages spread over `<prefix>.0.role`, `<prefix>.0.tool_calls.0.name`, ..."""
    rows: dict[int, Json] = {}
    for name, value in attributes.items():
        index, _, rest = name.removeprefix(f"{prefix}.").partition(".")
        if name.startswith(f"{prefix}.") and rest and _is_index(index):
            rows.setdefault(int(index), {})[rest] = value
    return [_message(_row(rows[index])) for index in sorted(rows)]


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= 5 and int(part) < INDEX_MAX


def _row(row: Json) -> Json:
    calls: dict[int, Json] = {}
    made = {}
    for name, value in row.items():
        index, _, rest = name.removeprefix("tool_calls.").partition(".")
        if name.startswith("tool_calls.") and rest and _is_index(index):
            calls.setdefault(int(index), {})[rest.removeprefix("function.")] = value
        else:
            made[name] = value
    content = json_in(made.get("content"))
    if isinstance(content, list):
        made["content"] = content
    return {**made, "tool_calls": [parsed_function(calls[index]) for index in sorted(calls)]}


def parsed_function(call: Json) -> Json:
    """A call whose `function` is a JSON text, opened."""
    function = json_in(call.get("function"))
    return {**call, "function": function} if isinstance(function, dict) else call


def tool_calls(messages: Iterable[Json]) -> list[ToolCall]:
    """Every call that the messages propose, in order."""
    return [
        ToolCall(text(part, "id"), text(part, "name") or "unknown", json_in(part.get("arguments")))
        for message in messages
        for part in listed(message, "parts")
        if isinstance(part, dict) and part.get("type") == "tool_call"
    ]


def plain(parts: object) -> object:
    """The text, where the parts are one text and nothing else; so it reads and hashes as one."""
    only = parts[0] if isinstance(parts, list) and len(parts) == 1 else None
    if isinstance(only, dict) and only.get("type") == "text" and text(only, "content"):
        return only["content"]
    return parts


def answers_a_tool(message: Json) -> bool:
    """Whether the message brings a tool's result, whatever role it is sent under."""
    return any(
        isinstance(part, dict) and part.get("type") == "tool_call_response"
        for part in listed(message, "parts")
    )


def document_ids(value: object) -> list[str]:
    """Ids of retrieved documents, from `gen_ai.retrieval.documents`."""
    found = json_in(value)
    rows = found if isinstance(found, list) else []
    return [name for row in rows if isinstance(row, dict) and (name := text(row, "id"))]


def definitions(value: object) -> list[tuple[str, Json]]:
    """Name and definition of each tool of `gen_ai.tool.definitions`."""
    found = json_in(value)
    rows = [row for row in (found if isinstance(found, list) else []) if isinstance(row, dict)]
    named = [(text(row, "name") or text(table(row, "function"), "name"), row) for row in rows]
    return [(name, row) for name, row in named if name]


# --- the published schemas, as far as a reader depends on them --------------------------------

#: Part type -> its fields that have to be texts.
_PART_TEXTS: Final = {
    "text": ("content",),
    "reasoning": ("content",),
    "tool_call": ("name",),
    "generic": ("generic_type",),
}


def problems(schema: str, document: object) -> list[Problem]:
    """Where a document leaves the conventions' schema of that file name; none for a good one.

    Raises `KeyError` for a schema that is not known here.
    """
    return _CHECKS[schema](document)


def _messages(document: object) -> list[Problem]:
    if not isinstance(document, list):
        return [Problem("$", "type")]
    found = []
    for index, message in enumerate(document):
        where = f"$[{index}]"
        if not isinstance(message, dict):
            found.append(Problem(where, "type"))
            continue
        found += _texts(message, where, ("role",), required=True)
        found += _texts(message, where, ("finish_reason",), required=False)
        found += _parts(message.get("parts"), f"{where}.parts")
    return found


def _parts(parts: object, where: str) -> list[Problem]:
    if not isinstance(parts, list):
        return [Problem(where, "type")]
    found = []
    for index, part in enumerate(parts):
        inside = f"{where}[{index}]"
        if not isinstance(part, dict):
            found.append(Problem(inside, "type"))
            continue
        found += _texts(part, inside, ("type",), required=True)
        found += _texts(part, inside, _PART_TEXTS.get(str(part.get("type")), ()), required=False)
    return found


def _texts(record: Json, where: str, names: Iterable[str], *, required: bool) -> list[Problem]:
    found = []
    for name in names:
        if name not in record:
            found += [Problem(where, "required")] if required else []
        elif not isinstance(record[name], str):
            found.append(Problem(f"{where}.{name}", "type"))
    return found


def _object(document: object) -> list[Problem]:
    return [] if isinstance(document, dict) else [Problem("$", "type")]


def _documents(document: object) -> list[Problem]:
    if not isinstance(document, list):
        return [Problem("$", "type")]
    rows = enumerate(document)
    return [Problem(f"$[{index}]", "type") for index, row in rows if not isinstance(row, dict)]


_CHECKS: Final = {
    "gen-ai-input-messages.json": _messages,
    "gen-ai-output-messages.json": _messages,
    "gen-ai-tool-call-arguments.json": _object,
    "gen-ai-retrieval-documents.json": _documents,
}
