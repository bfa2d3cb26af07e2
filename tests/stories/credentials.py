"""Stories about credentials: their life, what they allow, and who has them."""

from __future__ import annotations

from tests.stories.words import (
    AGENT,
    About,
    at,
    credential,
    end,
    issue,
    request,
    run,
    see,
    start,
    use,
)

DAY_S = 86_400
NETWORKS = ("10.0.0.0/8", "2001:db8::/32")

ABOUT = [
    About("cred_after_expiry")
    .fires(
        "used an hour after its expiry",
        "k",
        lambda t: [issue(t, at_s=0, expires_at=at(60)), use(t, at_s=3_660)],
    )
    .near_miss(
        "it was renewed in time",
        lambda t: [
            issue(t, at_s=0, expires_at=at(60)),
            credential(t, "renewed", at_s=50, expires_at=at(7_200)),
            use(t, at_s=3_660),
        ],
    )
    .lacking("the issue never arrived", lambda t: [use(t, at_s=3_660)]),
    About("cred_after_revoke")
    .fires(
        "used a minute after its revocation",
        "k",
        lambda t: [issue(t, at_s=0), credential(t, "revoked", at_s=10), use(t, at_s=70)],
    )
    .fires(
        "the one that it was issued under was revoked",
        "child",
        lambda t: [
            issue(t, "child", at_s=0, parent_credential_id="parent"),
            credential(t, "revoked", "parent", at_s=10),
            use(t, "child", at_s=70),
        ],
    )
    .near_miss(
        "used a moment before, by a clock that is two seconds ahead",
        lambda t: [credential(t, "revoked", at_s=10), use(t, at_s=12)],
    )
    .lacking("the use has no time", lambda t: [credential(t, "revoked"), use(t, occurred_at=0)]),
    About("cred_not_issued")
    .fires("a credential from nowhere", "k", lambda t: [start(t), use(t)])
    .near_miss(
        "another session was issued it, and says so",
        lambda t: [start(t), use(t, issued_trace_id="f" * 32)],
    )
    .near_miss(
        "it came in the place of a rotated one",
        lambda t: [start(t), credential(t, "rotated", "old", successor_credential_id="k"), use(t)],
    )
    .lacking("no vault reports", lambda t: [start(t, "agent"), use(t)], None),
    About("standing_cred")
    .fires(
        "issued for ever", "k", lambda t: [issue(t, issued_at=at(0))]
    )
    .fires(
        "issued for a month",
        "k",
        lambda t: [issue(t, issued_at=at(0), expires_at=at(30 * DAY_S))],
    )
    .near_miss(
        "issued for a day", lambda t: [issue(t, issued_at=at(0), expires_at=at(DAY_S))]
    )
    .lacking("nobody knows when it ends", lambda t: [issue(t), use(t)]),
    About("cred_left_alive")
    .fires(
        "good for another hour when the task is done",
        "k",
        lambda t: [start(t), issue(t, task_id="t", expires_at=at(3_600)), end(t, 9)],
    )
    .near_miss(
        "given back",
        lambda t: [
            start(t), issue(t, task_id="t", expires_at=at(3_600)), credential(t, "revoked"),
            end(t, 9),
        ],
    )
    .near_miss(
        "not for a task", lambda t: [start(t), issue(t, expires_at=at(3_600)), end(t, 9)]
    )
    .lacking(
        "the session never ended", lambda t: [start(t), issue(t, task_id="t", expires_at=at(3_600))]
    ),
    About("scope_wider")
    .fires(
        "four scopes for a task that needs one",
        "k",
        lambda t: [issue(t, scopes_granted=["a", "b", "c", "d"]), use(t, scope_exercised="a")],
    )
    .near_miss(
        "one of two stayed unused",
        lambda t: [issue(t, scopes_granted=["a", "b"]), use(t, scope_exercised="a")],
    )
    .near_miss(
        "wildcards that were used",
        lambda t: [issue(t, scopes_granted=["a:*", "b"]), use(t, scope_exercised="a:read")],
    )
    .lacking(
        "a use does not say for what",
        lambda t: [issue(t, scopes_granted=["a", "b", "c"]), use(t, scope_exercised="a"), use(t)],
    ),
    About("scope_exceeded")
    .fires(
        "used for what it does not allow",
        "k",
        lambda t: [issue(t, scopes_granted=["read"]), use(t, scope_exercised="write")],
    )
    .fires(
        "the call needs a scope that it does not have",
        "k",
        lambda t: [
            request(t, required_scope="write"),
            use(t, scopes_granted=["read"], call_id="c"),
            run(t),
        ],
    )
    .near_miss(
        "the service refused it",
        lambda t: [
            issue(t, scopes_granted=["read"]), use(t, scope_exercised="write", status="denied"),
        ],
    )
    .near_miss(
        "a wildcard allows it",
        lambda t: [issue(t, scopes_granted=["erp:*"]), use(t, scope_exercised="erp:write")],
    )
    .lacking("nobody knows what it allows", lambda t: [use(t, scope_exercised="write")]),
    About("shared_cred")
    .fires(
        "two agents with one credential",
        "k",
        lambda t: [use(t, agent_id="planner"), use(t, agent_id="executor")],
    )
    .near_miss(
        "each with its own",
        lambda t: [use(t, "k", agent_id="planner"), use(t, "l", agent_id="executor")],
    )
    .lacking(
        "one use does not name its agent", lambda t: [use(t, agent_id="planner"), use(t)]
    ),
    About("env_crossing")
    .fires(
        "a test session changes production",
        "c",
        lambda t: [
            start(t, environment="staging"), request(t, resource_environment="production"), run(t),
        ],
    )
    .fires(
        "a developer's credential reaches production",
        "c",
        lambda t: [
            start(t),
            request(t, resource_environment="PROD"),
            use(t, call_id="c", credential_environment="dev"),
            run(t),
        ],
    )
    .near_miss(
        "a test session within test",
        lambda t: [start(t, environment="test"), request(t, resource_environment="test"), run(t)],
    )
    .near_miss(
        "production refused it",
        lambda t: [
            start(t, environment="test"),
            request(t, resource_environment="production"),
            run(t, status="denied"),
        ],
    )
    .lacking(
        "nobody says where the resource is",
        lambda t: [start(t, environment="test"), request(t), run(t)],
    ),
    About("agent_cred_elsewhere")
    .fires(
        "the agent's identity from somebody's home",
        AGENT["subject"],
        lambda t: [start(t), see(t, principal=AGENT["subject"], source_address="203.0.113.9")],
        networks=NETWORKS,
    )
    .near_miss(
        "from the cluster, by IPv6",
        lambda t: [start(t), see(t, principal=AGENT["subject"], source_address="2001:db8::7")],
        networks=NETWORKS,
    )
    .near_miss(
        "somebody else's identity",
        lambda t: [start(t), see(t, principal="root", source_address="203.0.113.9")],
        networks=NETWORKS,
    )
    .lacking(
        "nobody has said which networks are the agents'",
        lambda t: [start(t), see(t, principal=AGENT["subject"], source_address="203.0.113.9")],
        None,
    )
    .lacking(
        "the log holds no address",
        lambda t: [start(t), see(t, principal=AGENT["subject"])],
        networks=NETWORKS,
    ),
]  # fmt: skip
