"""OTLP log records of GenAI work -> events: message events, and those of Claude Code. Pure.

Message events (`gen_ai.user.message`, `gen_ai.choice`, ...) are how older instrumentations record
what a span doesn't. The span of the same call gives model, tokens and status; a choice adds only
what was proposed, so its own status is `unknown`.
"""

from typing import Any, Final

from trailweave.producers.adapters import documents
from trailweave.producers.adapters.genai import cost_of, proposal
from trailweave.producers.adapters.record import (
    Content,
    Context,
    Source,
    Translated,
    event_id,
    json_in,
    make,
    number,
    text,
)
from trailweave.producers.adapters.spans import Log, source_of_log
from trailweave.producers.identity import Identity
from trailweave.schemas.events import Event, Json

_MESSAGES: Final = {
    "gen_ai.system.message": ("system", "system"),
    "gen_ai.user.message": ("user", "human"),
    "gen_ai.assistant.message": ("assistant", "agent"),
    "gen_ai.tool.message": ("tool", "tool"),
}
_CHOICE: Final = "gen_ai.choice"
_DETAILS: Final = "gen_ai.client.inference.operation.details"
_CLAUDE_CODE: Final = "claude_code."
#: What Claude Code writes where prompts are not to be logged.
_REDACTED: Final = "<REDACTED>"

_NOT_GENAI: Final = "a log record that is no GenAI event"


def events_of(log: Log, context: Context) -> Translated:
    """The events of one log record; raises `Rejected` for values that can't be read."""
    name = _name(log)
    source = source_of_log(log, context)
    if name in _MESSAGES:
        return Translated((_message(log, name, source, context),))
    if name == _CHOICE:
        return Translated((_choice(log, source, context),))
    if name == _DETAILS:
        # The span of the same call says all this, and would be doubled.
        return Translated(skipped=("details of a call that its span records",))
    reader = _CLAUDE.get(name.removeprefix(_CLAUDE_CODE)) if _is_claude_code(log, name) else None
    if reader is None:
        return Translated(skipped=(_NOT_GENAI,))
    return Translated(tuple(reader(log, source, context)))


def _name(log: Log) -> str:
    body = log.body if isinstance(log.body, str) else ""
    return body if body.startswith(_CLAUDE_CODE) else log.event_name or ""


def _is_claude_code(log: Log, name: str) -> bool:
    return name.startswith(_CLAUDE_CODE) or (log.scope or "").startswith(
        "com.anthropic.claude_code"
    )


# --- message events ---------------------------------------------------------------------------


def _body(log: Log) -> Json:
    return log.body if isinstance(log.body, dict) else {}


def _message(log: Log, name: str, source: Source, context: Context) -> Event:
    role, origin = _MESSAGES[name]
    body = _body(log)
    kept = {key: body[key] for key in ("content", "tool_calls", "id") if key in body}
    alone = kept["content"] if set(kept) == {"content"} else kept or None
    fields = {"role": role, "origin": origin, "content": Content(alone)}
    return make(context, source, "prompt_submitted", fields)


def _choice(log: Log, source: Source, context: Context) -> Event:
    body = _body(log)
    message = body.get("message")
    messages = documents.messages_of([message]) if isinstance(message, dict) else None
    calls = documents.tool_calls(messages or [])
    finish = text(body, "finish_reason")
    fields = {
        "provider": text(log.attributes, "gen_ai.provider.name", "gen_ai.system") or "unknown",
        "status": "unknown",
        "finish_reasons": [finish] if finish else [],
        "proposed": [
            proposal(call, index, log.span_id, context) for index, call in enumerate(calls)
        ],
        "content": Content(messages),
    }
    return make(context, source, "model_responded", fields)


# --- Claude Code ------------------------------------------------------------------------------


def _user_prompt(log: Log, source: Source, context: Context) -> list[Event]:
    prompt = text(log.attributes, "prompt")
    content = None if prompt == _REDACTED else prompt
    length = text(log.attributes, "prompt_length") or log.attributes.get("prompt_length")
    fields = {
        "role": "user",
        "origin": "human",
        "content": Content(content),
        "attributes": {"prompt_length": str(length)} if length is not None else {},
    }
    return [make(context, source, "prompt_submitted", fields)]


def _call_id(log: Log) -> tuple[str, str]:
    given = text(log.attributes, "tool_use_id")
    return (given, "provider") if given else (f"log-{log.fingerprint[:32]}", "synthesized")


def _tool_decision(log: Log, source: Source, context: Context) -> list[Event]:
    """The request, and who let it run or not: a person, or the configuration."""
    attributes = log.attributes
    call_id, call_id_source = _call_id(log)
    tool = text(attributes, "tool_name") or "unknown"
    requested = {
        "call_id": call_id,
        "call_id_source": call_id_source,
        "tool": tool,
        "arguments": Content(json_in(attributes.get("tool_parameters"))),
    }
    effect = {"accept": "allow", "reject": "deny"}.get(
        text(attributes, "decision") or "", "unknown"
    )
    by = text(attributes, "source") or "unknown"
    decided = event_id(context, source, "decision")
    events = [make(context, source, "tool_requested", requested)]
    if by.startswith("user"):
        approval = {
            "approval_id": decided,
            "call_id": call_id,
            "effect": effect,
            "by": source.envelope.get("sponsor") or Identity("human", "claude-code-user"),
            "reason": by,
        }
        return [*events, make(context, source, "approval_decided", approval)]
    policy = {
        "decision_id": decided,
        "call_id": call_id,
        "engine": "claude-code",
        "policy_id": by,
        "effect": effect,
        "action": tool,
        "reason": by,
    }
    return [*events, make(context, source, "policy_decided", policy)]


def _tool_result(log: Log, source: Source, context: Context) -> list[Event]:
    attributes = log.attributes
    took_ms = number(attributes, "duration_ms")
    succeeded = attributes.get("success") in (True, "true")
    known = "success" in attributes
    started = source.occurred_at - took_ms * 1000 if took_ms is not None else None
    fields = {
        "call_id": _call_id(log)[0],
        "tool": text(attributes, "tool_name"),
        "started_at": started if started is not None and started >= 0 else None,
        "status": ("ok" if succeeded else "error") if known else "unknown",
        "error": text(attributes, "error_type") or (None if succeeded or not known else "error"),
        "arguments_hash": None,
    }
    return [make(context, source, "tool_executed", fields)]


def _api_request(log: Log, source: Source, context: Context) -> list[Event]:
    attributes = log.attributes
    failed = _name(log).endswith("api_error")
    model = text(attributes, "model")
    fields = {
        "provider": "anthropic",
        "request_model": model,
        "model": None if failed else model,
        "response_id": text(attributes, "request_id"),
        "status": "error" if failed else "ok",
        "error": (text(attributes, "status_code") or "error") if failed else None,
        "input_tokens": number(attributes, "input_tokens"),
        "output_tokens": number(attributes, "output_tokens"),
        "cost_usd": cost_of(attributes.get("cost_usd")),
    }
    return [make(context, source, "model_responded", fields)]


_CLAUDE: Final[dict[str, Any]] = {
    "user_prompt": _user_prompt,
    "tool_decision": _tool_decision,
    "tool_result": _tool_result,
    "api_request": _api_request,
    "api_error": _api_request,
}
