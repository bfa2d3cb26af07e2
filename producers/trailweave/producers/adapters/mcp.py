"""MCP messages -> tool, approval and result events. Pure.

A fold over the messages of one file, in order: a result is tied to its call by the JSON-RPC id,
and a retry that brings the input a server asked for is the same call, tied by the echoed
`requestState`, else by name and arguments. Reads 2026-07-28 (stateless, `input_required`) and
2025-11-25 (`initialize`, `elicitation/create`). A message may stand alone or under `message` of a
log line that adds `time` and `session_id`. What somebody typed into an elicitation is never kept.
"""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any, Final

from trailweave.producers.adapters.mcp_messages import (
    EFFECTS,
    Message,
    answers_of,
    number_of,
    read_message,
    traceparent_of,
)
from trailweave.producers.adapters.record import (
    Content,
    Context,
    Place,
    Source,
    Tie,
    Translated,
    fingerprint,
    handle_hash,
    json_hash,
    listed,
    make,
    malformed,
    placed,
    table,
    text,
)
from trailweave.producers.identity import Identity
from trailweave.schemas import ids
from trailweave.schemas.events import Event, Json

#: Requests without a response that are remembered; clients give up on a call long before.
WAITING_MAX: Final = 10_000

_META: Final = "io.modelcontextprotocol/"
#: Last part of the `_meta` names under which clients send the model's own id of a call.
_CALL_ID_NAMES: Final = frozenset(["toolcallid", "tooluseid", "callid"])


_SAME_CALL: Final = "a call that is tried again"


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call that waits for its result, or for input."""

    call_id: str
    provided: bool
    tool: str
    arguments: str
    place: Place
    asked_at: int


@dataclass(frozen=True, slots=True)
class Asked:
    """An approval that was asked for."""

    approval_id: str
    call: Call | None
    place: Place
    asked_at: int
    key: str = ""


@dataclass(slots=True)
class Conversation:
    """What earlier messages of a file said that later ones refer to."""

    #: (session, JSON-RPC id as JSON) -> the call; a server's own requests have ids of their own.
    calls: "OrderedDict[tuple[str, str], Call]" = field(default_factory=OrderedDict)
    asked: "OrderedDict[tuple[str, str], Asked]" = field(default_factory=OrderedDict)
    #: Calls that wait for input: by requestState, or by tool and arguments where there is none.
    held: "OrderedDict[tuple[str, str], list[Asked]]" = field(default_factory=OrderedDict)
    #: JSON-RPC id -> method, of requests that are no calls.
    others: "OrderedDict[tuple[str, str], str]" = field(default_factory=OrderedDict)
    client: str | None = None
    server: str | None = None
    server_version: str | None = None
    #: Tool -> hash of the definition that the server last listed.
    definitions: dict[str, str | None] = field(default_factory=dict)


def step(conversation: Conversation, record: object, context: Context, position: int) -> Translated:
    """Fold one message in; raises `Rejected` for what is no MCP message."""
    message = read_message(record, context, position)
    body = message.body
    if "method" in body:
        return _request(conversation, message, context)
    if "error" in body:
        return _failed(conversation, message, context)
    result = table(body, "result")
    if text(result, "action") in EFFECTS and "content" not in _call_result(result):
        return _elicited(conversation, message, context)
    if result.get("resultType") == "input_required":
        return _input_required(conversation, message, context)
    return _result(conversation, message, context)


def _call_result(result: Json) -> Json:
    """The result, if it is one of a tool call: its `content` is a list."""
    return result if isinstance(result.get("content"), list) else {}


def _place(message: Message, call_id: str | None, context: Context) -> Place:
    """By trace context, else the session that the line names, else the call's own trace."""
    ties = [Tie("mcp_session", message.session, open=True)] if message.session else []
    parent = traceparent_of(message)
    alone = f"call:{message.conversation}:{call_id or message.original_id}"
    place = placed(context, parent.trace_id if parent else None, ties, alone)
    if call_id is not None and (hashed := handle_hash(context, call_id)):
        handles = (*place.handles, {"kind": "call_id", "hash": hashed})
        place = replace(place, handles=handles)
    if parent is None:
        return place
    return replace(place, parent_span_id=parent.span_id, parent_remote=True)


def _source(conversation: Conversation, message: Message, place: Place) -> Source:
    actor = (
        Identity("agent", conversation.client)
        if conversation.client
        else Identity("unknown", "mcp-client")
    )
    attributes = (
        {"mcp.method.name": str(message.body["method"])} if "method" in message.body else {}
    )
    return Source(
        message.original_id,
        message.fingerprint,
        place,
        message.occurred_at,
        actor,
        attributes=attributes,
    )


def _remember(
    kept: "OrderedDict[tuple[str, str], Any]", key: tuple[str, str], value: object
) -> None:
    kept[key] = value
    if len(kept) > WAITING_MAX:
        kept.popitem(last=False)


# --- requests ---------------------------------------------------------------------------------


def _request(conversation: Conversation, message: Message, context: Context) -> Translated:
    method, params = str(message.body["method"]), table(message.body, "params")
    _learn(conversation, method, params)
    if method == "tools/call":
        return _call(conversation, message, context)
    if method == "elicitation/create":
        return _elicit(conversation, message, context)
    if "id" in message.body:
        _remember(conversation.others, number_of(message), method)
    return Translated(skipped=("an MCP method without an event",))


def _learn(conversation: Conversation, method: str, params: Json) -> None:
    """Who talks: self-reported names, from `initialize` or from every request's `_meta`."""
    info = table(params, "clientInfo") if method == "initialize" else {}
    info = info or table(table(params, "_meta"), f"{_META}clientInfo")
    conversation.client = text(info, "name") or conversation.client


def _call(conversation: Conversation, message: Message, context: Context) -> Translated:
    params = table(message.body, "params")
    answers = answers_of(table(params, "inputResponses"))
    held = _held(conversation, message)
    first = held[0].call if held else None
    if first is not None:
        _remember(conversation.calls, number_of(message), first)
        source = _source(conversation, message, first.place)
        decided = tuple(_decisions(answers, held, source, context))
        return Translated(decided, () if decided else (_SAME_CALL,))
    if text(params, "name") is None and not answers:
        raise malformed("a tools/call names no tool")
    call = _new_call(message, context)
    if "id" in message.body:
        _remember(conversation.calls, number_of(message), call)
    source = _source(conversation, message, call.place)
    events = []
    if text(params, "name"):
        fields = _requested(conversation, call, params)
        events.append(make(context, source, "tool_requested", fields))
    asked = [Asked(_approval_id(call.call_id, key), call, call.place, 0, key) for key, _ in answers]
    return Translated((*events, *_decisions(answers, asked, source, context)))


def _held(conversation: Conversation, message: Message) -> list[Asked]:
    """What was asked for in the call that this request tries again; nothing for a new call."""
    params = table(message.body, "params")
    state = text(params, "requestState")
    if state is not None:
        return conversation.held.pop((message.conversation, f"state:{state}"), [])
    if "inputResponses" not in params:
        return []
    return conversation.held.pop((message.conversation, _shape(params)), [])


def _shape(params: Json) -> str:
    return f"call:{text(params, 'name')}:{fingerprint(params.get('arguments'))}"


def _new_call(message: Message, context: Context) -> Call:
    params = table(message.body, "params")
    meta = table(params, "_meta")
    provided = next(
        (found for name in meta if _names_call(name) and (found := text(meta, name))), None
    )
    parent = traceparent_of(message)
    scope = f"{parent.trace_id}:{parent.span_id}" if parent else message.original_id
    number = number_of(message)[1]
    call_id = provided or f"mcp-{ids.derived_id(context.tenant, scope, number)}"
    return Call(
        call_id,
        provided is not None,
        text(params, "name") or "unknown",
        _shape(params),
        _place(message, call_id, context),
        message.occurred_at,
    )


def _names_call(name: str) -> bool:
    last = name.replace(".", "/").rpartition("/")[2]
    return (last.replace("_", "").lower() in _CALL_ID_NAMES) or name == "gen_ai.tool.call.id"


def _requested(conversation: Conversation, call: Call, params: Json) -> Json:
    return {
        "call_id": call.call_id,
        "call_id_source": "provider" if call.provided else "synthesized",
        "tool": call.tool,
        "server": conversation.server,
        "server_version": conversation.server_version,
        "definition_hash": conversation.definitions.get(call.tool),
        "protocol": "mcp",
        "arguments": Content(params.get("arguments", {})),
    }


def _decisions(
    answers: list[tuple[str, str]], asked: list[Asked], source: Source, context: Context
) -> list[Event]:
    by_key = {each.key: each for each in asked}
    return [
        make(context, source, "approval_decided", _decided(by_key[key], action), ordinal)
        for ordinal, (key, action) in enumerate(answers)
        if key in by_key
    ]


def _decided(asked: Asked, action: str) -> Json:
    return {
        "approval_id": asked.approval_id,
        "call_id": asked.call.call_id if asked.call else None,
        "effect": EFFECTS[action],
        # The protocol says that a person answered, not which.
        "by": Identity("human", "mcp-client-user"),
        "reason": action,
        "requested_at": asked.asked_at or None,
    }


def _approval_id(call_id: str, key: str) -> str:
    return ids.derived_id("mcp", call_id, key)


def _elicit(conversation: Conversation, message: Message, context: Context) -> Translated:
    """A server's own request for input: about the call that is open, where there is just one."""
    mine = [
        call for (where, _), call in conversation.calls.items() if where == message.conversation
    ]
    call = mine[0] if len(mine) == 1 else None
    place = call.place if call else _place(message, None, context)
    approval_id = _approval_id(message.original_id, "elicitation/create")
    if "id" in message.body:
        asked = Asked(approval_id, call, place, message.occurred_at)
        _remember(conversation.asked, number_of(message), asked)
    fields = _asked_for(conversation, approval_id, call, table(message.body, "params"), context)
    source = _source(conversation, message, place)
    return Translated((make(context, source, "approval_requested", fields),))


def _asked_for(
    conversation: Conversation, approval_id: str, call: Call | None, params: Json, context: Context
) -> Json:
    return {
        "approval_id": approval_id,
        "call_id": call.call_id if call else None,
        "requested_by": Identity("service_account", conversation.server or "mcp-server"),
        "to": ["mcp-client-user"],
        "context_hash": json_hash(context, params),
    }


# --- responses --------------------------------------------------------------------------------


def _elicited(conversation: Conversation, message: Message, context: Context) -> Translated:
    asked = conversation.asked.pop(number_of(message), None)
    if asked is None:
        unknown = _approval_id(message.original_id, "unknown")
        asked = Asked(unknown, None, _place(message, None, context), 0)
    action = text(table(message.body, "result"), "action") or ""
    source = _source(conversation, message, asked.place)
    return Translated((make(context, source, "approval_decided", _decided(asked, action)),))


def _input_required(conversation: Conversation, message: Message, context: Context) -> Translated:
    result = table(message.body, "result")
    call = conversation.calls.pop(number_of(message), None)
    place = call.place if call else _place(message, None, context)
    source = _source(conversation, message, place)
    scope = call.call_id if call else message.original_id
    wanted = _elicitations(result)
    asked = [
        Asked(_approval_id(scope, key), call, place, message.occurred_at, key) for key in wanted
    ]
    state = text(result, "requestState")
    if call is not None:
        held = f"state:{state}" if state else call.arguments
        # A call that waits for something else is still the same call when it is tried again.
        kept = asked or [Asked("", call, place, message.occurred_at)]
        _remember(conversation.held, (message.conversation, held), kept)
    if not asked:
        return Translated(skipped=("a request for input that asks no person",))
    events = []
    for ordinal, one in enumerate(asked):
        params = wanted[one.key]
        fields = _asked_for(conversation, one.approval_id, call, params, context)
        events.append(make(context, source, "approval_requested", fields, ordinal))
    return Translated(tuple(events))


def _elicitations(result: Json) -> dict[str, Json]:
    """What people are asked for; sampling and roots ask the client itself."""
    return {
        key: table(wanted, "params")
        for key, wanted in table(result, "inputRequests").items()
        if isinstance(wanted, dict) and text(wanted, "method") == "elicitation/create"
    }


def _result(conversation: Conversation, message: Message, context: Context) -> Translated:
    result = table(message.body, "result")
    number = number_of(message)
    call = conversation.calls.pop(number, None)
    method = conversation.others.pop(number, None)
    if call is None and (method is not None or not _call_result(result)):
        _learn_answer(conversation, method, result, context)
        return Translated(skipped=("a response to an MCP method without an event",))
    status = "error" if result.get("isError") is True else "ok"
    kept = {name: result[name] for name in ("content", "structuredContent") if name in result}
    fields = {
        "status": status,
        "error": "tool_error" if status == "error" else None,
        "result": Content(kept),
    }
    return _executed(conversation, message, call, fields, context)


def _learn_answer(
    conversation: Conversation, method: str | None, result: Json, context: Context
) -> None:
    if method == "initialize":
        server = table(result, "serverInfo")
        conversation.server = text(server, "name")
        conversation.server_version = text(server, "version")
    elif method == "tools/list":
        for tool in listed(result, "tools"):
            if isinstance(tool, dict) and (name := text(tool, "name")):
                conversation.definitions[name] = json_hash(context, tool)


def _failed(conversation: Conversation, message: Message, context: Context) -> Translated:
    """A protocol error: the call was not carried out, and that is its outcome."""
    call = conversation.calls.pop(number_of(message), None)
    if call is None:
        return Translated(skipped=("an error that answers no tool call of this file",))
    code = table(message.body, "error").get("code")
    error = f"jsonrpc {code}" if isinstance(code, int) else "jsonrpc error"
    fields = {"status": "error", "error": error}
    return _executed(conversation, message, call, fields, context)


def _executed(
    conversation: Conversation,
    message: Message,
    call: Call | None,
    fields: Json,
    context: Context,
) -> Translated:
    call_id = call.call_id if call else f"mcp-{ids.derived_id(message.original_id)}"
    place = call.place if call else _place(message, call_id, context)
    own = {
        "call_id": call_id,
        "tool": call.tool if call else None,
        "started_at": (call.asked_at or None) if call else None,
        **fields,
    }
    source = _source(conversation, message, place)
    return Translated((make(context, source, "tool_executed", own),))
