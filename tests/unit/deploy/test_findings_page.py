"""docs/findings.md is what the rules say of themselves, now."""

from pathlib import Path

from trailweave.deploy.findings_page import page
from trailweave.stream_processors.detectors import DETECTORS, Detector
from trailweave.stream_processors.rules import RULES, Rule

PAGE = Path(__file__).parents[3] / "docs" / "findings.md"


def test_the_page_is_current() -> None:
    hint = "renew it: trailweave findings explain --markdown > docs/findings.md"

    assert PAGE.read_text("utf-8") == page(), hint


def test_every_rule_has_its_section_with_controls_and_a_next_step() -> None:
    sections = page().split("\n### ")[1:]
    told: list[Rule | Detector] = [*RULES, *DETECTORS.values()]

    assert [section.partition("\n")[0] for section in sections] == [rule.name for rule in told]
    for rule, section in zip(told, sections, strict=True):
        assert rule.controls[0] in section
        assert rule.next_step in section
