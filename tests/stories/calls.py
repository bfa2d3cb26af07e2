"""Stories about tool calls and the decisions on them."""

from __future__ import annotations

from tests.stories.words import (
    About,
    answer,
    approve,
    ask,
    at,
    decide,
    propose,
    request,
    run,
    see,
    start,
)

ABOUT = [
    About("exec_without_decision")
    .fires(
        "a call runs, and nobody decided on it",
        "c",
        lambda t: [start(t), propose(t), request(t), run(t)],
    )
    .near_miss(
        "a retry stands under the decision on the call it repeats",
        lambda t: [start(t), decide(t, call="b"), request(t, "c", retry_of="b"), run(t)],
    )
    .lacking(
        "nobody promised that a policy engine reports",
        lambda t: [start(t, "agent"), request(t), run(t)],
        None,
    ),
    About("denied_but_executed")
    .fires(
        "a denied call runs all the same",
        "c",
        lambda t: [start(t), decide(t, "deny"), request(t), run(t)],
    )
    .near_miss(
        "somebody overrides the denial before it runs",
        lambda t: [start(t), decide(t, "deny"), approve(t, approval_kind="override"), run(t)],
    )
    .lacking(
        "the denial has no time: it stands",
        lambda t: [start(t), decide(t, "deny", occurred_at=0), run(t)],
        ("c",),
    ),
    About("fail_open")
    .fires(
        "the engine takes too long, and the call runs",
        "c",
        lambda t: [start(t), decide(t, "unknown", timed_out=True), run(t)],
    )
    .near_miss(
        "a second engine has decided",
        lambda t: [
            start(t),
            decide(t, "unknown", timed_out=True, decision_id="d1"),
            decide(t, decision_id="d2", engine="cedar"),
            run(t),
        ],
    )
    .lacking(
        "the execution never arrived",
        lambda t: [start(t), decide(t, "unknown", error="down"), request(t)],
    ),
    About("obligation_bypassed")
    .fires(
        "the policy asks for an approval, and nobody waits for it",
        "c",
        lambda t: [start(t), decide(t, "step_up"), run(t)],
    )
    .near_miss(
        "the approval came before the call",
        lambda t: [start(t), decide(t, "step_up"), approve(t), run(t)],
    )
    .near_miss(
        "an obligation that leaves no trace",
        lambda t: [start(t), decide(t, obligations=["write it down"]), run(t)],
    )
    .fires(
        "an obligation to have the call checked, and no check",
        "c",
        lambda t: [start(t), decide(t, obligations=["guardrail"]), run(t)],
    )
    .lacking(
        "the approval came late",
        lambda t: [start(t), decide(t, "step_up"), run(t), approve(t)],
        ("c",),
    ),
    About("args_drift")
    .fires(
        "one amount is decided, another one is paid",
        "c",
        lambda t: [start(t), decide(t, arguments_hash="hmac:k:10"),
                   run(t, arguments_hash="hmac:k:99")],
    )
    .fires(
        "the proposed arguments are not the requested ones",
        "c",
        lambda t: [propose(t, arguments="hmac:k:10"), request(t, arguments_hash="hmac:k:99"),
                   run(t, arguments_hash="hmac:k:99")],
    )
    .near_miss(
        "the policy has lowered the amount",
        lambda t: [
            propose(t, arguments="hmac:k:99"),
            decide(t, "modify", arguments_hash="hmac:k:99", modified_arguments_hash="hmac:k:10"),
            run(t, arguments_hash="hmac:k:10"),
        ],
    )
    .near_miss(
        "hashes under two keys can't be compared",
        lambda t: [propose(t, arguments="hmac:k:10"), run(t, arguments_hash="hmac:other:99")],
    )
    .lacking("nobody hashed what ran", lambda t: [propose(t, arguments="hmac:k:10"), run(t)]),
    About("hallucinated_call")
    .fires(
        "the model proposes a tool, and nothing comes of it",
        "c",
        lambda t: [start(t), propose(t)],
    )
    .near_miss("the call was denied", lambda t: [start(t), propose(t), decide(t, "deny")])
    .near_miss("it waits for an approval", lambda t: [start(t), propose(t), ask(t)])
    .lacking("no gateway reports", lambda t: [start(t, "agent"), propose(t)], None),
    About("ghost_action")
    .fires("a tool runs that no model proposed", "c", lambda t: [start(t), run(t)])
    .fires("a downstream log shows a call of nobody", "x", lambda t: [start(t), see(t, "x")])
    .near_miss(
        "a person asked for it",
        lambda t: [start(t), request(t, initiator="human"), run(t)],
    )
    .lacking(
        "the proposals were not kept",
        lambda t: [start(t), answer(t, finish_reasons=["tool_calls"]), run(t)],
        None,
    ),
    About("outcome_missing")
    .fires(
        "a payment is requested, and nothing tells of its end",
        "c",
        lambda t: [start(t), decide(t), request(t, side_effect=True)],
    )
    .near_miss("a read may go without", lambda t: [start(t), decide(t), request(t)])
    .near_miss(
        "only the downstream system saw it",
        lambda t: [start(t), request(t, side_effect=True), see(t)],
    )
    .lacking(
        "no gateway reports", lambda t: [start(t, "policy"), request(t, side_effect=True)], None
    ),
    About("approval_after_act")
    .fires(
        "approved a minute after it had started",
        "c",
        lambda t: [run(t, at_s=0), approve(t, at_s=60)],
    )
    .near_miss(
        "it had started long after the approval, and ended late",
        lambda t: [approve(t, at_s=10), run(t, at_s=60, started_at=at(20))],
    )
    .lacking(
        "the approval has no time", lambda t: [run(t, at_s=0), approve(t, occurred_at=0)]
    ),
    About("self_approval")
    .fires(
        "whoever asked approves",
        "a",
        lambda t: [ask(t, requested_by={"kind": "human", "subject": "boss@acme"}), approve(t)],
    )
    .near_miss("somebody else approves", lambda t: [ask(t), approve(t)])
    .lacking("the request never arrived", lambda t: [approve(t)]),
    About("override_no_reason")
    .fires(
        "an override without a ticket",
        "a",
        lambda t: [approve(t, approval_kind="override", reason="urgent")],
    )
    .near_miss(
        "with reason and ticket",
        lambda t: [approve(t, approval_kind="override", reason="urgent", ticket="CHG-1")],
    )
    .lacking("the override never arrived", lambda t: [decide(t, "deny"), run(t)]),
]  # fmt: skip
