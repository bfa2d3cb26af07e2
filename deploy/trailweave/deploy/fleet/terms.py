"""What scripts talk about: calls, credentials, approvals, and where a story plays."""

from dataclasses import dataclass
from typing import Literal

from trailweave.deploy.fleet.cast import Json, Tool

Effect = Literal["allow", "deny", "step_up"]
Initiator = Literal["model", "human", "workflow"]
ApprovalKind = Literal["approval", "override", "escalation"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool, from its proposal to its outcome."""

    call_id: str
    tool: Tool
    resource: str
    arguments: str
    arguments_hash: str
    initiator: Initiator
    #: Who asks for it, where that is not the agent.
    actor: Json | None


@dataclass(frozen=True, slots=True)
class Credential:
    """A lease that the vault handed out."""

    credential_id: str
    fields: Json


@dataclass(frozen=True, slots=True)
class Approval:
    """A request to a person."""

    approval_id: str
    kind: ApprovalKind
    call: Call
    requested_us: int


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and under what rules a story plays."""

    data_class: str = "internal"
    data_categories: tuple[str, ...] = ()
    capture: Literal["hashed", "full"] = "full"
    entrypoint: str = "api"
    workflow: str = ""


def proposal(call: Call) -> Json:
    """A call as the model's response carries it."""
    return {
        "call_id": call.call_id,
        "call_id_source": "provider",
        "tool": call.tool.name,
        "arguments_hash": call.arguments_hash,
    }


def delegate(identity: Json, scopes: tuple[str, ...]) -> Json:
    """One step of a delegation."""
    return {
        "kind": identity["kind"],
        "subject": identity["subject"],
        "issuer": identity["issuer"],
        "assurance": identity["assurance"],
        "scopes": list(scopes),
    }
