"""How a story is written: the words that `stories` uses, each one or a few events long.

A script speaks for one agent of a story and keeps the story's clock running; a child agent gets
a script of its own over the same story.
"""

import json
import random
from typing import Any, Final

from trailweave.deploy.fleet.cast import (
    EXPECTED_SOURCES,
    Agent,
    Company,
    Json,
    Producer,
    Tool,
)
from trailweave.deploy.fleet.story import Step, Story
from trailweave.deploy.fleet.terms import (
    Approval,
    ApprovalKind,
    Call,
    Credential,
    Effect,
    Initiator,
    Setting,
    delegate,
    proposal,
)
from trailweave.schemas.hashing import keyed_hash, keyed_text_hash

#: A quarter of an hour: what a vault role of an agent would allow.
CREDENTIAL_TTL_US: Final = 900_000_000
_SECOND_US: Final = 1_000_000
#: Between two steps of one process, and of two that talk over a network.
_STEP_US: Final = (3_000, 40_000)


class Script:
    """One agent's part of a story."""

    def __init__(
        self,
        story: Story,
        agent: Agent,
        sponsor: Json,
        setting: Setting,
        scopes: tuple[str, ...] = (),
        parent: "Script | None" = None,
    ) -> None:
        pick = story.pick
        self.story: Final = story
        self.pick: Final[random.Random] = pick
        self.company: Final[Company] = story.company
        self.agent: Final = agent
        self.sponsor: Final = sponsor
        self.setting: Final = setting
        self._parent = parent
        #: Current actor first, as RFC 8693 nests `act`.
        self.chain: list[Json] = [delegate(agent.identity, scopes)]
        if parent:
            self.chain += parent.chain
        self._process: Producer = pick.choice(agent.replicas)
        self._gateway = story.company.system("gateway", pick)
        self._engine = story.company.system("policy", pick)
        self._desk = story.company.system("approvals", pick)
        self._vault = story.company.system("vault", pick)
        self._collector = story.company.system("downstream", pick)
        self.session: Step | None = None
        number = pick.getrandbits(32)
        self._envelope: Json = {
            "tenant": story.company.name,
            "agent_id": agent.agent_id,
            "agent_version": agent.version,
            "actor": agent.identity,
            "sponsor": sponsor,
            "agent_owner": agent.owner,
            "delegation": self.chain if parent else [],
            "workflow_id": setting.workflow or None,
            "task_id": f"task-{number:08x}",
            "conversation_id": f"conv-{number:08x}",
            "data_class": setting.data_class,
            "data_categories": list(setting.data_categories),
            "capture": setting.capture,
            # Hours of the fleet are sent within seconds: undelayed, every clock would look wrong.
            "delayed": True,
        }

    # --- the clock and the pen ---

    def wait(self, least_s: float, most_s: float) -> None:
        """Let time pass."""
        self.story.now_us += int(self.pick.uniform(least_s, most_s) * _SECOND_US)

    def _tell(self, name: str, producer: Producer, **fields: Any) -> Step:
        self.story.now_us += self.pick.randint(*_STEP_US)
        fields["span_id"] = f"{self.pick.getrandbits(64) or 1:016x}"
        above = self.session or (self._parent and self._parent.session)
        fields["parent_span_id"] = above.fields["span_id"] if above else None
        return self.story.add(name, producer, self._envelope, fields)

    def _content(self, text: str) -> Json:
        content_hash = keyed_text_hash(self.company.key, text)
        kept = text if self.setting.capture == "full" else None
        return {"content": kept, "content_hash": content_hash}

    # --- session, prompts and context ---

    def starts(self, task: str, *tools: Tool) -> None:
        """The session begins."""
        parent = self._parent
        spawned_by = parent.session if parent else None
        self.session = self._tell(
            "session_started",
            self._process,
            task=task if self.setting.capture == "full" else None,
            entrypoint="agent" if parent else self.setting.entrypoint,
            initiator=parent.agent.identity if parent else self.sponsor,
            parent_session_event_id=spawned_by.event_id if spawned_by else None,
            guardrails=["prompt-shield"],
            tools_offered=[
                {"tool": tool.name, "definition_hash": tool.definition_hash} for tool in tools
            ],
            expected_sources=EXPECTED_SOURCES,
            policy_bundles=self.company.bundles,
        )

    def prompted(self, text: str, origin: str = "human", verdict: str = "pass") -> None:
        """Text reaches the model, and the input guardrail looks at it."""
        role = "system" if origin == "system" else "user"
        step = self._tell(
            "prompt_submitted", self._process, role=role, origin=origin, **self._content(text)
        )
        self._tell(
            "guardrail_checked",
            self._engine,
            guardrail="prompt-shield",
            guardrail_version="2.4.0",
            stage="input",
            verdict=verdict,
            action="none" if verdict == "pass" else "logged",
            subject_event_id=step.event_id,
            reason=None if verdict == "pass" else "asks for more records than the task needs",
        )

    def retrieved(self, uri: str, *documents: str, trust: str = "trusted") -> None:
        """Something is read into the context."""
        self._tell(
            "context_retrieved",
            self._process,
            source_uri=uri,
            store="document",
            document_ids=list(documents),
            trust=trust,
            content_hash=keyed_text_hash(self.company.key, uri),
        )

    def remembers(self, key: str, operation: str = "read") -> None:
        """The agent's memory is read or written."""
        self._tell(
            "memory_accessed",
            self._process,
            store="agent-memory",
            memory_key=key,
            operation=operation,
            trust="trusted",
            content_hash=keyed_text_hash(self.company.key, key),
        )

    def responds(self, text: str, *calls: Call) -> Step:
        """The model answers and proposes calls."""
        self.wait(0.6, 3.5)
        model = self.agent.model
        tokens = self.pick.randrange(400, 4_000)
        return self._tell(
            "model_responded",
            self._process,
            provider=model.provider,
            request_model=model.requested,
            model=model.name,
            model_version=model.version,
            response_id=f"resp_{self.pick.getrandbits(64):016x}",
            status="ok",
            finish_reasons=["tool_calls" if calls else "stop"],
            proposed=[proposal(call) for call in calls],
            input_tokens=tokens,
            output_tokens=tokens // 8,
            cost_usd=tokens * 4e-6,
            server_address=model.server,
            region=model.region,
            **self._content(text),
        )

    def ends(self, outcome: str, status: str = "ok") -> None:
        """The session ends; the root's end says how many events each producer has recorded."""
        self.wait(0.2, 1.0)
        root = self._parent is None
        self._tell(
            "session_ended",
            self._process,
            outcome=outcome,
            status=status,
            root=root,
            expected_exhaustive=root,
        )

    # --- tool calls ---

    def call(
        self, tool: Tool, resource: str, initiator: Initiator = "model", **arguments: str | int
    ) -> Call:
        """A call that has yet to be proposed or requested."""
        prefix = "call" if initiator == "model" else initiator
        return Call(
            f"{prefix}_{self.pick.getrandbits(96):024x}",
            tool,
            resource,
            json.dumps(arguments),
            keyed_hash(self.company.key, arguments),
            initiator,
            self.sponsor if initiator == "human" else None,
        )

    def _of(self, call: Call) -> Json:
        return {"call_id": call.call_id} | ({"actor": call.actor} if call.actor else {})

    def requested(self, call: Call, attempt: int = 1, retry_of: Call | None = None) -> None:
        """The call reaches the tool gateway."""
        tool = call.tool
        self._tell(
            "tool_requested",
            self._gateway,
            call_id_source="provider" if call.initiator == "model" else "synthesized",
            initiator=call.initiator,
            tool=tool.name,
            server=tool.server,
            server_version=tool.version,
            definition_hash=tool.definition_hash,
            protocol=tool.protocol,
            arguments_hash=call.arguments_hash,
            arguments=call.arguments if self.setting.capture == "full" else None,
            action=tool.action,
            required_scope=tool.scope,
            resource=call.resource,
            resource_environment="production",
            record_class=self.setting.data_class,
            destination={"host": f"{tool.system}.{self.company.name}.example", "zone": "internal"},
            side_effect=tool.side_effect,
            attempt=attempt,
            retry_of=retry_of.call_id if retry_of else None,
            **self._of(call),
        )

    def decided(
        self,
        call: Call,
        effect: Effect = "allow",
        reason: str = "within the agent's duties",
        supersedes: str | None = None,
        obligations: tuple[str, ...] = (),
    ) -> str:
        """The policy engine decides; gives the decision's id."""
        decision_id = f"{self.pick.getrandbits(64):016x}"
        self._tell(
            "policy_decided",
            self._engine,
            decision_id=decision_id,
            supersedes=supersedes,
            engine="opa",
            policy_id=f"agents/{call.tool.server}/{call.tool.action}",
            bundles=self.company.bundles,
            mode="enforced",
            effect=effect,
            reason=reason,
            obligations=list(obligations),
            action=call.tool.action,
            resource=call.resource,
            input_hash=keyed_text_hash(self.company.key, call.arguments + call.resource),
            arguments_hash=call.arguments_hash,
            **self._of(call),
        )
        return decision_id

    def runs(self, call: Call, credential: Credential | None = None, status: str = "ok") -> None:
        """The gateway executes the call; the downstream system notes what reached it."""
        if credential:
            self.uses(credential, call)
        started_us = self.story.now_us
        self.wait(0.1, 2.5)
        request_id = keyed_text_hash(self.company.key, f"request {call.call_id}")
        self._tell(
            "tool_executed",
            self._gateway,
            tool=call.tool.name,
            started_at=started_us,
            status=status,
            side_effect=call.tool.side_effect,
            result_hash=keyed_text_hash(self.company.key, status + call.resource),
            result_data_class=self.setting.data_class,
            arguments_hash=call.arguments_hash,
            error=None if status == "ok" else status,
            downstream_request_id=request_id,
            **self._of(call),
        )
        if call.tool.observed and status == "ok":
            self.observed(call, credential)

    def refused(self, call: Call) -> None:
        """The gateway turns the call away and says so."""
        self._tell(
            "tool_executed",
            self._gateway,
            tool=call.tool.name,
            status="denied",
            side_effect=call.tool.side_effect,
            arguments_hash=call.arguments_hash,
            error="denied_by_policy",
            **self._of(call),
        )

    def observed(self, call: Call, credential: Credential | None = None) -> None:
        """The downstream system's own log shows the call."""
        self._tell(
            "downstream_observed",
            self._collector,
            system=call.tool.system,
            operation=call.tool.operation,
            resource=call.resource,
            principal=self.agent.identity["subject"],
            credential_id=credential.credential_id if credential else None,
            request_id=keyed_text_hash(self.company.key, f"request {call.call_id}"),
            status="ok",
            source_address=f"10.0.3.{self.pick.randrange(2, 250)}",
            user_agent=f"{call.tool.server}/{call.tool.version}",
            **self._of(call),
        )

    def does(
        self, text: str, tool: Tool, resource: str, credential: Credential | None, **arguments: Any
    ) -> Call:
        """The ordinary course: the model proposes, the policy allows, the gateway executes."""
        call = self.call(tool, resource, **arguments)
        self.responds(text, call)
        self.requested(call)
        self.decided(call)
        self.runs(call, credential)
        return call

    # --- credentials ---

    def borrows(self, *scopes: str, kind: str = "dynamic_secret") -> Credential:
        """The vault issues a lease for exactly these scopes."""
        key, number = self.company.key, self.pick.getrandbits(96)
        credential_id = keyed_text_hash(key, f"accessor {number:024x}")
        lease = keyed_text_hash(key, f"agents/creds/{self.agent.agent_id}/{number:024x}")
        now = self.story.now_us
        fields = {
            "credential_id": credential_id,
            "credential_kind": kind,
            "issuer": f"https://vault.{self.company.name}.example:8200",
            "subject": self.agent.identity["subject"],
            "credential_environment": "production",
            "scopes_granted": list(scopes),
            "audience": "tool-gateway",
            "issued_at": now,
            "expires_at": now + CREDENTIAL_TTL_US,
            "lease_id": lease,
            "issued_trace_id": self.story.trace_id,
            "handles": [
                {"kind": "accessor", "hash": credential_id},
                {"kind": "lease_id", "hash": lease},
            ],
        }
        self._tell("credential_issued", self._vault, **fields)
        return Credential(credential_id, fields)

    def uses(self, credential: Credential, call: Call) -> None:
        """The gateway presents the credential, and the vault's audit log notes it."""
        self._tell(
            "credential_used",
            self._vault,
            scope_exercised=call.tool.scope,
            resource=call.resource,
            **(credential.fields | self._of(call)),
        )

    def renews(self, credential: Credential) -> Credential:
        """The lease gets another quarter of an hour."""
        expires = self.story.now_us + CREDENTIAL_TTL_US
        renewed = Credential(credential.credential_id, credential.fields | {"expires_at": expires})
        self._tell("credential_renewed", self._vault, **renewed.fields)
        return renewed

    def returns(self, credential: Credential, reason: str = "task done") -> None:
        """The lease is revoked: it was for this task only."""
        self._tell("credential_revoked", self._vault, **(credential.fields | {"reason": reason}))

    # --- approvals ---

    def asks(self, call: Call, kind: ApprovalKind, group: str) -> Approval:
        """Somebody is asked to approve, to override, or to take the matter up."""
        approval_id = f"apr-{self.pick.getrandbits(40):010x}"
        step = self._tell(
            "approval_requested",
            self._desk,
            approval_id=approval_id,
            approval_kind=kind,
            requested_by=self.agent.identity,
            to=[f"{group}@{self.company.name}.example"],
            context_hash=keyed_text_hash(self.company.key, call.arguments + call.resource),
            expires_at=self.story.now_us + 4 * CREDENTIAL_TTL_US,
            **self._of(call),
        )
        return Approval(approval_id, kind, call, step.at_us)

    def answered(self, approval: Approval, effect: Effect, reason: str) -> None:
        """A person decides, after having looked at it."""
        self.wait(25, 240)
        by = self.pick.choice(self.company.approvers)
        self._tell(
            "approval_decided",
            self._desk,
            approval_id=approval.approval_id,
            call_id=approval.call.call_id,
            approval_kind=approval.kind,
            effect=effect,
            requested_by=self.agent.identity,
            by=by,
            actor=by,
            reason=reason,
            ticket=f"CHG-{self.pick.randrange(10_000, 99_999)}",
            arguments_hash=approval.call.arguments_hash,
            valid_until=self.story.now_us + 4 * CREDENTIAL_TTL_US,
            requested_at=approval.requested_us,
        )

    # --- delegation ---

    def delegates(self, kind: str, *scopes: str) -> "Script":
        """A child agent that acts for this one, with no more than these scopes."""
        agent = self.company.agents[kind]
        return Script(self.story, agent, self.sponsor, self.setting, scopes, self)
