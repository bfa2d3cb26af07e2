"""Stories about what the model was given, and what it made of it."""

from __future__ import annotations

from typing import Any

from tests.stories.words import (
    About,
    answer,
    guard,
    prompt,
    propose,
    remember,
    request,
    retrieve,
    run,
    start,
)
from tests.unit.stream_processors.builders import Made, Trace

#: Ids that a story gives to its events, so that others can name them.
PAGE, MEMORY, ANSWER = (f"00000000-0000-7000-8000-00000000000{n}" for n in "def")
OUTSIDE = {"host": "paste.example", "zone": "external"}
INSIDE = {"host": "erp.acme.example", "zone": "internal"}


def page(t: Trace, **fields: Any) -> Made:
    """A retrieval from the open web."""
    return retrieve(t, **{"event_id": PAGE, "trust": "untrusted", **fields})


def pays(t: Trace, **fields: Any) -> list[Made]:
    """A call with a side effect, requested and run."""
    return [request(t, side_effect=True, **fields), run(t, side_effect=True)]


ABOUT = [
    About("sensitive_no_guardrail")
    .fires(
        "restricted data, and nothing looks at it",
        "session",
        lambda t: [start(t), prompt(t, data_class="restricted")],
    )
    .near_miss(
        "a guardrail looked",
        lambda t: [start(t), prompt(t, data_class="restricted"), guard(t)],
    )
    .near_miss(
        "merely confidential", lambda t: [start(t), prompt(t, data_class="confidential")]
    )
    .lacking(
        "nobody promised that guardrails report",
        lambda t: [start(t, "agent"), prompt(t, data_class="secret")],
        None,
    ),
    About("secret_in_content")
    .fires(
        "a password in a prompt",
        PAGE,
        lambda t: [
            prompt(t, event_id=PAGE, redactions=[{"field": "content", "kind": "secret",
                                                  "count": 1}])
        ],
    )
    .near_miss(
        "an e-mail address was taken out",
        lambda t: [prompt(t, redactions=[{"field": "content", "kind": "email", "count": 1}])],
    )
    .lacking("nobody looked for secrets", lambda t: [prompt(t, content="s3cr3t")]),
    About("injection_to_tool")
    .fires(
        "a marked page makes the model pay",
        "c",
        lambda t: [
            page(t, flagged="prompt injection"), propose(t, derived_from=[PAGE]), *pays(t),
        ],
    )
    .fires(
        "a guardrail marked it, and the way leads over a summary",
        "c",
        lambda t: [
            page(t),
            guard(t, verdict="flag", subject_event_id=PAGE),
            answer(t, event_id=ANSWER, derived_from=[PAGE]),
            *pays(t, derived_from=[ANSWER]),
        ],
    )
    .near_miss(
        "the payment does not come from the page",
        lambda t: [page(t, flagged="prompt injection"), propose(t), *pays(t)],
    )
    .near_miss(
        "it only read something",
        lambda t: [page(t, flagged="x"), request(t, derived_from=[PAGE]), run(t)],
    )
    .lacking(
        "the page never arrived", lambda t: [propose(t, derived_from=[PAGE]), *pays(t)]
    ),
    About("memory_poison")
    .fires(
        "what a stranger wrote down is done",
        "c",
        lambda t: [
            remember(t, "write", trust="untrusted"),
            remember(t, event_id=MEMORY),
            propose(t, derived_from=[MEMORY]),
            *pays(t),
        ],
    )
    .fires(
        "a memory that is marked as untrusted is done",
        "c",
        lambda t: [remember(t, event_id=MEMORY, trust="untrusted"),
                   *pays(t, derived_from=[MEMORY])],
    )
    .near_miss(
        "it read another memory",
        lambda t: [
            remember(t, "write", trust="untrusted"),
            remember(t, event_id=MEMORY, memory_key="other"),
            *pays(t, derived_from=[MEMORY]),
        ],
    )
    .near_miss(
        "it was written after it was read",
        lambda t: [
            remember(t, event_id=MEMORY),
            remember(t, "write", trust="untrusted"),
            *pays(t, derived_from=[MEMORY]),
        ],
    )
    .lacking(
        "nobody says what the call was made from",
        lambda t: [remember(t, event_id=MEMORY, trust="untrusted"), *pays(t)],
    ),
    About("exfil_via_tool")
    .fires(
        "restricted data is read, and something is sent outside",
        "out",
        lambda t: [
            run(t, "in", result_data_class="restricted"),
            request(t, "out", destination=OUTSIDE),
            run(t, "out"),
        ],
    )
    .near_miss(
        "it is sent within the company",
        lambda t: [
            run(t, "in", result_data_class="restricted"),
            request(t, "out", destination=INSIDE),
            run(t, "out"),
        ],
    )
    .near_miss(
        "it was sent before the data was read",
        lambda t: [
            request(t, "out", destination=OUTSIDE),
            run(t, "out"),
            run(t, "in", result_data_class="restricted"),
        ],
    )
    .lacking(
        "the read has no time",
        lambda t: [
            run(t, "in", result_data_class="restricted", occurred_at=0),
            request(t, "out", destination=OUTSIDE),
            run(t, "out"),
        ],
    ),
    About("trust_boundary_crossed")
    .fires(
        "an untrusted page, restricted data, and a payment",
        "c",
        lambda t: [page(t), run(t, "in", result_data_class="secret"), *pays(t)],
    )
    .near_miss(
        "the page is trusted",
        lambda t: [
            page(t, trust="trusted"), run(t, "in", result_data_class="secret"), *pays(t),
        ],
    )
    .near_miss(
        "the payment came first",
        lambda t: [*pays(t), page(t), run(t, "in", result_data_class="secret")],
    )
    .lacking(
        "nobody says what class the data has", lambda t: [page(t), run(t, "in"), *pays(t)]
    ),
]  # fmt: skip
