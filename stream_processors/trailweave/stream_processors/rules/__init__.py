"""The rules: one small pure function per finding over a `Chain`.

A rule's docstring is its documentation (`trailweave findings explain`); its metadata names what it
needs. Three answers: hits, no hits, and *not evaluable* when a needed authority neither was
promised by the session nor is by the settings. `judge` asks all of them.
"""

from typing import Final

from trailweave.stream_processors.rules import (
    access,
    approvals,
    arguments,
    calls,
    context,
    credentials,
    delegation,
    order,
    records,
    supply,
)
from trailweave.stream_processors.rules.limits import Limits
from trailweave.stream_processors.rules.rule import Hit, Rule

#: Changes whenever a rule's answer may change; stands in every verdict.
RULES_VERSION: Final = "4"

RULES: Final[tuple[Rule, ...]] = (
    calls.exec_without_decision,
    calls.denied_but_executed,
    calls.fail_open,
    calls.obligation_bypassed,
    arguments.args_drift,
    calls.hallucinated_call,
    calls.ghost_action,
    calls.outcome_missing,
    approvals.approval_after_act,
    approvals.self_approval,
    approvals.override_no_reason,
    credentials.cred_after_expiry,
    credentials.cred_after_revoke,
    credentials.cred_not_issued,
    credentials.standing_cred,
    credentials.cred_left_alive,
    access.scope_wider,
    access.scope_exceeded,
    access.shared_cred,
    access.env_crossing,
    access.agent_cred_elsewhere,
    delegation.delegation_loop,
    delegation.delegation_escalation,
    context.sensitive_no_guardrail,
    context.secret_in_content,
    context.injection_to_tool,
    context.memory_poison,
    context.exfil_via_tool,
    context.trust_boundary_crossed,
    supply.policy_bundle_mismatch,
    supply.tool_changed,
    supply.unapproved_model,
    supply.runaway,
    order.action_after_end,
    order.impossible_order,
    order.orphan_span,
    order.clock_skew,
    records.seq_gap,
    records.dup_conflict,
    records.model_version_missing,
    records.identity_missing,
)

__all__ = ["RULES", "RULES_VERSION", "Hit", "Limits", "Rule"]
