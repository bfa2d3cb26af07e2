"""Scores say exactly what was found, missed and invented."""

from pathlib import Path

from trailweave.deploy.fleet.labels import Expected, Label, read_labels, write_labels
from trailweave.deploy.fleet.score import Mismatch, Tally, Verdict, score

GHOST = Expected("ghost_action", "call-1")
GAP = Expected("seq_gap", "vault-0")


def label(trace_id: str, *findings: Expected, completeness: str | None = "complete") -> Label:
    return Label(trace_id, "acme", "deployment", None, findings, completeness, 12)  # type: ignore[arg-type]


def verdict(trace_id: str, *findings: Expected, completeness: str = "complete") -> Verdict:
    return Verdict(trace_id, frozenset(findings), completeness)


def test_verdicts_that_agree_with_the_labels_are_exact() -> None:
    result = score([label("a", GHOST), label("b")], [verdict("b"), verdict("a", GHOST)])

    assert result.exact
    assert (result.precision, result.recall) == (1.0, 1.0)
    assert result.rules == {"ghost_action": Tally(1, 0, 0)}


def test_a_missed_and_an_invented_finding_are_counted_under_their_rules() -> None:
    result = score([label("a", GHOST, GAP), label("b")], [verdict("a", GHOST), verdict("b", GAP)])

    assert result.rules == {"ghost_action": Tally(1, 0, 0), "seq_gap": Tally(0, 1, 1)}
    assert result.missed == [("a", *GAP)]
    assert result.invented == [("b", *GAP)]
    assert (result.precision, result.recall) == (0.5, 0.5)


def test_the_right_rule_on_another_subject_is_both_missed_and_invented() -> None:
    other = Expected("ghost_action", "call-2")
    result = score([label("a", GHOST)], [verdict("a", other)])

    assert result.rules == {"ghost_action": Tally(0, 1, 1)}


def test_another_completeness_is_a_mismatch() -> None:
    result = score([label("a")], [verdict("a", completeness="incomplete")])

    assert result.completeness_mismatches == [Mismatch("a", "complete", "incomplete")]
    assert not result.exact


def test_a_trace_without_a_verdict_misses_everything() -> None:
    result = score([label("a", GAP)], [])

    assert result.completeness_mismatches == [Mismatch("a", "complete", None)]
    assert result.recall == 0.0


def test_the_completeness_of_a_stray_is_not_compared() -> None:
    result = score([label("a", completeness=None)], [verdict("a", completeness="unprovable")])

    assert result.exact


def test_findings_on_an_unknown_trace_are_invented() -> None:
    result = score([], [verdict("x", GHOST)])

    assert result.invented == [("x", *GHOST)]
    assert result.precision == 0.0


def test_labels_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    stray = Label("b", "acme", "stray", "truncated", (), None, 0, 0, ("truncated",))
    labels = [label("a", GHOST, GAP), stray]
    write_labels(tmp_path / "labels.jsonl", labels)

    assert list(read_labels(tmp_path / "labels.jsonl")) == labels
