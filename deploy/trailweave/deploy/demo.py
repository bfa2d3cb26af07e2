"""`trailweave demo`: everything embedded, a fleet with planted anomalies, and what was caught.

Ends when every sum is right and every session judged, or at a deadline; then compares verdicts
with the fleet's own labels, finding by finding.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trailweave.deploy.clients import clickhouse
from trailweave.deploy.fleet.fleet import Fleet, Totals
from trailweave.deploy.fleet.labels import Label, write_labels
from trailweave.deploy.fleet.score import Score, score
from trailweave.deploy.fleet.send import FleetProducer, send_fleet
from trailweave.deploy.settings import BOOTSTRAP, Settings, read_settings
from trailweave.deploy.stored import read_trail
from trailweave.deploy.trail import Trail
from trailweave.deploy.up import Plan, Up
from trailweave.deploy.verdicts import read_verdicts
from trailweave.schemas.errors import TrailError
from trailweave.sinks.ask import ask, ask_one

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

#: The fleet sends hours of its time within seconds, and nobody waits a quarter of an hour for a
#: session that never ends: so the demo closes sessions after these.
GRACE_S: Final = 2.0
IDLE_S: Final = 5.0
POLL_S: Final = 0.2
#: Allowed for the events to come through: a slow machine's start, and its slow rate.
DEADLINE_S: Final = 120.0
SESSIONS_PER_S_MIN: Final = 40
#: What the document has of the comparison; that all is exact means more here.
_COMPARED: Final = ("precision", "recall", "missed", "invented", "completeness_mismatches")
#: The story that shows most in one tree.
EXAMPLE_STORY: Final = "suspected_misuse"

#: Tells (step, done, of): for a progress bar.
Told = Callable[[str, int, int], None]


@dataclass(slots=True)
class Outcome:
    """What a demo sent, what came of it, and how long each step took."""

    totals: Totals
    sums: dict[str, int]
    score: Score
    completeness: Counter[str]
    sessions: int
    findings: Counter[str]
    planted: Counter[str]
    in_time: bool
    restarts: dict[str, int]
    example: Trail | None = None
    dead_letters: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[str, float] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Nothing missing, nothing double, and exactly the planted findings."""
        sent = self.totals.events_distinct
        return (
            self.score.exact
            and self.in_time
            and sent == self.sums["events_stored"] + self.sums["dead_letters"]
            and self.totals.duplicates == self.sums["duplicates"]
        )

    def document(self) -> dict[str, Any]:
        """The `--json` document."""
        return {
            "events_sent": self.totals.events_distinct,
            "events_sent_distinct": self.totals.events_distinct,
            "records_sent": self.totals.records,
            "duplicates": self.sums["duplicates"],
            "duplicates_planted": self.totals.duplicates,
            "events_stored": self.sums["events_stored"],
            "dead_letters": self.sums["dead_letters"],
            "sessions": self.sessions,
            **{name: self.completeness[name] for name in ("complete", "incomplete", "unprovable")},
            "findings": dict(sorted(self.findings.items())),
            "planted": dict(sorted(self.planted.items())),
            "exact": self.exact,
            **{name: value for name, value in self.score.document().items() if name in _COMPARED},
            "in_time": self.in_time,
            "restarts": self.restarts,
            "seconds": round(sum(self.steps.values()), 2),
            "steps": {name: round(seconds, 2) for name, seconds in self.steps.items()},
        }


def demo_settings(folder: Path) -> tuple[Settings, Path]:
    """Write the demo's settings into its folder, so that whoever keeps it can run it again."""
    path = folder / "trailweave.toml"
    path.write_text(
        "# Written by `trailweave demo`: short times, so that a demo ends soon.\n"
        f"[join]\ngrace_s = {GRACE_S}\nidle_s = {IDLE_S}\napproval_hold_max_s = {IDLE_S}\n\n"
        f"[schemas]\nunknown_wait_s = {GRACE_S}\n",
        "utf-8",
    )
    # Neither this machine's variables nor its settings: a demo must not reach a real cluster.
    return read_settings(path, {}, {}), path


def run_demo(folder: Path, sessions: int, seed: int, anomalies: float, told: Told) -> Outcome:
    """Run it in `folder`; raises `TrailError` when a part can't be started."""
    settings, config = demo_settings(folder)
    steps: dict[str, float] = {}
    with _timed(steps, "start"):
        up = Up(Plan(data=folder, settings=settings, config=config)).__enter__()
    try:
        fleet = Fleet(sessions, seed, int(time.time() * 1_000_000), anomalies)
        with _timed(steps, "simulate"), _fleet_producer(up.settings) as producer:
            send_fleet(
                fleet, producer.send, on_progress=lambda done: told("sending events", done, 0)
            )
        write_labels(folder / "labels.jsonl", fleet.labels)
        with clickhouse(up.settings) as client:
            with _timed(steps, "pipeline"):
                sums, in_time = _wait(client, fleet, told, up)
            with _timed(steps, "compare"):
                outcome = _outcome(client, fleet, sums, in_time)
        outcome.restarts = {k: v for k, v in up.supervisor.restarts.items() if v}
        outcome.steps = steps
    finally:
        with _timed(steps, "stop"):
            up.__exit__()
    return outcome


def _fleet_producer(settings: Settings) -> FleetProducer:
    # It outlives the engines by a moment, and would tell the terminal about each lost connection.
    return FleetProducer(settings.kafka[BOOTSTRAP], {"log_level": "0"})


def _wait(client: "Client", fleet: Fleet, told: Told, up: Up) -> tuple[dict[str, int], bool]:
    """Poll until everything sent is stored and judged; whether that was before the deadline."""
    deadline = time.monotonic() + DEADLINE_S + fleet.sessions / SESSIONS_PER_S_MIN
    of = 2 * fleet.totals.records
    while True:
        up.supervisor.check(time.monotonic())
        sums = ask_one(client, "demo_sums")
        stored = sums["event_rows"] + sums["dead_letters_not_stored"]
        judged = sums["events_judged"] + sums["dead_letters_alone"]
        told("storing and judging", stored + judged, of)
        whole = stored == judged == fleet.totals.records
        if whole and sums["finding_rows"] == sums["findings_judged"]:
            return sums, True
        if time.monotonic() > deadline:
            return sums, False
        time.sleep(POLL_S)


def _outcome(client: "Client", fleet: Fleet, sums: dict[str, int], in_time: bool) -> Outcome:
    verdicts = read_verdicts(client)
    return Outcome(
        totals=fleet.totals,
        sums=sums,
        score=score(fleet.labels, verdicts),
        completeness=Counter(verdict.completeness for verdict in verdicts),
        sessions=len(verdicts),
        findings=Counter(rule for verdict in verdicts for rule, _ in verdict.findings),
        planted=Counter(finding.rule for label in fleet.labels for finding in label.findings),
        in_time=in_time,
        restarts={},
        example=_example(client, fleet.labels),
        dead_letters=ask(client, "dead_letters", topic="", stage="", code="", limit=20),
    )


def _example(client: "Client", labels: list[Label]) -> Trail | None:
    """A session with something found in it, the suspected misuse if there is one."""
    ranked = sorted(
        (label for label in labels if label.completeness is not None),
        key=lambda label: (bool(label.findings), label.story == EXAMPLE_STORY),
        reverse=True,
    )
    for label in ranked[:1]:
        try:
            return read_trail(client, label.trace_id, label.tenant)
        except TrailError:
            return None
    return None


@contextmanager
def _timed(steps: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        steps[name] = time.monotonic() - began


def summary_rows(outcome: Outcome) -> list[tuple[str, object]]:
    """What the summary table says."""
    document = outcome.document()
    names = (
        "sessions", "complete", "incomplete", "unprovable", "records_sent", "duplicates",
        "events_sent", "events_stored", "dead_letters",
    )  # fmt: skip
    return [(name.replace("_", " "), document[name]) for name in names]
