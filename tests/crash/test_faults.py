"""Both engines and both workers under faults of every kind: nothing lost, doubled or torn.

The short form has every kind about once. The long one, marked `soak`, takes its number of faults
and its seed from TRAILWEAVE_SOAK_FAULTS and TRAILWEAVE_SOAK_SEED, and writes its report into the
folder TRAILWEAVE_SOAK_REPORT, if one is named.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.crash.checker import Violation, place_of, places, session_of
from tests.crash.faults import TARGET_OF
from tests.crash.rig import Shape
from tests.crash.soak import Plan, Run, as_markdown, report, soak
from tests.crash.stored import Read

SEED: Final = 20_261_121
#: Every kind once, one of every target at a time.
SHORT: Final = Plan(SEED, faults=len(TARGET_OF), together=(4, 4))
LONG_FAULTS: Final = 300


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return soak(SHORT, tmp_path_factory.mktemp("faults"))


def test_nothing_is_lost_doubled_or_torn(run: Run) -> None:
    assert run.checker().violations() == []


def test_every_kind_of_fault_was_met_while_events_came(run: Run) -> None:
    assert {fault.kind for fault in run.faults} == set(TARGET_OF)
    assert len(run.read.chains) > 50
    assert run.read.letters
    assert run.read.findings
    assert any(chain.headers["kind"] == b"fragment" for chain in run.read.chains)


def test_a_zombie_whose_place_was_taken_says_so_and_ends(run: Run) -> None:
    zombies = {fault.kind: fault.zombie for fault in run.faults if "replaced" in fault.kind}

    assert len(zombies) == 2
    assert all("another" in said for said in zombies.values()), zombies


def test_the_account_adds_up(run: Run) -> None:
    assert (run.exit_code, run.account["adds_up"]) == (0, True)
    assert not any(line["held"] or line["wrong"] for line in run.account["stages"])


# --- the checker: it sees what is wrong ----------------------------------------------------------


def told(run: Run, read: Read) -> str:
    """What is wrong with a run of which this was read."""
    return "\n".join(f"{v.kind}: {v.text}" for v in run.checker(read).violations())


def test_the_checker_sees_missing_and_doubled_rows(run: Run) -> None:
    spoiled = {table: [*rows[1:], rows[-1]] for table, rows in run.read.tables.items()}
    found = told(run, replace(run.read, tables=spoiled))

    for table in spoiled:
        assert f"lost: {table} lacks the row" in found
        assert f"doubled: {table} has the row" in found


def test_the_checker_sees_missing_and_doubled_records(run: Run) -> None:
    read, closed = run.read, run.checker().closed
    missing, twice = closed[0], closed[-1]
    letter, last_letter = read.letters[0], read.letters[-1]
    unsaid = next(x for x in read.findings if session_of(x) != session_of(missing))
    gone = next(iter(read.inputs))
    spoiled = replace(
        read,
        chains=[*(chain for chain in read.chains if chain is not missing), twice],
        letters=[*read.letters[1:], last_letter],
        findings=[finding for finding in read.findings if finding is not unsaid],
        inputs={place: raw for place, raw in read.inputs.items() if place != gone},
    )
    found = told(run, spoiled)

    for place in (*places(missing), place_of(letter.record)):
        assert f"lost: {place} stands in no record" in found
    for place in (*places(twice), place_of(last_letter.record)):
        assert f"doubled: {place} stands in 2 records" in found
    assert f"lost: finding {(*session_of(unsaid), unsaid.record['finding_id'])}" in found
    assert f"lost: {gone} was acknowledged, and is not in Kafka" in found


def test_the_checker_sees_chains_that_say_other_than_the_events_do(run: Run) -> None:
    spoilt = [chain for chain in run.checker().closed if len(chain.record["evidence"]) > 3][:3]
    left = spoilt[0].record["evidence"][2:]
    # What a recovery would make that had forgotten how a session began.
    changes = [{"evidence": left, "events": len(left)}, {"root": bytes(32)}, {"counts": {}}]
    changed = {
        chain.place: replace(chain, record={**chain.record, **change})
        for chain, change in zip(spoilt, changes, strict=True)
    }
    chains = [changed.get(chain.place, chain) for chain in run.read.chains]
    found = told(run, replace(run.read, chains=chains))

    for chain, field in zip(spoilt, ("root", "root", "counts"), strict=True):
        name = f"{chain.place} of {session_of(chain)}"
        assert f"torn: the record {name} has another {field}" in found


def test_the_checker_sees_a_session_that_was_closed_before_its_time(run: Run) -> None:
    patient = replace(run.checker(), grace_ms=60_000, idle_ms=60_000)

    assert {violation.kind for violation in patient.violations()} == {"torn"}


# --- the long form -------------------------------------------------------------------------------


@pytest.mark.soak
def test_hundreds_of_faults(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan = Plan(
        int(os.environ.get("TRAILWEAVE_SOAK_SEED", SEED)),
        int(os.environ.get("TRAILWEAVE_SOAK_FAULTS", LONG_FAULTS)),
        Shape(lanes=3, closers=1),
    )

    def tell(line: str) -> None:
        with capfd.disabled():
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    done = soak(plan, tmp_path / "run", tell)
    violations: list[Violation] = done.checker().violations()
    told = report(done, violations)
    into = Path(os.environ.get("TRAILWEAVE_SOAK_REPORT", tmp_path))
    into.mkdir(parents=True, exist_ok=True)
    (into / "soak.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    (into / "soak.md").write_text(as_markdown(told), "utf-8")
    tell(f"lost {told['lost']}, doubled {told['doubled']}, torn {told['torn']}; report in {into}")

    assert violations == []
    assert told["account_adds_up"]
    assert len(done.faults) == plan.faults
