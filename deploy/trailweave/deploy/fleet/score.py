"""Compares verdicts with labels: what was found, missed, and invented. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trailweave.deploy.fleet.labels import Label


class Verdict(NamedTuple):
    """The latest verdict on one trace: its (rule, subject) pairs and its completeness."""

    trace_id: str
    findings: frozenset[tuple[str, str]]
    completeness: str


class Mismatch(NamedTuple):
    """A trace whose completeness is not what it should be; `found` is None without a verdict."""

    trace_id: str
    expected: str
    found: str | None


@dataclass(slots=True)
class Tally:
    """Findings of one rule: rightly found, invented, and missed."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0


@dataclass(slots=True)
class Score:
    """How verdicts compare with labels."""

    rules: dict[str, Tally] = field(default_factory=dict)
    completeness_mismatches: list[Mismatch] = field(default_factory=list)
    #: (trace id, rule, subject) of the findings that should not, and that should be there.
    invented: list[tuple[str, str, str]] = field(default_factory=list)
    missed: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def precision(self) -> float:
        """Share of the findings that are right; 1 where there are none."""
        right = self._right()
        found = right + len(self.invented)
        return right / found if found else 1.0

    @property
    def recall(self) -> float:
        """Share of the planted findings that were found; 1 where none was planted."""
        right = self._right()
        planted = right + len(self.missed)
        return right / planted if planted else 1.0

    @property
    def exact(self) -> bool:
        """Exactly what was planted was found, and every completeness is right."""
        return not (self.invented or self.missed or self.completeness_mismatches)

    def rows(self) -> list[tuple[str, int, int, int, int]]:
        """Per rule: planted, caught, missed, invented."""
        return [
            (
                rule,
                tally.true_positives + tally.false_negatives,
                tally.true_positives,
                tally.false_negatives,
                tally.false_positives,
            )
            for rule, tally in sorted(self.rules.items())
        ]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        names = ("planted", "caught", "missed", "invented")
        return {
            "exact": self.exact,
            "precision": self.precision,
            "recall": self.recall,
            "rules": {rule: dict(zip(names, counts, strict=True)) for rule, *counts in self.rows()},
            "missed": [list(key) for key in self.missed],
            "invented": [list(key) for key in self.invented],
            "completeness_mismatches": [list(one) for one in self.completeness_mismatches],
        }

    def _right(self) -> int:
        return sum(tally.true_positives for tally in self.rules.values())

    def _tally(self, rule: str) -> Tally:
        return self.rules.setdefault(rule, Tally())

    def compare(
        self, trace_id: str, expected: set[tuple[str, str]], found: set[tuple[str, str]]
    ) -> None:
        """Count one trace's findings."""
        for rule, _ in expected & found:
            self._tally(rule).true_positives += 1
        for rule, subject in sorted(found - expected):
            self._tally(rule).false_positives += 1
            self.invented.append((trace_id, rule, subject))
        for rule, subject in sorted(expected - found):
            self._tally(rule).false_negatives += 1
            self.missed.append((trace_id, rule, subject))


def score(labels: Iterable[Label], verdicts: Iterable[Verdict]) -> Score:
    """Score one verdict per trace; a trace without a label should have no finding.

    Completeness is compared for traces whose label has one.
    """
    result = Score()
    by_trace = {verdict.trace_id: verdict for verdict in verdicts}
    for label in labels:
        verdict = by_trace.pop(label.trace_id, None)
        found = set(verdict.findings) if verdict else set()
        result.compare(label.trace_id, {(f.rule, f.subject) for f in label.findings}, found)
        completeness = verdict.completeness if verdict else None
        if label.completeness is not None and label.completeness != completeness:
            mismatch = Mismatch(label.trace_id, label.completeness, completeness)
            result.completeness_mismatches.append(mismatch)
    for verdict in by_trace.values():
        result.compare(verdict.trace_id, set(), set(verdict.findings))
    return result
