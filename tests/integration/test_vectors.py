"""The sample files through everything: `ingest`, Kafka, join and load, and out of ClickHouse.

What each file translates to is the adapters' own tests' matter (expected_samples.json, which is
read here too). Here: that all of it, and nothing else, is stored and judged, also when files are
read again, at once and after their chains were judged.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from trailweave.producers.adapters.record import Context
from trailweave.producers.identity import Identity
from trailweave.producers.ingest import ingest
from trailweave.schemas.codec import Decoder
from trailweave.schemas.events import DEAD_LETTERS_TOPIC
from trailweave.schemas.hashing import TenantKey

from tests.integration.pipeline import VECTORS, Pipeline, engines
from tests.unit.producers.adapters.test_samples import EXPECTED

FORMATS: Final = ("otlp", "opa", "vault", "mcp")
TENANT: Final = "acme"
KEY: Final = TenantKey("k1", b"made-up key")
#: From the first to the last of a trace's records, which stand in files of several formats.
IDLE_S: Final = 6.0
#: The second line of three; the others are decisions with traces of their own.
BROKEN: Final = b'{"decision_id": "cut off'

pytestmark = pytest.mark.skipif(
    not VECTORS.is_dir(), reason="the sample files beside the repository are not there"
)


@dataclass
class Told:
    """What the files hold, translated in memory: no Kafka, no join, no ClickHouse."""

    #: Distinct events by trace and event id: (type, how it is tied to its trace).
    events: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    #: Records sent to event topics in one reading.
    records: int = 0
    #: (file, position) of what is malformed.
    malformed: set[tuple[str, int]] = field(default_factory=set)


@dataclass(frozen=True)
class Readings:
    """The pipeline after the files were read twice, and each reading's reports by format."""

    pipeline: Pipeline
    told: Told
    reports: tuple[dict[str, dict[str, Any]], ...]
    account: dict[str, Any]


def files(name: str, broken: Path) -> list[Path]:
    found = [VECTORS / each["file"] for each in EXPECTED if each["format"] == name]
    return [*found, broken] if name == "opa" else found


def broken_file(folder: Path) -> Path:
    """Decisions of which the second was cut off in the middle of its line."""
    sample = json.loads((VECTORS / "opa" / "constructed-traced-upload.json").read_bytes())
    first, last = ({**sample[0], "decision_id": f"d-{n}", "trace_id": f"{n:032x}"} for n in (1, 3))
    path = folder / "broken.jsonl"
    path.write_bytes(b"\n".join((json.dumps(first).encode(), BROKEN, json.dumps(last).encode())))
    return path


def told_by(broken: Path) -> Told:
    told, decoder = Told(), Decoder()

    def take(topic: str, key: bytes, value: bytes) -> None:
        _, record = decoder.decode(value)
        if topic == DEAD_LETTERS_TOPIC:
            told.malformed.add((record["topic"], record["offset"]))
            return
        told.records += 1
        trace = told.events.setdefault(key.decode(), {})
        trace[record["event_id"]] = record["event_type"], record["correlation"]["how"]

    for name in FORMATS:
        who = Identity("service_account", name)
        context = Context(TENANT, name, who, KEY, capture="full")
        ingest(files(name, broken), name, context, take)
    return told


def read_files(pipeline: Pipeline, broken: Path) -> dict[str, dict[str, Any]]:
    """`trailweave ingest` of every format; its reports."""
    reports = {}
    for name in FORMATS:
        done = pipeline.run(
            "ingest", name, *map(str, files(name, broken)), "--json", "--capture", "full",
            "--tenant", TENANT, "--set", f"producer.key_id={KEY.kid}",
            "--set", f"producer.key_secret={KEY.secret.decode()}",
        )  # fmt: skip
        reports[name] = json.loads(done.stdout)
        assert done.exit_code == bool(reports[name]["problems"]), done.output
    return reports


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Readings]:
    """All files read twice, one reading after the other, then joined and loaded."""
    folder = tmp_path_factory.mktemp("vectors")
    broken = broken_file(folder)
    told = told_by(broken)
    with engines(folder / "data") as pipeline:
        reports = read_files(pipeline, broken), read_files(pipeline, broken)
        with pipeline.working(grace_s=1.0, idle_s=IDLE_S):
            account = pipeline.settle(2 * told.records)
            yield Readings(pipeline, told, reports, account)


def stored(pipeline: Pipeline) -> dict[str, dict[str, tuple[str, str]]]:
    """What ClickHouse has, as `Told.events`."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for row in pipeline.rows("SELECT * FROM events_distinct"):
        trace = found.setdefault(row["trace_id"], {})
        assert row["event_id"] not in trace, "one event id, two events"
        trace[row["event_id"]] = row["event_type"], row["correlation_how"]
    return found


def chains(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    rows = pipeline.rows("SELECT * FROM chains")
    assert len(rows) == len({row["trace_id"] for row in rows}), "a chain is there twice"
    return {row["trace_id"]: row for row in rows}


def test_a_reading_reports_what_each_sample_is_expected_to_hold(readings: Readings) -> None:
    for name, report in readings.reports[0].items():
        expected = [each for each in EXPECTED if each["format"] == name]
        events = sum((Counter(each["events"]) for each in expected), Counter[str]())
        # The broken file's own: two decisions, and a record that is none.
        events += Counter(policy_decided=2 * (name == "opa"))

        assert report["events"] == events, name
        assert report["malformed"] == sum(e["malformed"] for e in expected) + (name == "opa"), name


def test_the_second_reading_reports_the_same(readings: Readings) -> None:
    first, second = readings.reports

    assert first == second


def test_every_event_is_stored_under_its_trace_exactly_once(readings: Readings) -> None:
    assert stored(readings.pipeline) == readings.told.events


def test_every_trace_is_one_chain_with_its_counts(readings: Readings) -> None:
    found = chains(readings.pipeline)
    expected = {
        trace: Counter(kind for kind, _ in events.values())
        for trace, events in readings.told.events.items()
    }

    assert {trace: Counter(row["counts"]) for trace, row in found.items()} == expected
    assert {row["tenant"] for row in found.values()} == {TENANT}
    assert all(row["events"] == sum(row["counts"].values()) for row in found.values())
    assert sum(row["duplicates"] for row in found.values()) == (
        2 * readings.told.records - sum(map(len, readings.told.events.values()))
    )


def test_without_a_start_a_chain_is_a_fragment(readings: Readings) -> None:
    found = chains(readings.pipeline)
    starts = {
        trace
        for trace, events in readings.told.events.items()
        if any(kind == "session_started" for kind, _ in events.values())
    }

    assert {trace for trace, row in found.items() if row["state"] == "closed"} == starts
    assert {trace for trace, row in found.items() if row["state"] == "fragment"} == (
        readings.told.events.keys() - starts
    )


def test_a_chain_is_tied_as_loosely_as_its_loosest_event(readings: Readings) -> None:
    ranks = ("exact", "handle", "heuristic", "uncorrelated")
    expected = {
        trace: max((how for _, how in events.values()), key=ranks.index)
        for trace, events in readings.told.events.items()
    }

    assert {trace: row["correlation"] for trace, row in chains(readings.pipeline).items()} == (
        expected
    )
    assert set(expected.values()) >= {"exact", "handle", "uncorrelated"}


def test_records_of_several_formats_meet_in_one_chain(readings: Readings) -> None:
    rows = readings.pipeline.rows(
        "SELECT trace_id, groupUniqArray(reporter_subject) AS who FROM events_distinct"
        " GROUP BY trace_id HAVING length(who) > 1"
    )

    assert rows, "no trace has records of two formats"


def test_a_malformed_record_is_told_with_its_place_and_the_rest_is_stored(
    readings: Readings,
) -> None:
    problems = [p for p in readings.reports[0]["opa"]["problems"] if p["file"] == "broken.jsonl"]
    letters = [r for r in readings.pipeline.dead_letters() if r["topic"] == "broken.jsonl"]

    assert [(p["record"], p["line"]) for p in problems] == [(1, 2)]
    assert [(r["offset"], r["stage"], r["code"]) for r in letters] == [
        (1, "ingest:opa", "malformed")
    ]
    assert "line 2" in letters[0]["reason"]
    assert letters[0]["value"].startswith("{")
    assert {f"{1:032x}", f"{3:032x}"} <= stored(readings.pipeline).keys()


def test_every_malformed_record_is_one_dead_letter(readings: Readings) -> None:
    letters = [(row["topic"], row["offset"]) for row in readings.pipeline.dead_letters()]

    assert len(letters) == len(set(letters))
    assert set(letters) == readings.told.malformed


def test_the_account_counts_the_second_reading_as_duplicates(readings: Readings) -> None:
    joined = [line for line in readings.account["stages"] if line["stage"] == "join"]
    distinct = sum(map(len, readings.told.events.values()))

    assert sum(line["in"] for line in joined) == 2 * readings.told.records
    assert sum(line["out"] for line in joined) == distinct
    assert sum(line["duplicates"] for line in joined) == 2 * readings.told.records - distinct


def verdict(chain: dict[str, Any]) -> dict[str, Any]:
    """What a chain says, without where its events lie: read again, they lie elsewhere too."""
    same = ("state", "counts", "completeness", "correlation", "findings", "missing", "handles")
    return {name: chain[name] for name in same}


def test_a_reading_after_the_chains_were_judged_changes_no_verdict(
    readings: Readings, tmp_path: Path
) -> None:
    pipeline, told = readings.pipeline, readings.told
    before = {trace: verdict(row) for trace, row in chains(pipeline).items()}
    read_files(pipeline, broken_file(tmp_path))
    pipeline.settle(3 * told.records)
    latest = pipeline.rows("SELECT * FROM chains_latest")

    assert stored(pipeline) == told.events
    assert {row["trace_id"]: verdict(row) for row in latest} == before
    assert len(latest) == len(before)
    assert {(r["topic"], r["offset"]) for r in pipeline.dead_letters()} == told.malformed
