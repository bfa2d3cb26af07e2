"""The findings about credentials."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from trailweave.stream_processors.rules.credentials import cred_after_expiry, cred_after_revoke
from trailweave.stream_processors.rules.times import SKEW_US

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


SKEW_S = SKEW_US / 1_000_000


def revoked(t: Trace, at_s: float, **fields: object) -> Made:
    return given(t, at_s, None, "revoked", **fields)


def used(t: Trace, at_s: float, **fields: object) -> Made:
    return given(t, at_s, None, "used", **fields)


REVOKED: list[tuple[str, Events, list[str]]] = [
    ("used after it was revoked", lambda t: [revoked(t, 1), used(t, 60)], ["k"]),
    ("used before", lambda t: [used(t, 0), revoked(t, 60)], []),
    ("used at once, for clocks differ", lambda t: [revoked(t, 1), used(t, 1 + SKEW_S)], []),
    ("used a little later", lambda t: [revoked(t, 1), used(t, 1.1 + SKEW_S)], ["k"]),
    ("the use was refused", lambda t: [revoked(t, 1), used(t, 60, status="denied")], []),
    ("another was revoked", lambda t: [revoked(t, 1, credential_id="o"), used(t, 60)], []),
    ("revoked twice", lambda t: [revoked(t, 1), used(t, 60), revoked(t, 90)], ["k"]),
    ("the use has no time", lambda t: [revoked(t, 1), used(t, 60, occurred_at=0)], []),
    ("the revocation has no time", lambda t: [revoked(t, 1, occurred_at=0), used(t, 60)], []),
    (
        "the lease it was issued under was revoked",
        lambda t: [
            given(t, 0, None, parent_credential_id="p"),
            given(t, 0, None, credential_id="p", parent_credential_id="top"),
            revoked(t, 1, credential_id="top"),
            used(t, 60),
        ],
        ["k"],
    ),
    (
        "one that was issued under it was revoked",
        lambda t: [
            given(t, 0, None, credential_id="child", parent_credential_id="k"),
            revoked(t, 1, credential_id="child"),
            used(t, 60),
        ],
        [],
    ),
    (
        "issued under each other",
        lambda t: [
            given(t, 0, None, parent_credential_id="p"),
            given(t, 0, None, credential_id="p", parent_credential_id="k"),
            revoked(t, 1, credential_id="other"),
            used(t, 60),
        ],
        [],
    ),
]


@pytest.mark.parametrize(
    ("events", "expected"), [c[1:] for c in REVOKED], ids=[c[0] for c in REVOKED]
)
def test_a_use_after_the_revocation_is_found(events: Events, expected: list[str]) -> None:
    assert [hit.subject for hit in cred_after_revoke.check(chain(*events(Trace())))] == expected


def test_the_evidence_is_the_first_revocation_and_the_use() -> None:
    t = Trace()
    (hit,) = cred_after_revoke.check(chain(revoked(t, 1), revoked(t, 30), used(t, 61)))

    assert hit.summary == "a credential was used 60 s after it had been revoked"
    assert [e["event_type"] for e in hit.events] == ["credential_revoked", "credential_used"]
