"""What was seen of keys: what facts make of them, and when they are looked at again."""

from __future__ import annotations

import json
from collections import UserDict

import pytest
from trailweave.schemas.codec import Decoder
from trailweave.stream_processors.detectors.detector import LOOK, Fact
from trailweave.stream_processors.seen import (
    BEHIND_S,
    SCAN_INTERVAL_S,
    START_S,
    Seen,
    key_of,
)
from trailweave.stream_processors.verdict import RulesConfig

S = 1_000_000
NOW_S = 1_000_000.0
NOW_MS = int(NOW_S * 1000)
#: A trace in which a credential was used, and of which there is no session.
STRAY = Fact("credential_outside", "t", "trace", "c9", int(NOW_S) * S, "trace", None)
LATER_S = NOW_S + RulesConfig().limits.trace_kept_s + 1


#: A table in memory, as Faust has it.
Table = UserDict[bytes, bytes]


def test_facts_of_one_batch_make_what_they_make_in_batches_of_one() -> None:
    # A trace without a session, looked at in time and again when it is over, and used after that.
    stray = Fact("credential_outside", "t", "trace", "c9", S, "trace", None)
    kept_us = int(RulesConfig().limits.trace_kept_s * S)
    facts = [
        stray,
        stray._replace(name=LOOK, at_us=S + kept_us),
        stray._replace(name=LOOK, at_us=S + 2 * kept_us),
        stray._replace(name="c8", at_us=S + 3 * kept_us),
    ]

    at_once, one_by_one = seen(), seen()
    found, changed = at_once.fold(((key_of(fact), fact) for fact in facts), NOW_MS)
    at_once.keep(changed)
    said = {}
    for fact in facts:
        single, changed = one_by_one.fold([(key_of(fact), fact)], NOW_MS)
        one_by_one.keep(changed)
        said.update(single)

    assert [text(one) for one in found.values()] == [text(one) for one in said.values()]
    assert text(found[key_of(stray)]).startswith("used in a trace of which there is no session: c9")
    assert at_once._table == one_by_one._table
    assert list(json.loads(at_once._table[key_of(stray)])["facts"]) == ["c8"]


def test_nothing_is_looked_at_before_the_first_events_may_have_come() -> None:
    made = took(seen(), STRAY)

    assert made.due(NOW_S + START_S - 0.1) == []


def test_a_key_is_looked_at_once_when_its_time_has_come() -> None:
    made = took(seen(), STRAY)
    too_early = made.due(NOW_S + START_S)

    assert too_early == []
    looks = [(key_of(look), look.name, look.at_us) for look in made.due(LATER_S)]
    assert looks == [(key_of(STRAY), LOOK, int(LATER_S * S))]
    assert made.due(LATER_S) == []


@pytest.mark.parametrize(("behind_s", "looks"), [(BEHIND_S + 1, 0), (BEHIND_S - 1, 1)])
def test_nothing_is_looked_at_while_old_events_come(behind_s: float, looks: int) -> None:
    made = took(seen(), STRAY)
    made.reading(LATER_S - behind_s, LATER_S)

    assert len(made.due(LATER_S)) == looks
    assert len(made.due(LATER_S + START_S)) == 1 - looks


def test_keys_that_came_with_a_rebalance_are_found() -> None:
    mine, others = Table(), Table()
    took(Seen(RulesConfig(), others, NOW_S), STRAY)
    made = Seen(RulesConfig(), mine, NOW_S)
    before = made.due(LATER_S)
    mine.update(others)

    assert before == []
    assert made.due(LATER_S + SCAN_INTERVAL_S - 1) == []
    assert [look.subject for look in made.due(LATER_S + SCAN_INTERVAL_S)] == ["trace"]


def seen() -> Seen:
    return Seen(RulesConfig(), Table(), NOW_S)


def took(made: Seen, fact: Fact) -> Seen:
    """It, once it has folded and kept a fact."""
    _, changed = made.fold([(key_of(fact), fact)], NOW_MS)
    made.keep(changed)
    return made


def text(found: bytes) -> str:
    _, record = Decoder({"finding": ("summary",)}).decode(found)
    return str(record["summary"])
