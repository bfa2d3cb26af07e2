"""One method per event type: what a participant of a trace says.

Each method returns the id that later events refer to. Arguments have the schemas' names; contents
(`arguments`, `result`, `content`, …) are given as they are, and kept as the capture level allows.
Recording never waits for the network, so the same methods serve sync and async programs.
"""

import logging
import time
import uuid
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Literal, Self, Unpack

from trailweave.producers import fields as f
from trailweave.producers.identity import Identity, identity_of
from trailweave.producers.traceparent import TraceParent
from trailweave.producers.writer import Writer
from trailweave.schemas.errors import TrailError
from trailweave.schemas.ids import new_span_id

log = logging.getLogger(__name__)

#: Calls that were requested and not executed, whose span is remembered.
_CALLS_MAX: Final = 10_000

CredentialEvent = Literal[
    "credential_issued",
    "credential_used",
    "credential_renewed",
    "credential_rotated",
    "credential_revoked",
]


def micros() -> int:
    """Now, as the events' times have it."""
    return time.time_ns() // 1000


def new_id(kind: str) -> str:
    """An id for what came without one."""
    return f"{kind}_{uuid.uuid4().hex}"


class Participant:
    """Somebody who takes part in a trace: an agent's session, a gateway, a policy engine, a vault.

    Every method raises `TypeError` for a keyword its event doesn't have, `Rejected` for a value
    that can't be recorded, `EventTooLarge` above the size limit, and `SpoolFull` when memory and
    spool are full; the event was not recorded then, and its sequence number not used.
    """

    def __init__(self, writer: Writer, actor: Identity, flags: str) -> None:
        self._writer = writer
        self._actor = actor
        self._flags = flags
        self._call_spans: dict[str, str] = {}

    @property
    def trace_id(self) -> str:
        """The trace, 32 hex digits."""
        return self._writer.trace.trace_id

    @property
    def span_id(self) -> str:
        """The span of this participant, 16 hex digits."""
        return self._writer.span_id

    @property
    def traceparent(self) -> str:
        """The header with which others join this trace."""
        return str(TraceParent(self.trace_id, self.span_id, self._flags))

    def prompt_submitted(self, content: Any = None, **fields: Unpack[f.PromptFields]) -> str:
        """Text reached the model; returns the event's id."""
        return self._with_content("prompt_submitted", content, fields, {})

    def context_retrieved(self, content: Any = None, **fields: Unpack[f.ContextFields]) -> str:
        """Something was read into the context; returns the event's id."""
        return self._with_content("context_retrieved", content, fields, {})

    def memory_accessed(
        self, store: str, content: Any = None, **fields: Unpack[f.MemoryFields]
    ) -> str:
        """The agent's memory was read or written; returns the event's id."""
        return self._with_content("memory_accessed", content, fields, {"store": store})

    def model_responded(
        self,
        provider: str,
        content: Any = None,
        proposed: Iterable[f.ProposedCall] = (),
        **fields: Unpack[f.ModelFields],
    ) -> str:
        """A model answered, and proposed tool calls; returns the event's id."""
        captor = self._writer.captor()
        calls = []
        for call in proposed:
            _, digest = captor.json("proposed", call.get("arguments"))
            given = call.get("call_id")
            calls.append(
                {
                    "call_id": given or new_id("call"),
                    "call_id_source": "provider" if given else "synthesized",
                    "tool": call["tool"],
                    "arguments_hash": digest,
                }
            )
        kept, digest = captor.content("content", content)
        own = {"provider": provider, "proposed": calls, "content": kept, "content_hash": digest}
        return self._writer.write("model_responded", fields, own, captor)

    def tool_requested(
        self, tool: str, arguments: Any = None, **fields: Unpack[f.ToolRequestFields]
    ) -> str:
        """A tool call was sent to its gateway or executor; returns its call id.

        Without a `call_id` from the model's provider, one is made up.
        """
        captor = self._writer.captor()
        kept, digest = captor.json("arguments", arguments)
        call_id = fields.get("call_id")
        span_id = fields.get("span_id") or new_span_id()
        own: dict[str, Any] = {
            "tool": tool,
            "call_id": call_id or new_id("call"),
            "call_id_source": "provider" if call_id else "synthesized",
            "arguments": kept,
            "arguments_hash": digest,
            "span_id": span_id,
            "parent_span_id": fields.get("parent_span_id", self.span_id),
            "parent_remote": False,
        }
        destination = fields.get("destination")
        if isinstance(destination, str):
            own["destination"] = {"host": destination}
        self._writer.write("tool_requested", fields, own, captor)
        if len(self._call_spans) < _CALLS_MAX:
            self._call_spans[own["call_id"]] = span_id
        return str(own["call_id"])

    def tool_executed(
        self,
        call_id: str,
        result: Any = None,
        *,
        arguments: Any = None,
        **fields: Unpack[f.ToolResultFields],
    ) -> str:
        """A tool call ran, or was refused; of `arguments`, as executed, the hash is kept.

        The status is `ok`, or `error` with an `error`, unless it is given. Returns the event's id.
        """
        captor = self._writer.captor()
        kept, digest = captor.json("result", result)
        _, arguments_hash = captor.json("arguments", arguments)
        own: dict[str, Any] = {
            "call_id": call_id,
            "result": kept,
            "result_hash": digest,
            "arguments_hash": arguments_hash,
            "status": fields.get("status") or ("error" if fields.get("error") else "ok"),
        }
        span_id = self._call_spans.pop(call_id, None)
        if span_id is not None:
            own |= {"span_id": span_id, "parent_span_id": self.span_id, "parent_remote": False}
        if "downstream_request_id" in fields:
            own["downstream_request_id"] = self._writer.outlet.hashed_or_none(
                fields["downstream_request_id"]
            )
        return self._writer.write("tool_executed", fields, own, captor)

    def tool_call(
        self, tool: str, arguments: Any = None, **fields: Unpack[f.ToolRequestFields]
    ) -> "ToolCall":
        """`tool_requested` on entering, `tool_executed` on leaving, with `result` set inside."""
        return ToolCall(self, tool, arguments, fields)

    def policy_decided(
        self,
        effect: f.Effect,
        *,
        input: Any = None,  # noqa: A002 - what policy engines call it
        arguments: Any = None,
        modified_arguments: Any = None,
        **fields: Unpack[f.PolicyFields],
    ) -> str:
        """A policy engine decided; of the contents, hashes are kept. Returns the decision's id."""
        captor = self._writer.captor()
        decision_id = fields.get("decision_id") or new_id("decision")
        own = {
            "decision_id": decision_id,
            "effect": effect,
            "input_hash": captor.json("input", input)[1],
            "arguments_hash": captor.json("arguments", arguments)[1],
            "modified_arguments_hash": captor.json("modified_arguments", modified_arguments)[1],
        }
        self._writer.write("policy_decided", fields, own, captor)
        return decision_id

    def guardrail_checked(
        self, guardrail: str, verdict: str, **fields: Unpack[f.GuardrailFields]
    ) -> str:
        """A guardrail looked at content or a call; returns the event's id."""
        own = {"guardrail": guardrail, "verdict": verdict}
        return self._writer.write("guardrail_checked", fields, own, self._writer.captor())

    def approval_requested(
        self, *, context: Any = None, **fields: Unpack[f.ApprovalRequestFields]
    ) -> str:
        """Somebody was asked to approve; returns the approval's id.

        `context` is what the approver is shown; its hash is kept.
        """
        captor = self._writer.captor()
        approval_id = fields.get("approval_id") or new_id("approval")
        requested_by = identity_of(fields.get("requested_by", self._actor), "agent")
        own = {
            "approval_id": approval_id,
            "requested_by": requested_by.record(),
            "context_hash": captor.content("context", context)[1],
        }
        self._writer.write("approval_requested", fields, own, captor)
        return approval_id

    def approval_decided(
        self,
        approval_id: str,
        effect: f.Effect,
        by: Identity | str,
        *,
        arguments: Any = None,
        **fields: Unpack[f.ApprovalFields],
    ) -> str:
        """Somebody approved, rejected or overrode; a bare `by` is a human. Returns the event's id.

        Of `arguments`, as approved, the hash is kept.
        """
        captor = self._writer.captor()
        own: dict[str, Any] = {
            "approval_id": approval_id,
            "effect": effect,
            "by": identity_of(by, "human").record(),
            "arguments_hash": captor.json("arguments", arguments)[1],
        }
        if "requested_by" in fields:
            own["requested_by"] = identity_of(fields["requested_by"], "agent").record()
        return self._writer.write("approval_decided", fields, own, captor)

    def credential_issued(self, accessor: str, **fields: Unpack[f.CredentialFields]) -> str:
        """A credential or lease was handed out; returns its id, the keyed hash of the accessor.

        The accessor names a credential without being one. Never pass the secret itself.
        """
        return self._credential("credential_issued", accessor, fields)

    def credential_used(self, accessor: str, **fields: Unpack[f.CredentialUseFields]) -> str:
        """A credential was used; returns its id."""
        return self._credential("credential_used", accessor, fields)

    def credential_renewed(self, accessor: str, **fields: Unpack[f.CredentialFields]) -> str:
        """A lease was prolonged; returns the credential's id."""
        return self._credential("credential_renewed", accessor, fields)

    def credential_rotated(self, accessor: str, **fields: Unpack[f.RotationFields]) -> str:
        """A secret was replaced; returns the old credential's id."""
        return self._credential("credential_rotated", accessor, fields)

    def credential_revoked(self, accessor: str, **fields: Unpack[f.CredentialFields]) -> str:
        """A credential ended before its time; returns its id."""
        return self._credential("credential_revoked", accessor, fields)

    def downstream_observed(
        self, system: str, operation: str, **fields: Unpack[f.DownstreamFields]
    ) -> str:
        """A downstream system's log shows what really happened; returns the event's id."""
        own: dict[str, Any] = {"system": system, "operation": operation}
        outlet = self._writer.outlet
        if "credential_id" in fields:
            own["credential_id"] = outlet.hashed("credential_id", fields["credential_id"])
        if "request_id" in fields:
            own["request_id"] = outlet.hashed_or_none(fields["request_id"])
        return self._writer.write("downstream_observed", fields, own, self._writer.captor())

    def _with_content(
        self, name: str, content: Any, given: Mapping[str, Any], own: dict[str, Any]
    ) -> str:
        captor = self._writer.captor()
        own["content"], own["content_hash"] = captor.content("content", content)
        return self._writer.write(name, given, own, captor)

    def _credential(self, name: CredentialEvent, accessor: str, given: Mapping[str, Any]) -> str:
        outlet = self._writer.outlet
        own: dict[str, Any] = {"credential_id": outlet.hashed("accessor", accessor)}
        for field in ("parent_credential_id", "successor_credential_id"):
            if field in given:
                own[field] = outlet.hashed(field, given[field])
        if "lease_id" in given:
            own["lease_id"] = outlet.hashed("lease_id", given["lease_id"])
        if "handles" in given:
            own["handles"] = outlet.handles("handles", given["handles"])
        self._writer.write(name, given, own, self._writer.captor())
        return str(own["credential_id"])


class ToolCall:
    """One call as a context manager; hand `traceparent` to whoever executes it.

        with session.tool_call("search", arguments={"q": "weather"}) as call:
            call.result = search("weather")

    Leaving with an exception records status `error` and the exception's type, never its message.
    """

    def __init__(
        self, owner: Participant, tool: str, arguments: Any, fields: f.ToolRequestFields
    ) -> None:
        self.call_id = ""
        self.result: Any = None
        self.status: f.Status | None = None
        self.span_id = fields.setdefault("span_id", new_span_id())
        self._owner = owner
        self._tool = tool
        self._arguments = arguments
        self._fields = fields
        self._started_at = 0

    @property
    def traceparent(self) -> str:
        """The header with which the gateway or the tool joins the trace under this call."""
        owner = self._owner
        return str(TraceParent(owner.trace_id, self.span_id, owner._flags))  # noqa: SLF001 - its own

    def __enter__(self) -> Self:
        self.call_id = self._owner.tool_requested(self._tool, self._arguments, **self._fields)
        self._started_at = micros()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        given: f.ToolResultFields = {
            "tool": self._tool,
            "started_at": self._started_at,
            "side_effect": self._fields.get("side_effect", False),
            "status": self.status or status_of(kind),
        }
        if kind is not None:
            given["error"] = kind.__name__
        try:
            self._owner.tool_executed(self.call_id, self.result, arguments=self._arguments, **given)
        except TrailError as lost:
            # The agent's own exception must reach its caller; the missing outcome shows.
            if error is None:
                raise
            log.error("couldn't record the outcome of a call: %s", lost)  # noqa: TRY400 - said all

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)


#: By name, so that asyncio is not imported for it.
_CANCELLED: Final = frozenset(("CancelledError", "KeyboardInterrupt", "GeneratorExit"))


def status_of(kind: type[BaseException] | None) -> f.Status:
    """How something ended that was left with an exception of this type, or without one."""
    if kind is None:
        return "ok"
    if issubclass(kind, TimeoutError):
        return "timeout"
    return "cancelled" if kind.__name__ in _CANCELLED else "error"
