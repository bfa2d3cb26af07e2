"""The findings about credentials."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from trailweave.stream_processors.rules.credentials import cred_after_expiry

from tests.unit.stream_processors.builders import START_US, Made, Trace, chain

Events = Callable[[Trace], list[Made]]


def given(
    t: Trace, at_s: float, until_s: float | None, name: str = "issued", **fields: object
) -> Made:
    expires_at = None if until_s is None else START_US + int(until_s * 1_000_000)
    return t.event(f"credential_{name}", at_s, expires_at=expires_at, **fields)


CASES: list[tuple[str, Events, list[str]]] = [
    ("used after it expired", lambda t: [given(t, 0, 5), given(t, 6, None, "used")], ["k"]),
    ("used in its last moment", lambda t: [given(t, 0, 5), given(t, 5, None, "used")], []),
    (
        "the use was refused",
        lambda t: [given(t, 0, 5), given(t, 6, None, "used", status="denied")],
        [],
    ),
    (
        "renewed in time",
        lambda t: [given(t, 0, 5), given(t, 4, 9, "renewed"), given(t, 6, None, "used")],
        [],
    ),
    (
        "renewed too late",
        lambda t: [given(t, 0, 5), given(t, 6, None, "used"), given(t, 7, 9, "renewed")],
        ["k"],
    ),
    ("the use names the expiry", lambda t: [given(t, 6, 5, "used")], ["k"]),
    ("no expiry is known", lambda t: [given(t, 0, None), given(t, 6, None, "used")], []),
    (
        "another credential expired",
        lambda t: [given(t, 0, 5, credential_id="other"), given(t, 6, None, "used")],
        [],
    ),
    (
        "the use has no time",
        lambda t: [given(t, 0, 5), given(t, 6, 5, "used", occurred_at=0)],
        [],
    ),
    (
        "only an issue without a time, and its expiry is past",
        lambda t: [given(t, 0, 5, occurred_at=0), given(t, 6, None, "used")],
        ["k"],
    ),
    (
        "renewed for long at an unknown time",
        lambda t: [
            given(t, 0, 5), given(t, 4, 9, "renewed", occurred_at=0), given(t, 6, None, "used")
        ],
        [],
    ),
    (
        "issued for long at an unknown time, the last renewal is past",
        lambda t: [
            given(t, 0, 9, occurred_at=0), given(t, 4, 5, "renewed"), given(t, 6, None, "used")
        ],
        [],
    ),
    (
        "all expiries are past, whenever they were given",
        lambda t: [
            given(t, 0, 5), given(t, 4, 5.5, "renewed", occurred_at=0), given(t, 6, None, "used")
        ],
        ["k"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("events", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_use_after_the_expiry_is_found(events: Events, expected: list[str]) -> None:
    assert [hit.subject for hit in cred_after_expiry.check(chain(*events(Trace())))] == expected


def test_the_summary_says_how_late_the_use_was() -> None:
    t = Trace()
    (hit,) = cred_after_expiry.check(chain(given(t, 0, 5), given(t, 65, None, "used")))

    assert hit.summary == "a credential was used 60 s after it had expired"
    assert [e["event_type"] for e in hit.events] == ["credential_issued", "credential_used"]
