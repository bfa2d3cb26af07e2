"""Stories about who acts for whom, what with, and about the record itself."""

from __future__ import annotations

from tests.stories.words import (
    AGENT,
    About,
    answer,
    at,
    decide,
    end,
    issue,
    line,
    prompt,
    request,
    run,
    see,
    start,
    use,
)

ID = "00000000-0000-7000-8000-0000000000aa"
HOUR_S = 3_600
OFFERED = {"tools_offered": [{"tool": "shell", "definition_hash": "sha256:1"}]}

ABOUT = [
    About("delegation_loop")
    .fires(
        "an agent acts for itself through another",
        "a",
        lambda t: [prompt(t, delegation=line(("a", ()), ("b", ()), ("a", ())))],
    )
    .fires(
        "three in a line where two are allowed",
        "a",
        lambda t: [prompt(t, delegation=line(("a", ()), ("b", ()), ("c", ())))],
        delegation_depth=2,
    )
    .near_miss(
        "two agents, one behind the other",
        lambda t: [prompt(t, delegation=line(("a", ()), ("b", ())))],
    )
    .lacking("nobody says who acts for whom", lambda t: [prompt(t)]),
    About("delegation_escalation")
    .fires(
        "an agent may write for one that may only read",
        "child",
        lambda t: [prompt(t, delegation=line(("child", ("write",)), ("parent", ("read",))))],
    )
    .fires(
        "a credential allows more than the one it was made from",
        "k2",
        lambda t: [
            issue(t, "k1", scopes_granted=["read"]),
            issue(t, "k2", scopes_granted=["read", "write"], parent_credential_id="k1"),
        ],
    )
    .near_miss(
        "a part of what the other may do",
        lambda t: [prompt(t, delegation=line(("child", ("erp:read",)), ("parent", ("erp:*",))))],
    )
    .lacking(
        "the parent does not say what it may do",
        lambda t: [prompt(t, delegation=line(("child", ("write",)), ("parent", ())))],
    ),
    About("policy_bundle_mismatch")
    .fires(
        "an engine runs last week's rules",
        "agents",
        lambda t: [start(t, policy_bundles={"agents": "r2"}), decide(t, bundles={"agents": "r1"})],
    )
    .fires(
        "the rules change in between",
        "agents",
        lambda t: [
            decide(t, call="a", bundles={"agents": "r1"}),
            decide(t, call="b", bundles={"agents": "r2"}),
        ],
    )
    .near_miss(
        "the revision in force",
        lambda t: [start(t, policy_bundles={"agents": "r2"}), decide(t, bundles={"agents": "r2"})],
    )
    .near_miss(
        "another revision tries itself out",
        lambda t: [
            start(t, policy_bundles={"agents": "r1"}),
            decide(t, bundles={"agents": "r2"}, mode="dry_run"),
        ],
    )
    .lacking(
        "the engine does not say which", lambda t: [start(t, policy_bundles={"a": "r2"}), decide(t)]
    ),
    About("tool_changed")
    .fires(
        "the tool is another than the model was offered",
        "shell",
        lambda t: [start(t, **OFFERED), request(t, definition_hash="sha256:2")],
    )
    .fires(
        "it changes between two calls",
        "shell",
        lambda t: [
            request(t, "a", definition_hash="sha256:1"),
            request(t, "b", definition_hash="sha256:2"),
        ],
    )
    .fires(
        "it is offered as it is, and was approved otherwise",
        "shell",
        lambda t: [start(t, **OFFERED), request(t, definition_hash="sha256:1")],
        tools={"shell": "sha256:0"},
    )
    .near_miss(
        "as it was offered",
        lambda t: [start(t, **OFFERED), request(t, definition_hash="sha256:1")],
    )
    .lacking("the call does not say", lambda t: [start(t, **OFFERED), request(t)]),
    About("unapproved_model")
    .fires(
        "somebody tries another model",
        "llama-next",
        lambda t: [answer(t, model="llama-next")],
        models=("gpt-*",),
    )
    .near_miss("an approved one", lambda t: [answer(t, model="gpt-4o-1")], models=("gpt-*",))
    .lacking("nobody has approved any", lambda t: [answer(t, model="llama-next")], None),
    About("runaway")
    .fires(
        "more calls than allowed",
        "tool_calls",
        lambda t: [run(t, f"c{n}") for n in range(4)],
        tool_calls=3,
    )
    .fires("the eleventh try", "tries", lambda t: [request(t, attempt=11)])
    .fires(
        "more tokens than allowed",
        "tokens",
        lambda t: [answer(t, input_tokens=60, output_tokens=50)],
        tokens=100,
    )
    .fires("it costs too much", "cost_usd", lambda t: [answer(t, cost_usd=100.5)])
    .near_miss(
        "as many calls as are allowed",
        lambda t: [run(t, f"c{n}") for n in range(3)],
        tool_calls=3,
    )
    .lacking("nobody counts tokens", lambda t: [answer(t)], tokens=0),
    About("action_after_end")
    .fires(
        "a call a minute after the end", "c", lambda t: [end(t, 10), run(t, at_s=70)]
    )
    .fires(
        "a downstream system sees one", "c", lambda t: [end(t, 10), see(t, at_s=70)]
    )
    .near_miss(
        "it had started before, and ended after",
        lambda t: [end(t, 10), run(t, at_s=70, started_at=at(9))],
    )
    .near_miss(
        "a child agent's end is not the session's", lambda t: [end(t, 10, root=False),
                                                               run(t, at_s=70)]
    )
    .lacking("the session never ended", lambda t: [run(t, at_s=70)]),
    About("impossible_order")
    .fires(
        "seen downstream a minute before it started",
        "c",
        lambda t: [see(t, at_s=0), run(t, at_s=60)],
    )
    .fires(
        "it ran a minute before anybody decided",
        "c",
        lambda t: [run(t, at_s=0), decide(t, at_s=60)],
    )
    .fires(
        "a credential is used before its issue",
        "k",
        lambda t: [use(t, at_s=0), issue(t, at_s=60)],
    )
    .near_miss(
        "two seconds, for clocks differ", lambda t: [see(t, at_s=0), run(t, at_s=2)]
    )
    .lacking(
        "nobody knows when it started", lambda t: [see(t, at_s=0), run(t, occurred_at=0)]
    ),
    About("orphan_span")
    .fires(
        "an event under a span of nobody",
        "b" * 16,
        lambda t: [start(t, span_id="a" * 16), prompt(t, parent_span_id="b" * 16)],
    )
    .near_miss(
        "the parent is the caller's",
        lambda t: [start(t, span_id="a" * 16, parent_span_id="b" * 16, parent_remote=True)],
    )
    .near_miss(
        "an event that was translated from another log",
        lambda t: [prompt(t, parent_span_id="b" * 16, trace_seq=None)],
    )
    .lacking("events that name no spans", lambda t: [start(t), prompt(t)]),
    About("clock_skew")
    .fires(
        "an event from tomorrow", "agent-1", lambda t: [prompt(t, at_s=24 * HOUR_S)]
    )
    .near_miss("twenty seconds ahead", lambda t: [prompt(t, at_s=HOUR_S + 20)])
    .lacking("an event that came an hour late", lambda t: [prompt(t, at_s=0)]),
    About("seq_gap")
    .fires("a number is skipped", "agent-1", lambda t: [start(t), prompt(t, trace_seq=2)])
    .near_miss("they are dense", lambda t: [start(t), prompt(t)])
    .lacking(
        "fewer came than the end has announced",
        lambda t: [start(t), t.ended({"agent-1": 5})],
        ("agent-1",),
    ),
    About("dup_conflict")
    .fires(
        "two different events with one id",
        ID,
        lambda t: [prompt(t, event_id=ID, content="a"),
                   prompt(t, event_id=ID, content="b", trace_seq=None)],
    )
    .near_miss("one event that came twice", lambda t: [prompt(t, event_id=ID)] * 2)
    .lacking("the true one never arrived", lambda t: [prompt(t, event_id=ID, content="b")]),
    About("model_version_missing")
    .fires(
        "nobody says which model it was", ID, lambda t: [answer(t, event_id=ID, model=None)]
    )
    .near_miss("the model is named", lambda t: [answer(t, model="gpt")])
    .lacking("the answer failed", lambda t: [answer(t, model=None, status="error")]),
    About("identity_missing")
    .fires("nobody stands behind the agent", "session", lambda t: [start(t, sponsor=None)])
    .fires(
        "nobody's identity was proved",
        "session",
        lambda t: [start(t, actor={**AGENT, "assurance": "asserted"})],
    )
    .near_miss(
        "one event of many says it",
        lambda t: [start(t, sponsor=None, actor={**AGENT, "assurance": "asserted"}), prompt(t)],
    )
    .lacking(
        "the start never arrived, and nothing else says it",
        lambda t: [prompt(t, sponsor=None)],
        ("session",),
    ),
]  # fmt: skip
