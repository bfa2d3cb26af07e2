"""Join and load killed at random moments, and ClickHouse under them, while fleets are sent.

`test_faults` asks where each record went, after faults of every kind. Here no session lies open for
so long that a fault could change its verdict, and what counts is what a person would ask: does
`trailweave account` add up, is everything stored once, and was exactly what was planted found?
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import pytest
from trailweave.deploy.fleet.fleet import Fleet
from trailweave.deploy.fleet.labels import Label
from trailweave.deploy.fleet.score import Verdict, score
from trailweave.deploy.fleet.send import FleetProducer

from tests.integration.join_kafka import finding_faults, read_stored
from tests.integration.pipeline import DEADLINE_S, WORKERS, Pipeline, engines
from tests.integration.test_cli import wait_until

KILLS: Final = 11
SEED: Final = 20_261_121
#: A small fleet at once, again and again: no session lies there for long, so that the times below
#: hold although the run takes as long as it takes.
BURST_SESSIONS: Final = 15
BURST_EVERY_S: Final = 0.3
#: One burst of so many holds anomalies: an unknown schema stops a partition for seconds.
BURSTS_WITH_ANOMALIES: Final = 6
ANOMALIES: Final = 0.6
GRACE_S: Final = 3.0
IDLE_S: Final = 6.0
#: How long the group waits for a worker that has gone (`Pipeline.working`).
SESSION_TIMEOUT_S: Final = 30.0
#: What the join says when it begins, and when it has its lanes.
BEGUN: Final = re.compile(r"^(\S+ [\d:]+),\d+ .* join runs as slot", re.MULTILINE)
BACK: Final = re.compile(r"^(\S+ [\d:]+),\d+ .* are back with", re.MULTILINE)


@dataclass
class Fleets:
    """Bursts that were sent, summed up."""

    sent: int = 0
    records: int = 0
    distinct: int = 0
    dead_letters: int = 0
    labels: list[Label] = field(default_factory=list)

    def burst(self, producer: FleetProducer) -> None:
        number = self.sent
        share = 0.0 if number % BURSTS_WITH_ANOMALIES else ANOMALIES
        fleet = Fleet(BURST_SESSIONS, SEED + number, int(time.time() * 1_000_000), share)
        for record in fleet:
            producer.send(record.topic, record.key, record.value)
        self.sent += 1
        self.records += fleet.totals.records
        self.distinct += fleet.totals.events_distinct
        self.dead_letters += fleet.totals.dead_letters
        self.labels += fleet.labels


@dataclass
class Outcome:
    """The pipeline after a run of kills, and what is true of what was sent."""

    pipeline: Pipeline
    fleets: Fleets
    account: dict[str, Any]
    #: Per worker: how many records had been sent at each kill.
    sent_at_kill: dict[str, list[int]]
    #: Per worker: the lines that all its lives have logged; each begins with its time.
    logged: dict[str, set[str]]
    #: Events in ClickHouse when the kills were over, and the bursts were not.
    stored_meanwhile: int


def send_until(done: threading.Event, pipeline: Pipeline, fleets: Fleets) -> None:
    with FleetProducer(pipeline.kafka.address, {"log_level": "0"}) as producer:
        while not done.is_set():
            fleets.burst(producer)
            done.wait(BURST_EVERY_S)


def kill_again_and_again(
    pipeline: Pipeline, name: str, fleets: Fleets
) -> tuple[list[int], set[str]]:
    """SIGKILL a worker at seeded moments: while it starts, recovers, works; it runs at the end."""
    chance = random.Random(f"{SEED}:{name}")
    killed_at, logged = [], set()
    for _ in range(KILLS):
        time.sleep(chance.choice((0.3, 1.0, 2.0)) + chance.random())
        pipeline.kill(name)
        killed_at.append(fleets.records)
        pipeline.start(name)
        logged |= set(pipeline.console(name).splitlines())
    return killed_at, logged


def run_of_kills(pipeline: Pipeline) -> Outcome:
    fleets, done = Fleets(), threading.Event()
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(send_until, done, pipeline, fleets)
        try:
            killing = {
                name: pool.submit(kill_again_and_again, pipeline, name, fleets) for name in WORKERS
            }
            killed = {name: running.result() for name, running in killing.items()}
            pipeline.clickhouse.kill()
            pipeline.clickhouse.start()
            stored = "SELECT count() AS events FROM events"
            wait_until(lambda: pipeline.rows(stored)[0]["events"] > 0, DEADLINE_S)
            meanwhile = pipeline.rows(stored)[0]["events"]
        finally:
            done.set()
        sending.result(DEADLINE_S)
    account = pipeline.settle(fleets.records)
    killed_at = {name: at for name, (at, _) in killed.items()}
    logged = {name: lines for name, (_, lines) in killed.items()}
    return Outcome(pipeline, fleets, account, killed_at, logged, meanwhile)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    with (
        engines(tmp_path_factory.mktemp("kill-workers")) as pipeline,
        pipeline.working(GRACE_S, IDLE_S),
    ):
        yield run_of_kills(pipeline)


def places(pipeline: Pipeline) -> tuple[int, int]:
    """Rows of `events`, and how many records they are of."""
    (row,) = pipeline.rows(
        "SELECT count() AS stored, uniqExact(topic_id, partition, offset) AS places FROM events"
    )
    return row["stored"], row["places"]


def test_both_workers_were_killed_while_events_came(outcome: Outcome) -> None:
    for name in WORKERS:
        kills = outcome.sent_at_kill[name]

        assert len(kills) == KILLS >= 10
        assert kills == sorted(set(kills)), "nothing was sent between two kills"
        assert kills[-1] < outcome.fleets.records
    assert outcome.stored_meanwhile > 0


def test_the_account_adds_up_and_nothing_is_held(outcome: Outcome) -> None:
    lines = outcome.account["stages"]

    assert outcome.account["adds_up"]
    assert not any(line["held"] or line["difference"] or line["wrong"] for line in lines)


def test_every_record_is_stored_once_and_none_is_missing(outcome: Outcome) -> None:
    (sums,) = outcome.pipeline.asked("demo_sums")
    fleets = outcome.fleets

    assert sums["events_stored"] + sums["dead_letters"] == fleets.distinct
    assert sums["event_rows"] == fleets.records - fleets.dead_letters
    assert sums["dead_letters"] == fleets.dead_letters
    assert places(outcome.pipeline) == (sums["event_rows"],) * 2


def test_no_chain_is_doubled_and_none_is_missing(outcome: Outcome) -> None:
    rows = outcome.pipeline.rows(
        "SELECT trace_id, state, events, duplicates FROM chains WHERE kind != 'open'"
    )
    expected = {
        (label.trace_id, "closed", label.events, label.duplicates)
        for label in outcome.fleets.labels
        if label.completeness is not None
    }
    # A record that is no event may leave a chain of none: it says where the dead letter belongs.
    found = [tuple(row.values()) for row in rows if row["events"]]

    assert len(rows) == len({row["trace_id"] for row in rows})
    assert len(found) == len(expected)
    assert set(found) == expected


def test_every_planted_finding_is_there_exactly_once(outcome: Outcome) -> None:
    found: dict[str, set[tuple[str, str]]] = {}
    for row in outcome.pipeline.asked("demo_findings"):
        found.setdefault(row["trace_id"], set()).add((row["rule"], row["subject"]))
    verdicts = [
        Verdict(row["trace_id"], frozenset(found.get(row["trace_id"], ())), row["completeness"])
        for row in outcome.pipeline.asked("demo_chains")
    ]
    scored = score(outcome.fleets.labels, verdicts)
    (rows,) = outcome.pipeline.rows(
        "SELECT count() AS stored, uniqExact(finding_id) AS ids FROM findings"
        " WHERE chain_state != 'open'"
    )
    planted = sum(len(label.findings) for label in outcome.fleets.labels)

    assert (scored.missed, scored.invented, scored.completeness_mismatches) == ([], [], [])
    assert (rows["stored"], rows["ids"]) == (planted, planted)
    assert planted > 0


def test_what_the_join_wrote_is_what_load_stored(outcome: Outcome) -> None:
    written = read_stored(outcome.pipeline.kafka.address)
    (stored,) = outcome.pipeline.rows(
        "SELECT (SELECT count() FROM chains) AS chains, (SELECT count() FROM findings) AS findings,"
        " (SELECT count() FROM dead_letters) AS letters"
    )

    assert finding_faults(written) == []
    assert (stored["chains"], stored["findings"], stored["letters"]) == (
        len(written.chains + written.revisions), len(written.findings), len(written.letters),
    )  # fmt: skip


def test_a_killed_join_has_its_lanes_back_long_before_its_session_times_out(
    outcome: Outcome,
) -> None:
    console = outcome.pipeline.console("join").splitlines()
    said = "\n".join(sorted(outcome.logged["join"].union(console)))
    began = [datetime.fromisoformat(at) for at in BEGUN.findall(said)]
    back = [datetime.fromisoformat(at) for at in BACK.findall(said)]
    # One that was killed before it had them says nothing: the next one does.
    waits = [(min((at for at in back if at >= start), default=start), start) for start in began]

    assert len(began) > KILLS // 2  # some are killed before they say that they run
    assert max((at - start).total_seconds() for at, start in waits) < SESSION_TIMEOUT_S
