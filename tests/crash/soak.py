"""One run: the rig, traffic, faults in rounds, the drain, the account, and what is then stored."""

from __future__ import annotations

import json
import os
import platform
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from click.testing import CliRunner
from trailweave.deploy.account import take_account
from trailweave.deploy.clients import clickhouse
from trailweave.deploy.commands.root import root
from trailweave.schemas.errors import TrailError

from tests.crash.checker import Checker, Violation
from tests.crash.faults import TARGET_OF, Fault, inflict, rounds
from tests.crash.rig import Rig, Shape, rig, until
from tests.crash.stored import Read, read_everything
from tests.crash.traffic import send
from tests.integration.join_kafka import Place


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to be."""

    seed: int
    faults: int
    shape: Shape = field(default_factory=Shape)
    rate: float = 150.0
    #: So many faults at once, at least and at most, each of another target.
    together: tuple[int, int] = (1, 3)


@dataclass(frozen=True)
class Run:
    """What a run was, and left."""

    plan: Plan
    faults: list[Fault]
    acknowledged: list[Place]
    read: Read
    #: The document of `trailweave account --json`, and its exit code.
    account: dict[str, Any]
    exit_code: int
    #: Per worker, processes that ran in all.
    lives: dict[str, int]
    #: Per worker, last words of those that ended by themselves.
    ended: dict[str, list[str]]
    #: Times that the broker had lost offsets of the group, and was restarted as the join asked for.
    restarted: int
    seconds: float

    def checker(self, read: Read | None = None) -> Checker:
        """Of what was read, or of what a test made of it."""
        shape = self.plan.shape
        grace_ms, idle_ms = round(shape.grace_s * 1000), round(shape.idle_s * 1000)
        return Checker(read or self.read, self.acknowledged, grace_ms, idle_ms)


def soak(plan: Plan, folder: Path, tell: Callable[[str], None] = lambda _: None) -> Run:
    """Raises `StuckError` if the pipeline doesn't go on after a fault, or doesn't drain."""
    began, done = time.monotonic(), threading.Event()
    with rig(folder, plan.shape) as made, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send, made.address, plan.seed, plan.rate, done)
        try:
            started = time.time()
            assert until(lambda: made.went_on(started)), made.told()
            tell(f"started after {time.monotonic() - began:.1f} s")
            faults = _faults(made, plan, tell, began)
        finally:
            done.set()
        acknowledged = sending.result()
        tell(f"draining, {len(acknowledged)} records sent")
        assert until(lambda: _quiet(made, len(acknowledged))), _stuck(made)
        account = _account(made)
        assert account.stdout, account.exception
        read = read_everything(made.address, made.rows)
        lives: Counter[str] = Counter()
        ended: dict[str, list[str]] = {}
        for slot in made.slots:
            lives[slot.name] += slot.lives
            ended[slot.name] = ended.get(slot.name, []) + slot.ended
    seconds = time.monotonic() - began
    return Run(
        plan, faults, acknowledged, read, json.loads(account.stdout), account.exit_code,
        dict(lives), ended, len(made.asked_for), seconds,
    )  # fmt: skip


def _faults(made: Rig, plan: Plan, tell: Callable[[str], None], began: float) -> list[Fault]:
    found: list[Fault] = []
    for kinds in rounds(plan.seed, plan.faults, plan.together):
        over = inflict(made, kinds, f"{plan.seed}:{len(found)}:")
        found += over
        words = ", ".join(f"{fault.kind} ({fault.recovery_s:.1f} s)" for fault in over)
        tell(f"{time.monotonic() - began:6.0f} s  {len(found):3} of {plan.faults}: {words}")
    return found


def _quiet(made: Rig, records: int) -> bool:
    """Whether every record is judged and stored, and nothing is held."""
    try:
        with clickhouse(made.settings) as client:
            lines = take_account(made.settings, client)
    except TrailError:
        return False
    joined = sum(line.records_in for line in lines if line.stage == "join")
    return joined == records and all(line.adds_up and not line.held for line in lines)


def _account(made: Rig) -> Any:
    where = ["--data", str(made.folder), "--config", str(made.config)]
    return CliRunner().invoke(root, ["account", "--json", *where])


def _stuck(made: Rig) -> str:
    where = ["--data", str(made.folder), "--config", str(made.config)]
    return f"{CliRunner().invoke(root, ['account', *where]).output}\n{made.told()}"


# --- the report ----------------------------------------------------------------------------------

_FENCED: Final = "another"


def report(run: Run, violations: list[Violation]) -> dict[str, Any]:
    """The run in figures, as JSON."""
    found = Counter(violation.kind for violation in violations)
    shape, read = run.plan.shape, run.read
    times = {kind: [f.recovery_s for f in run.faults if f.kind == kind] for kind in TARGET_OF}
    return {
        "seed": run.plan.seed,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "minutes": round(run.seconds / 60, 1),
        "lanes": shape.lanes,
        "processes_per_worker": shape.slots,
        "rate": run.plan.rate,
        "records": len(run.acknowledged),
        "chains": sum(chain.headers["kind"] == b"chain" for chain in read.chains),
        "fragments": sum(chain.headers["kind"] == b"fragment" for chain in read.chains),
        "duplicates": sum(chain.record["duplicates"] for chain in read.chains),
        "dead_letters": len(read.letters),
        "findings": len(read.findings),
        "rows": {table: len(rows) for table, rows in read.tables.items()},
        "faults": len(run.faults),
        "recovery_s": {
            kind: {
                "faults": len(seconds),
                "median": round(statistics.median(seconds), 1),
                "most": round(max(seconds), 1),
            }
            for kind, seconds in times.items() if seconds
        },
        "zombies": {
            "had_to_end": sum(bool(fault.zombie) for fault in run.faults),
            "said_why": sum(_FENCED in fault.zombie for fault in run.faults),
        },
        "processes": run.lives,
        "ended_by_themselves": {
            name: dict(Counter(words.rpartition(": ")[2] for words in said))
            for name, said in run.ended.items()
        },
        "broker_restarted_for_lost_offsets": run.restarted,
        "account_adds_up": run.account["adds_up"] and run.exit_code == 0,
        "lost": found["lost"],
        "doubled": found["doubled"],
        "torn": found["torn"],
        "violations": [violation.text for violation in violations[:100]],
    }  # fmt: skip


#: Figures that are shown as they are.
_PLAIN: Final = (
    "seed",
    "cores",
    "python",
    "minutes",
    "lanes",
    "processes_per_worker",
    "rate",
    "faults",
    "records",
    "chains",
    "fragments",
    "duplicates",
    "dead_letters",
    "findings",
    "broker_restarted_for_lost_offsets",
)


def as_markdown(told: dict[str, Any]) -> str:
    """The figures that docs/soak.md shows."""
    lines = [
        "| fault | times | recovery, median s | recovery, most s |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {kind} | {x['faults']} | {x['median']} | {x['most']} |"
        for kind, x in told["recovery_s"].items()
    ]
    lines += ["", "| | |", "| --- | --- |"]
    lines += [f"| {name.replace('_', ' ')} | {told[name]} |" for name in _PLAIN]
    lines += [f"| rows of `{table}` | {count} |" for table, count in told["rows"].items()]
    lines += [f"| processes of {name} | {count} |" for name, count in told["processes"].items()]
    lines += [f"| **{name}** | **{told[name]}** |" for name in ("lost", "doubled", "torn")]
    return "\n".join(lines) + "\n"
