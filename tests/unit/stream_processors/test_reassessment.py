"""A session judged anew: the same verdict for the same events, and what changes with others."""

from __future__ import annotations

from typing import Any

import pytest
from trailweave.stream_processors.reassessment import Before, NotLoadedError, Revision, Row, revise
from trailweave.stream_processors.rules import RULES_VERSION
from trailweave.stream_processors.verdict import RulesConfig, judge

from tests.stories import STORIES
from tests.stories.words import Story
from tests.unit.stream_processors.builders import (
    ENCODER,
    STORED_MS,
    WHOLE_DECODER,
    Made,
    Trace,
    chain,
    source,
)

NOW_MS = STORED_MS + 5


def rows(made: list[Made]) -> list[Row]:
    offsets = [0] * 5
    found = []
    for event in made:
        found.append(Row(event.topic, offsets[event.topic], STORED_MS, event.value))
        offsets[event.topic] += 1
    return found


def before(made: list[Made], **changed: Any) -> Before:
    fields = {
        "tenant": "acme",
        "trace_id": made[0].record["trace_id"],
        "lane": 0,
        "newest_part": 7,
        "covered_part": -1,
        "fragmented": True,
        "records": len(made),
        "dead_lettered": 2,
        "rules_version": RULES_VERSION,
        "rules_config_hash": RulesConfig().digest,
    }
    return Before(**{**fields, **changed})


def revised(
    made: list[Made],
    standing: list[dict[str, Any]] | None = None,
    config: RulesConfig | None = None,
) -> Revision:
    stored = before(made)
    return revise(
        stored, rows(made), standing or [], source(), config or RulesConfig(), ENCODER, NOW_MS
    )


def decoded(found: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    return [WHOLE_DECODER.decode(value)[1] for _, value in found]


def opened(made: list[Made]) -> list[dict[str, Any]]:
    """The findings of a session of which none is known yet."""
    return decoded(revised(made).opened)


# --- the same verdict ---


def test_the_join_and_a_reassessment_judge_every_story_alike() -> None:
    assert [str(story) for story in STORIES if joined(story) != reassessed(story)] == []


def joined(story: Story) -> tuple[object, ...]:
    verdict = judge(chain(*story.events(Trace())), RulesConfig(limits=story.limits))
    ids = [finding.finding_id for finding in verdict.findings]
    return ids, verdict.not_evaluable, verdict.completeness, verdict.missing


def reassessed(story: Story) -> tuple[object, ...]:
    found = revised(story.events(Trace()), config=RulesConfig(limits=story.limits))
    record = WHOLE_DECODER.decode(found.sealed.chain)[1]
    ids = [finding["finding_id"] for finding in record["findings"]]
    return ids, record["not_evaluable"], record["completeness"], record["missing"]


def test_the_record_says_who_made_it_and_what_it_covers() -> None:
    record = WHOLE_DECODER.decode(revised(Trace().whole()).sealed.chain)[1]

    assert (record["writer"], record["state"], record["close_reason"]) == (
        "reassess",
        "closed",
        "reassess",
    )
    assert (record["part"], record["dead_lettered"], record["judged_at"]) == (7, 2, NOW_MS)


# --- what changes ---


def ran(trace: Trace) -> list[Made]:
    return [
        trace.event("session_started", expected_sources=["policy"]),
        trace.event("tool_executed", call_id="c", tool="shell"),
    ]


def test_a_finding_that_stands_is_not_said_again() -> None:
    made = ran(Trace())
    again = revised(made, opened(made))

    assert (again.opened, again.retracted, again.changed) == ([], [], frozenset())


def test_what_a_late_event_explains_is_taken_back() -> None:
    trace = Trace()
    made = ran(trace)
    standing = opened(made)
    late = trace.event("policy_decided", 1.5, call_id="c", effect="allow")
    found = revised([*made, late], standing)
    (taken_back,) = decoded(found.retracted)

    assert [record["rule"] for record in standing] == ["exec_without_decision"]
    assert found.opened == []
    assert taken_back == {
        **standing[0],
        "state": "retracted",
        "detected_at": NOW_MS,
    }


def test_what_a_late_event_shows_is_found() -> None:
    trace = Trace()
    made = [*ran(trace), trace.event("policy_decided", 1.5, call_id="c", effect="deny")]
    found = revised(made, opened(made[:2]))

    assert [rule for rule, _ in found.opened] == ["denied_but_executed"]
    assert [rule for rule, _ in found.retracted] == ["exec_without_decision"]
    assert found.changed == {"denied_but_executed", "exec_without_decision"}


def test_findings_that_are_not_the_chains_are_left_alone() -> None:
    made = ran(Trace())
    other = {**opened(made)[0], "finding_id": "x", "rule": "approval_fatigue"}

    assert revised(made, [*opened(made), other]).retracted == []


# --- what is not judged ---


def test_a_session_whose_events_are_not_all_stored_is_left_for_later() -> None:
    made = Trace().whole()

    with pytest.raises(NotLoadedError, match=f"{len(made)} of {len(made) + 1} events"):
        revise(
            before(made, records=len(made) + 1), rows(made), [], source(), RulesConfig(), ENCODER, 0
        )


def test_a_session_whose_bytes_have_expired_is_not_judged() -> None:
    made = Trace().whole()
    expired = [row._replace(value=b"") for row in rows(made)]

    with pytest.raises(NotLoadedError):
        revise(before(made), expired, [], source(), RulesConfig(), ENCODER, 0)


@pytest.mark.parametrize(
    ("stored", "pending"),
    [
        ({}, True),
        ({"covered_part": 7}, False),
        ({"covered_part": 5}, True),
        ({"fragmented": False}, False),
        ({"records": 0}, False),
    ],
)
def test_a_session_is_pending_while_a_part_came_that_nothing_covers(
    stored: dict[str, Any], pending: bool
) -> None:
    assert before(Trace().whole(), **stored).pending == pending


def test_a_session_is_outdated_when_other_rules_or_settings_judged_it() -> None:
    made, config = Trace().whole(), RulesConfig()

    assert not before(made).outdated(config)
    assert before(made, rules_version="1").outdated(config)
    assert before(made, rules_config_hash="sha256:0").outdated(config)
