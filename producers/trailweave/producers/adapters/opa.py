"""OPA decision logs -> `policy_decided`, one for each decision. Pure.

Takes EventV1 as OPA uploads it (arrays, gzip) and as its console log prints it. What a decision
said is read from `result`, which is any JSON: booleans, words such as "deny", and objects with
`allow`, `deny`, `effect` or `decision`. What says neither is `unknown` with the reason, never
guessed to be an allow.
"""

from collections.abc import Mapping
from typing import Any, Final

from trailweave.producers.adapters.record import (
    NOBODY,
    Context,
    Place,
    Source,
    Tie,
    Translated,
    fingerprint,
    json_hash,
    listed,
    make,
    malformed,
    named_identity,
    placed,
    scalar_text,
    table,
    text,
    texts,
    time_us,
)
from trailweave.producers.adapters.trace_ids import header_traceparent, hex_id
from trailweave.producers.identity import Identity
from trailweave.schemas.events import Json

_EFFECTS: Final = {
    word: effect
    for effect, words in {
        "allow": "true allow allowed permit permitted grant granted",
        "deny": "false deny denied forbid forbidden block blocked reject rejected",
        "modify": "modify modified rewrite transform",
        "step_up": "step_up step-up ask challenge require_approval require-approval",
    }.items()
    for word in words.split()
}
#: Rules of these names say no by being true, or by having members.
_DENYING: Final = frozenset(["deny", "denied", "violation", "violations", "forbid"])
_CALL_IDS: Final = ("call_id", "tool_call_id", "tool_use_id", "gen_ai.tool.call.id")
_TIMEOUTS: Final = ("timeout", "cancel", "deadline")

_NO_DECISION: Final = "a console line of OPA that is no decision"
_UNDEFINED: Final = "the decision is undefined: no rule gave a result"
_UNDECIDABLE: Final = "the result says neither allow nor deny"


def events_of(record: object, context: Context) -> Translated:
    """The event of one decision; raises `Rejected` for what is no decision."""
    if not isinstance(record, dict):
        raise malformed("a decision is an object")
    decision_id = text(record, "decision_id")
    if decision_id is None:
        if text(record, "msg") and text(record, "level"):
            return Translated(skipped=(_NO_DECISION,))
        raise malformed("decision_id is missing")
    source = _source(record, decision_id, context)
    return Translated((make(context, source, "policy_decided", _fields(record, context)),))


def _source(record: Json, decision_id: str, context: Context) -> Source:
    asked = table(record, "input")
    call_id = text(asked, *_CALL_IDS)
    ties = [Tie("call_id", call_id, open=True)] if call_id else []
    labels = {f"opa.label.{name}": value for name, value in table(record, "labels").items()}
    listing = {
        **labels,
        "opa.requested_by": record.get("requested_by"),
        "opa.req_id": record.get("req_id"),
        "opa.query": record.get("query"),
    }
    occurred_at = time_us(record.get("timestamp"))
    return Source(
        original_id=decision_id,
        fingerprint=fingerprint(record),
        place=_place(record, ties, decision_id, context),
        occurred_at=context.default_time_us if occurred_at is None else occurred_at,
        actor=_actor(asked, record),
        envelope={"agent_id": text(asked, "agent_id")},
        attributes={k: v for k, raw in listing.items() if (v := scalar_text(raw)) is not None},
    )


def _place(record: Json, ties: list[Tie], decision_id: str, context: Context) -> Place:
    context_http = table(table(record, "request_context"), "http")
    parent = header_traceparent(table(context_http, "headers"))
    trace_id = hex_id(record.get("trace_id"), 16) or (parent.trace_id if parent else None)
    place = placed(context, trace_id, ties, decision_id)
    span_id = hex_id(record.get("span_id"), 8)
    above = parent.span_id if parent and parent.trace_id == trace_id else None
    return Place(
        place.trace_id,
        place.how,
        place.handles,
        span_id=span_id,
        # OPA without tracing of its own logs the caller's span as the decision's.
        parent_span_id=above if above != span_id else None,
        parent_remote=True if above and above != span_id else None,
    )


def _actor(asked: Json, record: Json) -> Identity:
    """Whom the decision was about, as the policy's input names it; else who called OPA."""
    agent = text(asked, "agent", "agent_id")
    if agent is not None:
        return named_identity("agent", agent)
    somebody = text(asked, "subject", "principal")
    if somebody is not None:
        return named_identity("unknown", somebody)
    user = text(asked, "user")
    if user is not None:
        return named_identity("human", user)
    caller = text(record, "requested_by")
    return Identity("unknown", caller) if caller else NOBODY


def _fields(record: Json, context: Context) -> Json:
    asked = table(record, "input")
    hidden = [*texts(listed(record, "erased")), *texts(listed(record, "masked"))]
    effect, reason = _effect_of(record)
    error = _error(record)
    arguments = asked.get("arguments", asked.get("args"))
    return {
        "decision_id": record["decision_id"],
        "call_id": text(asked, *_CALL_IDS),
        "engine": "opa",
        "policy_id": policy_id(record),
        "bundles": _bundles(record),
        "effect": effect,
        "error": error,
        "timed_out": error is not None and any(word in error.lower() for word in _TIMEOUTS),
        "reason": reason,
        "obligations": texts(listed(table(record, "result"), "obligations")),
        "action": text(asked, "action", "operation", "tool", "method"),
        "resource": _resource(asked),
        # A hash of what is left after masking would match nothing: null says it was masked.
        "input_hash": _unmasked_hash(context, record.get("input"), "/input", hidden),
        "arguments_hash": _unmasked_hash(context, arguments, "/input/arg", hidden),
        "redactions": redactions(record),
    }


def policy_id(record: Mapping[str, Any]) -> str | None:
    """The rule asked for: its path without outer slashes, or the text of an ad-hoc query."""
    path = text(record, "path")
    if path is None:
        return text(record, "query")
    return path.strip("/") or "data"


def redactions(record: Mapping[str, Any]) -> list[Json]:
    """What OPA's own mask policy took out of the decision before it was logged."""
    return [
        {"field": pointer, "kind": kind, "count": 1, "hmac": None}
        for kind in ("erased", "masked")
        for pointer in texts(listed(record, kind))
    ]


def _unmasked_hash(context: Context, value: object, where: str, hidden: list[str]) -> str | None:
    if value is None or any(p.startswith(where) or where.startswith(f"{p}/") for p in hidden):
        return None
    return json_hash(context, value)


def _resource(asked: Json) -> str | None:
    path = asked.get("path")
    if isinstance(path, list):
        path = "/".join(texts(path))
    return text(asked, "resource") or (path if isinstance(path, str) and path else None)


def _bundles(record: Json) -> dict[str, str]:
    found = {
        name: revision
        for name, bundle in table(record, "bundles").items()
        if isinstance(bundle, dict) and (revision := text(bundle, "revision"))
    }
    old = text(record, "revision")
    return found or ({"default": old} if old else {})


def _error(record: Json) -> str | None:
    error = record.get("error")
    if error is None:
        return None
    if isinstance(error, dict):
        parts = texts([error.get("code"), error.get("message")])
        return ": ".join(parts) or "unknown error"
    return error if isinstance(error, str) and error else "unknown error"


def _effect_of(record: Json) -> tuple[str, str | None]:
    if record.get("error") is not None:
        return "unknown", None
    if "result" not in record:
        return "unknown", _UNDEFINED
    rule = (policy_id(record) or "").replace(".", "/").rpartition("/")[2]
    for name in ("result", "mapped_result"):
        effect = effect_of(record.get(name), rule)
        if effect != "unknown":
            return effect, _reason(record[name])
    return "unknown", _reason(record["result"]) or _UNDECIDABLE


def effect_of(result: object, rule: str = "") -> str:
    """allow, deny, modify, step_up, or unknown for a result that says none of them.

    `rule` is the name of the rule asked for: a true `deny` denies.
    """
    if rule in _DENYING:
        return "deny" if _says_no(result) else "unknown"
    if isinstance(result, bool):
        return "allow" if result else "deny"
    if isinstance(result, str):
        return _EFFECTS.get(result.strip().lower(), "unknown")
    if not isinstance(result, dict):
        return "unknown"
    if any(_says_no(result.get(name)) for name in _DENYING):
        return "deny"
    for name in ("effect", "decision", "allow", "allowed", "result"):
        effect = effect_of(result[name]) if isinstance(result.get(name), bool | str) else "unknown"
        if effect != "unknown":
            return effect
    return "unknown"


def _says_no(value: object) -> bool:
    if isinstance(value, str):
        return value.strip().lower() == "true"
    return value is True or (isinstance(value, list | dict) and len(value) > 0)


def _reason(result: object) -> str | None:
    if not isinstance(result, dict):
        return None
    for name in ("reasons", "reason", "message", "deny"):
        value = result.get(name)
        found = texts(value if isinstance(value, list) else [value])
        if found:
            return "; ".join(found)
    return None
