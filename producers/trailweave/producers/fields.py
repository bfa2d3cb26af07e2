"""The keyword arguments of every event method: the schemas' names, typed.

Contents and hashes are not among them: the methods take the content itself (`arguments`, `result`,
`content`, `accessor`, …) and keep of it what the capture level allows. Times are microseconds.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, get_type_hints

from trailweave.producers.identity import Identity

Status = Literal["ok", "error", "denied", "timeout", "cancelled", "unknown"]
Trust = Literal["unknown", "trusted", "untrusted"]
Effect = Literal["unknown", "allow", "deny", "modify", "step_up"]
ApprovalKind = Literal["approval", "override", "escalation", "exception"]
Purpose = Literal["production", "test", "red_team"]


class Destination(TypedDict, total=False):
    """Where a tool call sends data."""

    host: str
    zone: Literal["unknown", "internal", "external"]


class ProposedCall(TypedDict, total=False):
    """A tool call that a model asked for; without `call_id`, one is made up."""

    tool: str
    call_id: str
    arguments: Any


class ToolOffer(TypedDict, total=False):
    """A tool that the model could choose."""

    tool: str
    definition_hash: str | None


class EventFields(TypedDict, total=False):
    """What every event may say besides: the envelope's fields that differ between events."""

    occurred_at: int
    span_id: str
    parent_span_id: str | None
    actor: Identity
    reporter: Identity
    task_id: str
    data_class: str
    data_categories: Sequence[str]
    derived_from: Sequence[str]
    attributes: Mapping[str, str]
    #: Kind -> raw value; hashed with the tenant's key, for systems that know no trace id.
    correlate: Mapping[str, str]


class PromptFields(EventFields, total=False):
    """`prompt_submitted`."""

    role: str
    origin: Literal["human", "agent", "system", "tool", "memory"]
    boundary: str


class ContextFields(EventFields, total=False):
    """`context_retrieved`."""

    source_uri: str
    store: str
    document_ids: Sequence[str]
    trust: Trust
    flagged: str | None


class MemoryFields(EventFields, total=False):
    """`memory_accessed`."""

    memory_key: str
    operation: Literal["read", "write", "delete"]
    trust: Trust


class ModelFields(EventFields, total=False):
    """`model_responded`."""

    request_model: str
    model: str
    model_version: str
    response_id: str
    status: Status
    finish_reasons: Sequence[str]
    input_tokens: int
    output_tokens: int
    cost_usd: float
    server_address: str
    region: str
    error: str


class ToolRequestFields(EventFields, total=False):
    """`tool_requested`."""

    call_id: str
    initiator: Literal["model", "human", "workflow"]
    server: str
    server_version: str
    definition_hash: str
    protocol: str
    action: str
    required_scope: str
    resource: str
    resource_environment: str
    record_class: str
    destination: Destination | str
    side_effect: bool
    attempt: int
    retry_of: str


class ToolResultFields(EventFields, total=False):
    """`tool_executed`. `downstream_request_id` is the raw id; its keyed hash is kept."""

    tool: str
    started_at: int
    status: Status
    side_effect: bool
    result_data_class: str
    error: str | None
    downstream_request_id: str


class PolicyFields(EventFields, total=False):
    """`policy_decided`."""

    decision_id: str
    call_id: str
    subject_event_id: str
    supersedes: str
    engine: str
    policy_id: str
    bundles: Mapping[str, str]
    mode: Literal["enforced", "dry_run"]
    error: str
    timed_out: bool
    reason: str
    obligations: Sequence[str]
    action: str
    resource: str


class GuardrailFields(EventFields, total=False):
    """`guardrail_checked`."""

    guardrail_version: str
    stage: str
    action: str
    call_id: str
    subject_event_id: str
    reason: str


class ApprovalRequestFields(EventFields, total=False):
    """`approval_requested`."""

    approval_id: str
    call_id: str
    approval_kind: ApprovalKind
    requested_by: Identity | str
    to: Sequence[str]
    expires_at: int


class ApprovalFields(EventFields, total=False):
    """`approval_decided`."""

    call_id: str
    approval_kind: ApprovalKind
    requested_by: Identity | str
    reason: str
    ticket: str
    valid_until: int
    requested_at: int


class CredentialFields(EventFields, total=False):
    """The credential events. Ids and handles are raw; their keyed hashes are kept."""

    call_id: str
    credential_kind: str
    issuer: str
    subject: str
    credential_environment: str
    scopes_granted: Sequence[str]
    scope_exercised: str
    audience: str
    issued_at: int
    expires_at: int
    lease_id: str
    parent_credential_id: str
    issued_trace_id: str
    reason: str
    #: Kind (accessor, lease_id, jti, kid, …) -> raw value.
    handles: Mapping[str, str]


class CredentialUseFields(CredentialFields, total=False):
    """`credential_used`."""

    status: Status
    resource: str


class RotationFields(CredentialFields, total=False):
    """`credential_rotated`."""

    successor_credential_id: str


class DownstreamFields(EventFields, total=False):
    """`downstream_observed`. `credential_id` and `request_id` are raw; keyed hashes are kept."""

    resource: str
    principal: str
    credential_id: str
    call_id: str
    request_id: str
    status: Status
    source_address: str
    user_agent: str


class SessionFields(TypedDict, total=False):
    """What a session says of itself at its start, and its envelope on every event."""

    entrypoint: str
    initiator: Identity | str
    parent_session_event_id: str
    guardrails: Sequence[str]
    tools_offered: Sequence[ToolOffer | str]
    expected_sources: Sequence[str]
    policy_bundles: Mapping[str, str]
    sponsor: Identity | str
    scopes: Sequence[str]
    workflow_id: str
    parent_trace_id: str
    task_id: str
    conversation_id: str
    environment: str
    purpose: Purpose
    data_class: str
    data_categories: Sequence[str]


#: Which of them each event method takes.
FIELDS_OF: dict[str, type] = {
    "prompt_submitted": PromptFields,
    "context_retrieved": ContextFields,
    "memory_accessed": MemoryFields,
    "model_responded": ModelFields,
    "tool_requested": ToolRequestFields,
    "tool_executed": ToolResultFields,
    "policy_decided": PolicyFields,
    "guardrail_checked": GuardrailFields,
    "approval_requested": ApprovalRequestFields,
    "approval_decided": ApprovalFields,
    "credential_issued": CredentialFields,
    "credential_used": CredentialUseFields,
    "credential_renewed": CredentialFields,
    "credential_rotated": RotationFields,
    "credential_revoked": CredentialFields,
    "downstream_observed": DownstreamFields,
}

ALLOWED: dict[str, frozenset[str]] = {
    name: frozenset(get_type_hints(kind)) for name, kind in FIELDS_OF.items()
}
SESSION_FIELDS: frozenset[str] = frozenset(get_type_hints(SessionFields))
#: Those of a session that stand in the envelope of all its events.
SESSION_ENVELOPE: frozenset[str] = SESSION_FIELDS & {
    "sponsor", "workflow_id", "parent_trace_id", "task_id", "conversation_id", "environment",
    "purpose", "data_class", "data_categories",
}  # fmt: skip
