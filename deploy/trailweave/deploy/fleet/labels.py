"""What each trace of the fleet truly holds: the answer key, as JSON lines.

One line per trace: `trace_id`, `tenant`, `story`, `anomaly` (null: clean), `findings` [{`rule`,
`subject`}], `completeness` (null: not judged, for nothing of the trace is an event), `events`
(distinct, stored), `duplicates` (sent again), `dead_letters` (codes).
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

Completeness = Literal["complete", "incomplete", "unprovable"]


class Expected(NamedTuple):
    """One finding that a trace must have."""

    rule: str
    subject: str


@dataclass(frozen=True, slots=True)
class Label:
    """The truth about one trace."""

    trace_id: str
    tenant: str
    story: str
    anomaly: str | None
    findings: tuple[Expected, ...]
    completeness: Completeness | None
    events: int
    duplicates: int = 0
    dead_letters: tuple[str, ...] = ()


def to_line(label: Label) -> str:
    """One line of the labels file."""
    findings = [finding._asdict() for finding in label.findings]
    return json.dumps(asdict(label) | {"findings": findings}, separators=(",", ":")) + "\n"


def from_line(line: str) -> Label:
    """The label of a line that `to_line` wrote."""
    fields: dict[str, Any] = json.loads(line)
    findings = tuple(Expected(**finding) for finding in fields.pop("findings"))
    dead_letters = tuple(fields.pop("dead_letters"))
    return Label(**fields, findings=findings, dead_letters=dead_letters)


def write_labels(path: Path, labels: Iterable[Label]) -> None:
    """The labels file, written anew."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(map(to_line, labels))


def read_labels(path: Path) -> Iterator[Label]:
    """The labels of a file, one by one."""
    with path.open(encoding="utf-8") as file:
        yield from map(from_line, file)
