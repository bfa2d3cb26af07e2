"""Spans and log records in one plain form, and what events of either have in common. Pure."""

from dataclasses import dataclass, field, replace
from typing import Any, Final

from trailweave.producers.adapters.record import (
    NOBODY,
    Context,
    Source,
    Tie,
    named_identity,
    placed,
    scalar_text,
    text,
)
from trailweave.producers.identity import Identity
from trailweave.schemas.events import Json


@dataclass(frozen=True, slots=True)
class Span:
    """One span; ids in lower-case hex, times in microseconds."""

    trace_id: str | None
    span_id: str | None
    parent_span_id: str | None
    parent_remote: bool | None
    attributes: Json
    resource: Json = field(default_factory=dict)
    scope: str | None = None
    name: str = ""
    kind: str = "unspecified"
    started_at: int | None = None
    ended_at: int | None = None
    failed: bool = False
    events: tuple[tuple[str, Json], ...] = ()
    fingerprint: str = ""

    @property
    def original_id(self) -> str:
        """What names the span everywhere."""
        return f"{self.trace_id}:{self.span_id}" if self.trace_id else self.fingerprint


@dataclass(frozen=True, slots=True)
class Log:
    """One log record; the event name may stand in an attribute."""

    trace_id: str | None
    span_id: str | None
    event_name: str | None
    body: Any
    attributes: Json
    resource: Json
    scope: str | None
    occurred_at: int | None
    fingerprint: str


#: Facts without a field of their own that say something about the call; never content.
_KEPT: Final = (
    "gen_ai.operation.name",
    "gen_ai.agent.name",
    "gen_ai.output.type",
    "gen_ai.data_source.id",
    "gen_ai.request.max_tokens",
    "gen_ai.request.temperature",
    "gen_ai.request.top_p",
    "gen_ai.request.choice.count",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.total_tokens",
    "mcp.method.name",
    "mcp.session.id",
    "mcp.protocol.version",
    "jsonrpc.request.id",
    "prompt.id",
    "event.sequence",
    "ai.operationId",
)


def source_of_span(span: Span, context: Context) -> Source:
    """What the events of a span share; `occurred_at` is its start."""
    place = placed(context, span.trace_id, _ties(span.attributes), span.original_id)
    at = span.started_at if span.started_at is not None else span.ended_at
    return Source(
        span.original_id,
        span.fingerprint,
        replace(
            place,
            span_id=span.span_id,
            parent_span_id=span.parent_span_id,
            parent_remote=span.parent_remote,
        ),
        context.default_time_us if at is None else at,
        _actor(span.attributes, span.resource),
        _envelope(span.attributes, span.resource, context),
        _labels(span, {"otel.span.name": span.name}),
    )


def source_of_log(log: Log, context: Context) -> Source:
    """What the events of a log record share."""
    place = placed(context, log.trace_id, _ties(log.attributes), log.fingerprint)
    return Source(
        log.fingerprint,
        log.fingerprint,
        replace(place, parent_span_id=log.span_id),
        context.default_time_us if log.occurred_at is None else log.occurred_at,
        _actor(log.attributes, log.resource),
        _envelope(log.attributes, log.resource, context),
        _labels(log, {"otel.event.name": log.event_name}),
    )


def _ties(attributes: Json) -> list[Tie]:
    """A conversation ties what has no trace; a call id is narrower and comes after it."""
    found = (
        ("conversation_id", text(attributes, "gen_ai.conversation.id", "session.id")),
        ("call_id", text(attributes, "gen_ai.tool.call.id", "tool_use_id")),
    )
    return [Tie(kind, value, open=True) for kind, value in found if value]


def _envelope(attributes: Json, resource: Json, context: Context) -> Json:
    environment = text(resource, "deployment.environment.name", "deployment.environment")
    user = text(attributes, "enduser.id", "user.id")
    where = {
        "host": text(resource, "host.name"),
        "pod": text(resource, "k8s.pod.name"),
        "address": None,
    }
    return {
        "agent_id": text(attributes, "gen_ai.agent.id", "gen_ai.agent.name"),
        "agent_version": text(attributes, "gen_ai.agent.version"),
        "sponsor": Identity("human", user) if user else None,
        "conversation_id": text(attributes, "gen_ai.conversation.id", "session.id"),
        "environment": environment or context.environment,
        "runtime": where if where["host"] or where["pod"] else None,
    }


def _labels(of: Span | Log, own: dict[str, str | None]) -> dict[str, str]:
    """What has no field of its own."""
    listing: Json = {**own, "otel.scope.name": of.scope}
    listing |= {name: of.attributes.get(name) for name in _KEPT}
    listing |= {name: of.resource.get(name) for name in ("service.name", "service.version")}
    return {k: v for k, raw in listing.items() if (v := scalar_text(raw)) is not None}


def _actor(attributes: Json, resource: Json) -> Identity:
    agent = text(attributes, "gen_ai.agent.id", "gen_ai.agent.name")
    if agent is not None:
        return named_identity("agent", agent)
    service = text(resource, "service.name")
    return Identity("workload", service) if service else NOBODY
