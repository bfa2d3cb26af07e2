"""What many sessions together show: the same whatever comes first, and once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from trailweave.stream_processors.detectors import DETECTORS, of_chains, of_producers
from trailweave.stream_processors.detectors.detector import (
    FACTS_MAX,
    LOOK,
    Fact,
    State,
    finding,
)
from trailweave.stream_processors.rules import Limits

from tests.unit.stream_processors.builders import ENCODER, START_US

S, HOUR_US, DAY_US = 1_000_000, 3_600_000_000, 86_400_000_000
LIMITS = Limits(approvals_per_hour=3, sponsors=2, agent_calls_per_hour=10, agent_cost_per_hour=5.0)
#: The start of an hour, so that minutes later are in it.
AT = START_US - START_US % HOUR_US
TRACE = "00000000000000000000000000000007"

#: What somebody writes, as the facts it says; given a number that makes a trace of its own.
Said = Callable[[int], Iterable[Fact]]


def record(trace: str, **fields: Any) -> dict[str, Any]:
    return {
        "tenant": "acme",
        "trace_id": trace,
        "pairs": [],
        "approvals": [],
        "workload_sponsors": [],
        "agents": [],
        "tool_calls": 0,
        "cost_usd": 0.0,
        "started_at": AT,
        "first_recorded_at": AT // 1000,
        "last_recorded_at": AT // 1000,
        "producers": [],
        **fields,
    }


def chain(**fields: Any) -> Said:
    return lambda number: of_chains.facts(record(**{"trace": f"{number:032x}", **fields}))


def fragment(**fields: Any) -> Said:
    return lambda number: of_chains.facts_of_fragment(
        record(**{"trace": f"{number:032x}", **fields})
    )


def pair(agent: str | None, task: str | None, at: int = AT, credential: str = "k") -> Any:
    one = {"credential_id": credential, "agent_id": agent, "task_id": task}
    return [{**one, "first_at": at, "last_at": at + 1}]


def used(agent: str | None, task: str | None, at: int = AT, credential: str = "k") -> Said:
    return chain(pairs=pair(agent, task, at, credential))


def approved(number: int, after_s: float, at: int = AT, *, asked: bool = True) -> Said:
    asked_at = at + number * 60 * S
    decided = asked_at + int(after_s * S)
    one = {"approval_id": f"a{number}", "by": "ann", "effect": "allow", "decided_at": decided}
    return chain(approvals=[{**one, "requested_at": asked_at if asked else None}])


def for_whom(name: str) -> Said:
    return chain(workload_sponsors=[{"workload": "spiffe://w", "sponsor": name}])


def spent(calls: int, cost: float, at: int = AT) -> Said:
    return chain(agents=["a"], tool_calls=calls, cost_usd=cost, started_at=at)


def session(tenant: str = "acme", at: int = AT) -> Said:
    return chain(trace=TRACE, tenant=tenant, last_recorded_at=at // 1000)


def part(tenant: str = "acme", at: int = AT, *uses: Any) -> Said:
    return fragment(trace=TRACE, tenant=tenant, last_recorded_at=at // 1000, pairs=list(uses))


def beat(at: int, recorded: int = 0, *, final: bool = False, interval_s: float = 10.0) -> Said:
    made = {
        "tenant": "acme", "producer_id": "p", "producer_epoch": 5, "interval_s": interval_s,
        "final": final, "host": "h1", "recorded": recorded, "spooled": 2, "failed": 1,
    }  # fmt: skip
    return lambda _: of_producers.facts_of_heartbeat(made, at)


def ended(recorded: int) -> Said:
    return beat(AT, recorded, final=True)


def arrived(events: int, offset: int, lane: int = 0, at: int = AT) -> Said:
    sent = [{"producer_id": "p", "epoch": 5, "events": events}]
    made = record(TRACE, producers=sent, last_recorded_at=at // 1000)
    return lambda _: of_producers.facts_of_arrival(made, lane, offset)


def looked(at: int) -> Said:
    """The watch looks at every key that is due at this time."""
    return lambda _: [Fact("", "", "", LOOK, at, "", None)]


class World:
    """What `watch` does with facts, without Kafka."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, str, str], State] = {}
        self.looked: dict[tuple[str, str, str], int] = {}
        self.said: dict[str, dict[str, Any]] = {}

    def take(self, told: Said, number: int) -> None:
        for fact in told(number):
            known = [fact] if fact.detector else self._due(fact.at_us)
            for one in known:
                self._fold(one)

    def _due(self, at_us: int) -> list[Fact]:
        found = []
        for key, state in self.states.items():
            detector, tenant, subject = key
            look_us = DETECTORS[detector].look_us(state, LIMITS, self.looked.get(key, 0))
            if look_us is not None and look_us <= at_us:
                found.append(Fact(detector, tenant, subject, LOOK, at_us, "", None))
        return found

    def _fold(self, fact: Fact) -> None:
        key = (fact.detector, fact.tenant, fact.subject)
        detector = DETECTORS[fact.detector]
        state = self.states.get(key, {})
        if fact.name != LOOK:
            state = detector.fold(state, fact)
        elif detector.is_over(state, LIMITS, self.looked.get(key, 0), fact.at_us):
            state = {}
        else:
            self.looked[key] = fact.at_us
        self.states[key] = state
        answer = detector.judge(state, LIMITS, fact.at_us) if state else False
        name = f"{fact.detector} {fact.subject}"
        if answer:
            self.said[name] = finding(detector, fact, state, answer, 7)
        elif answer is None and name in self.said and detector.takes_back:
            self.said[name] = finding(detector, fact, state, None, 7)


def found(*told: Said) -> dict[str, dict[str, Any]]:
    """The findings that stand after all of it, by detector and subject."""
    world = World()
    for number, one in enumerate(told):
        world.take(one, number)
    return {name: one for name, one in world.said.items() if one["state"] == "open"}


HOUR = "2025-06-15T15"
ABROAD = pair("a", "t")[0]
FIRES: list[tuple[str, str, list[Said]]] = [
    ("two agents", "shared_credential k", [used("a", "t"), used("b", "t")]),
    ("two tasks", "shared_credential k", [used("a", "t"), used("a", "u")]),
    ("over days", "reused_credential k", [used("a", "t"), used("a", "t", AT + 2 * DAY_US)]),
    ("rubber stamps", f"approval_fatigue ann {HOUR}", [approved(n, 2) for n in range(3)]),
    ("many people", "many_sponsors spiffe://w", [for_whom(n) for n in "xyz"]),
    ("many calls", f"runaway_agent a {HOUR}", [spent(6, 0), spent(5, 0)]),
    ("much money", f"runaway_agent a {HOUR}", [spent(1, 3), spent(1, 3)]),
    ("no session at all", f"credential_outside {TRACE}",
        [part("acme", AT, ABROAD), looked(AT + HOUR_US)]),
    ("two tenants", f"tenant_mixed {TRACE}", [session(), session("beta")]),
    ("a part of another tenant", f"tenant_mixed {TRACE}", [session(), part("beta")]),
    ("no heartbeat any more", "producer_silent p 5", [beat(AT), looked(AT + 61 * S)]),
    ("fewer came than it says", "producer_lacking p 5",
        [ended(9), arrived(5, 0), arrived(2, 1), arrived(1, 0, 1), looked(AT + 2 * HOUR_US)]),
    ("nothing came at all", "producer_lacking p 5", [ended(9), looked(AT + 2 * HOUR_US)]),
]  # fmt: skip
NEAR_MISSES: list[tuple[str, str, list[Said]]] = [
    ("one agent and task, twice", "shared_credential", [used("a", "t"), used("a", "t")]),
    ("each its own", "shared_credential", [used("a", "t"), used("b", "t", credential="l")]),
    ("within a day", "reused_credential", [used("a", "t"), used("a", "t", AT + DAY_US - 2)]),
    ("two stamps", "approval_fatigue", [approved(n, 2) for n in range(2)]),
    ("they take their time", "approval_fatigue", [approved(n, 6) for n in range(3)]),
    ("in two hours", "approval_fatigue", [approved(n, 2, AT + n // 2 * HOUR_US) for n in range(3)]),
    ("two people", "many_sponsors", [for_whom(n) for n in "xyx"]),
    ("within the limits", "runaway_agent", [spent(5, 2), spent(5, 2)]),
    ("in two hours, calls", "runaway_agent", [spent(6, 0), spent(5, 0, AT + HOUR_US)]),
    ("its session came before", "credential_outside",
        [session(), part("acme", AT, ABROAD), looked(AT + HOUR_US)]),
    ("a session each", "tenant_mixed", [session(), chain(tenant="beta")]),
    ("it said that it ends", "producer_silent",
        [beat(AT), beat(AT + S, final=True), looked(AT + HOUR_US)]),
    ("it beats slowly", "producer_silent", [beat(AT, interval_s=100.0), looked(AT + 61 * S)]),
    ("all of it came", "producer_lacking",
        [ended(7), arrived(5, 0), arrived(2, 1), looked(AT + 2 * HOUR_US)]),
]  # fmt: skip
LACKING: list[tuple[str, str, list[Said]]] = [
    ("nobody says which agent", "shared_credential", [used(None, None), used(None, None)]),
    ("nobody knows when it was used", "reused_credential", [used("a", "t", 0), used("a", "t", 1)]),
    ("nobody knows when it was asked", "approval_fatigue",
        [approved(n, 2, asked=False) for n in range(3)]),
    ("nobody says for whom", "many_sponsors", [chain(), chain(), chain()]),
    ("two agents share a session", "runaway_agent", [chain(agents=["a", "b"], tool_calls=99)]),
    ("its session may still come", "credential_outside",
        [part("acme", AT, ABROAD), looked(AT + HOUR_US - S)]),
    ("no credential in it", "credential_outside", [part(), looked(AT + HOUR_US)]),
    ("the other tenant's part came a day later", "tenant_mixed",
        [session(), looked(AT + HOUR_US), session("beta", AT + DAY_US)]),
    ("it sends no heartbeats", "producer_silent", [arrived(5, 0), looked(AT + DAY_US)]),
    ("the rest may still come", "producer_lacking",
        [ended(9), arrived(5, 0), looked(AT + 2 * HOUR_US - S)]),
]  # fmt: skip
#: What is taken back: a story that fires, and what comes after it.
TAKEN_BACK: list[tuple[str, list[Said], Said]] = [
    ("the session came after all",
        [part("acme", AT, ABROAD), looked(AT + HOUR_US)], session(at=AT + HOUR_US)),
    ("it is heard again", [beat(AT), looked(AT + 61 * S)], beat(AT + 70 * S)),
    ("the rest came", [ended(9), arrived(5, 0), looked(AT + 2 * HOUR_US)], arrived(4, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "told"), [f[1:] for f in FIRES], ids=[f[0] for f in FIRES])
def test_a_detector_finds_what_it_is_for(name: str, told: list[Said]) -> None:
    assert name in found(*told)


@pytest.mark.parametrize("stories", [FIRES, NEAR_MISSES, LACKING])
def test_every_detector_has_a_story_of_each_kind(stories: list[tuple[str, str, Any]]) -> None:
    assert {name.partition(" ")[0] for _, name, _ in stories} == set(DETECTORS)


@pytest.mark.parametrize(
    "told", [c[2] for c in NEAR_MISSES + LACKING], ids=[c[0] for c in NEAR_MISSES + LACKING]
)
def test_what_only_looks_like_it_or_lacks_what_would_tell_is_not_found(told: list[Said]) -> None:
    assert found(*told) == {}


@pytest.mark.parametrize("told", [f[2] for f in FIRES], ids=[f[0] for f in FIRES])
def test_neither_order_nor_repetition_changes_what_is_found(told: list[Said]) -> None:
    facts = [one for one in told if not _is_look(one)]
    looks = [one for one in told if _is_look(one)]
    numbered = [_numbered(one, number) for number, one in enumerate(facts)]
    # The records of one lane keep their order, whatever else comes between and again.
    mixed = numbered if _is_of_one_lane(told) else list(reversed(numbered))
    once, twice = found(*numbered, *looks), found(*mixed, *numbered, *looks)

    assert {name: _what(one) for name, one in once.items()} == {
        name: _what(one) for name, one in twice.items()
    }


def _is_look(told: Said) -> bool:
    return any(fact.name == LOOK for fact in told(0))


def _is_of_one_lane(told: list[Said]) -> bool:
    return any(fact.detector == "producer_lacking" for one in told for fact in one(0))


def _numbered(told: Said, number: int) -> Said:
    return lambda _: told(number)


def _what(record: dict[str, Any]) -> tuple[str, str]:
    return record["finding_id"], record["summary"].partition(";")[0]


@pytest.mark.parametrize(
    ("told", "then"), [t[1:] for t in TAKEN_BACK], ids=[t[0] for t in TAKEN_BACK]
)
def test_what_comes_after_all_takes_a_finding_back(told: list[Said], then: Said) -> None:
    assert (len(found(*told)), found(*told, then)) == (1, {})


def test_a_finding_can_be_stored_and_names_the_latest_traces() -> None:
    made = found(used("a", "t"), used("b", "t", AT + 5))["shared_credential k"]

    assert ENCODER.encode("finding", made)
    assert made["summary"] == (f"2 agents used one credential: a, b; latest in {1:032x}, {0:032x}")


def test_a_record_of_a_lane_that_comes_again_counts_once() -> None:
    lacking = DETECTORS["producer_lacking"]
    state: State = {}
    for told in (arrived(5, 0), arrived(2, 1), arrived(5, 0), arrived(2, 1), arrived(1, 4, 2)):
        for fact in told(0):
            state = lacking.fold(state, fact)

    assert {name: one[2] for name, one in state.items()} == {"lane 0": [1, 7], "lane 2": [4, 1]}


def test_a_key_keeps_its_newest_facts_only() -> None:
    detector, state = DETECTORS["shared_credential"], State()
    for number in range(FACTS_MAX + 3):
        fact = Fact("shared_credential", "t", "s", f"n{number}", number, "trace", None)
        state = detector.fold(state, fact)

    assert len(state) == FACTS_MAX
    assert min(one[0] for one in state.values()) == 3


FORGOTTEN: list[tuple[str, Said]] = [
    ("credential_outside", part("acme", AT, ABROAD)),
    ("tenant_mixed", session()),
    ("producer_silent", beat(AT)),
    ("producer_lacking", ended(9)),
]


@pytest.mark.parametrize(("name", "told"), FORGOTTEN, ids=[f[0] for f in FORGOTTEN])
def test_a_key_is_judged_and_then_forgotten_however_late_it_is_looked_at(
    name: str, told: Said
) -> None:
    world, late = World(), AT + 30 * DAY_US
    world.take(told, 0)
    keys = [key for key in world.states if key[0] == name]
    for day in (0, 2):
        world.take(looked(late + day * DAY_US), 0)

    assert [world.states[key] for key in keys] == [{}]
    assert (name in {said.partition(" ")[0] for said in world.said}) == (name != "tenant_mixed")


def test_a_finding_that_was_made_late_is_taken_back_as_one_in_time() -> None:
    world, late = World(), AT + 30 * DAY_US
    world.take(part("acme", AT, ABROAD), 0)
    for second in (0, 5):
        world.take(looked(late + second * S), 0)
    assert [one["state"] for one in world.said.values()] == ["open"]
    world.take(session(), 0)

    assert [one["state"] for one in world.said.values()] == ["retracted"]


def test_the_limits_say_how_long_is_waited() -> None:
    (fact,) = [f for f in part("acme", AT, ABROAD)(0) if f.detector == "credential_outside"]
    state = DETECTORS["credential_outside"].fold({}, fact)

    assert [
        DETECTORS["credential_outside"].look_us(state, replace(LIMITS, trace_kept_s=s), 0)
        for s in (60.0, 120.0)
    ] == [AT + 60 * S, AT + 120 * S]
