"""What goes wrong in the fleet, on purpose: each function alters one clean story.

A planter gives what the alteration truly causes, or None when the story has no place for it; then
it has changed nothing. Each causes its own finding and no other: what would follow from a careless
alteration (an orphaned decision, a call that looks invented) is removed or kept out with it.
"""

from typing import Final

from trailweave.deploy.fleet.anomalies import calls, context, credentials, records
from trailweave.deploy.fleet.anomalies.planting import Planted, Planter

#: Every anomaly by name, in the order in which the fleet plants them: a small one has the first.
ANOMALIES: Final[dict[str, Planter]] = {
    planter.__name__: planter
    for planter in (
        calls.exec_without_decision,
        calls.denied_but_executed,
        calls.fail_open,
        calls.approval_after_act,
        calls.self_approval,
        calls.override_no_reason,
        calls.hallucinated_call,
        calls.ghost_action,
        credentials.cred_after_expiry,
        credentials.cred_after_revoke,
        records.seq_gap,
        records.dup_conflict,
        records.model_version_missing,
        records.identity_missing,
        calls.outcome_missing,
        records.no_end,
        calls.obligation_bypassed,
        calls.args_drift,
        credentials.cred_not_issued,
        credentials.standing_cred,
        credentials.cred_left_alive,
        credentials.scope_wider,
        credentials.scope_exceeded,
        credentials.shared_cred,
        credentials.env_crossing,
        records.delegation_loop,
        records.delegation_escalation,
        context.sensitive_no_guardrail,
        context.secret_in_content,
        context.injection_to_tool,
        context.memory_poison,
        context.exfil_via_tool,
        context.trust_boundary_crossed,
        records.policy_bundle_mismatch,
        records.tool_changed,
        records.runaway,
        calls.action_after_end,
        calls.impossible_order,
        records.orphan_span,
    )
}

__all__ = ["ANOMALIES", "Planted", "Planter"]
