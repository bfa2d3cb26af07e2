"""Every rule on stories: one that it must find, a near miss, and one with late or missing input."""

from __future__ import annotations

import random

import pytest
from trailweave.stream_processors.rules import RULES
from trailweave.stream_processors.verdict import RulesConfig, Verdict, judge

from tests.stories import STORIES
from tests.stories.words import EVERYBODY, Story
from tests.unit.stream_processors.builders import Made, Trace, chain


def judged(story: Story, made: list[Made]) -> Verdict:
    return judge(chain(*made), RulesConfig(limits=story.limits))


def found(story: Story, verdict: Verdict) -> tuple[str, ...] | None:
    if story.rule in verdict.not_evaluable:
        return None
    return tuple(f.hit.subject for f in verdict.findings if f.rule.name == story.rule)


@pytest.mark.parametrize("story", STORIES, ids=str)
def test_each_story_is_judged_as_it_should_be(story: Story) -> None:
    assert found(story, judged(story, story.events(Trace()))) == story.finds


def test_every_rule_has_a_story_of_each_kind() -> None:
    kinds = {(story.rule, story.kind) for story in STORIES}

    assert kinds == {
        (rule.name, kind) for rule in RULES for kind in ("fires", "near miss", "lacking")
    }


def test_neither_the_order_of_arrival_nor_duplicates_change_the_verdict() -> None:
    assert [str(story) for story in STORIES if said(story) != said(story, mixed=True)] == []


def said(story: Story, *, mixed: bool = False) -> tuple[object, ...]:
    made = story.events(Trace())
    if mixed:
        made *= 2
        random.Random(str(story)).shuffle(made)
    verdict = judged(story, made)
    ids = [finding.finding_id for finding in verdict.findings]
    return ids, verdict.not_evaluable, verdict.completeness, verdict.missing


def test_a_finding_says_what_it_is_and_rests_on_events_that_are_there() -> None:
    unfounded = []
    for story in STORIES:
        made = story.events(Trace())
        ids = {event.record["event_id"] for event in made}
        for finding in judged(story, made).findings:
            resting = {event["event_id"] for event in finding.hit.events}
            # That nobody is named rests on no event, unless the start is there.
            lacks = finding.rule.name == "identity_missing"
            if not finding.hit.summary or not resting <= ids or not (resting or lacks):
                unfounded.append(f"{finding.rule.name} of {story}")

    assert unfounded == []


def test_whatever_is_taken_from_a_clean_session_is_missed() -> None:
    clean = Trace().whole(3, expected_sources=EVERYBODY)
    for left_out in clean:
        verdict = judge(chain(*(m for m in clean if m is not left_out)), RulesConfig())
        ended = left_out.name != "session_ended"

        assert verdict.completeness == ("incomplete" if ended else "unprovable"), left_out.name
        assert {lack["what"] for lack in verdict.missing} == (
            {"sequence", "count"} if ended else set()
        )
