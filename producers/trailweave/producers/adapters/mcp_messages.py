"""MCP messages of both protocol versions, as a file of them has them. Pure."""

import json
from dataclasses import dataclass
from typing import Final

from trailweave.producers.adapters.record import (
    Context,
    fingerprint,
    malformed,
    table,
    text,
    time_us,
)
from trailweave.producers.traceparent import TraceParent, read_traceparent
from trailweave.schemas.events import Json

#: What a person may answer to a request for input -> what that decides.
EFFECTS: Final = {"accept": "allow", "decline": "deny", "cancel": "deny"}


@dataclass(frozen=True, slots=True)
class Message:
    """One JSON-RPC message, and what its log line says besides."""

    body: Json
    session: str | None
    conversation: str
    occurred_at: int
    original_id: str
    fingerprint: str


def read_message(record: object, context: Context, position: int) -> Message:
    """The message of a record; raises `Rejected` for what is none."""
    if not isinstance(record, dict):
        raise malformed("a message is an object")
    line = record if isinstance(record.get("message"), dict) else {}
    body = _body(line["message"] if line else record)
    session = text(line, "session_id", "sessionId", "mcp_session_id")
    conversation = session or context.conversation
    occurred_at = time_us(text(line, "time", "timestamp", "ts"))
    return Message(
        body,
        session,
        conversation,
        context.default_time_us if occurred_at is None else occurred_at,
        original_id=f"{conversation}:{position}",
        fingerprint=fingerprint(record),
    )


def _body(body: Json) -> Json:
    """A JSON-RPC message; the parts of one that the specification prints alone are completed."""
    if "jsonrpc" in body:
        has_result = isinstance(body.get("result"), dict)
        if text(body, "method") or has_result or isinstance(body.get("error"), dict):
            return body
        raise malformed("neither method, nor result, nor error")
    if text(body, "method"):
        return body
    if text(body, "resultType") or isinstance(body.get("content"), list):
        return {"result": body}
    if text(body, "action") in EFFECTS:
        return {"result": body}
    if isinstance(body.get("code"), int) and text(body, "message"):
        return {"error": body}
    if text(body, "message") and (text(body, "url") or "requestedSchema" in body):
        return {"method": "elicitation/create", "params": body}
    if body and all(isinstance(each, dict) for each in body.values()) and answers_of(body):
        return {"method": "tools/call", "params": {"inputResponses": body}}
    raise malformed("no MCP message: jsonrpc is missing")


def answers_of(responses: Json) -> list[tuple[str, str]]:
    """Key and action of those input responses that accept, decline or cancel."""
    pairs = (
        (key, text(each, "action")) for key, each in responses.items() if isinstance(each, dict)
    )
    return [(key, action) for key, action in pairs if action in EFFECTS]


def number_of(message: Message) -> tuple[str, str]:
    """The conversation and the JSON-RPC id: what a response is matched by."""
    return message.conversation, json.dumps(message.body.get("id"), sort_keys=True)


def traceparent_of(message: Message) -> TraceParent | None:
    """The trace that a request continues, from `_meta`."""
    found = text(table(table(message.body, "params"), "_meta"), "traceparent")
    return read_traceparent(found) if found else None
