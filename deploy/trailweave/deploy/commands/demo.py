"""`trailweave demo`."""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
from trailweave.deploy.commands.options import Given, common
from trailweave.deploy.settings import ENV_PREFIX

if TYPE_CHECKING:
    from trailweave.deploy.demo import Outcome


@click.command()
@click.option("--sessions", type=click.IntRange(1), default=300, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Same seed, same fleet.")
@click.option(
    "--anomalies",
    type=click.FloatRange(0, 1),
    default=0.15,
    show_default=True,
    help="Share of sessions with a planted anomaly.",
)
@common
def demo(given: Given, sessions: int, seed: int, anomalies: float) -> None:
    """Run everything embedded on a simulated fleet, and show what was caught.

    Uses a temporary folder, or a new --data DIR to keep it. Sessions close after short times.
    Exit 1 unless exactly the planted anomalies were found and nothing is missing or double.
    """
    from trailweave.deploy import demo as made
    from trailweave.deploy.output import print_json, stderr_console
    from trailweave.schemas.errors import Fatal

    _forget_settings()
    with ExitStack() as stack:
        if given.data_given is None:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="trailweave-demo-"))
            folder = Path(name)
        else:
            folder = given.data_given
            if folder.exists() and any(folder.iterdir()):
                raise Fatal(f"couldn't use {folder} for a demo: it is not empty; name a new one")
            folder.mkdir(parents=True, exist_ok=True)
        stderr_console().print(
            f"Sessions close {made.GRACE_S:g} s after their end, or after {made.IDLE_S:g} s without"
            " an event; 30 s and 15 min are usual."
        )
        outcome = _run(folder, sessions, seed, anomalies)
    if given.json:
        print_json(outcome.document())
    else:
        _print(outcome)
    if not outcome.exact:
        raise SystemExit(1)


def _forget_settings() -> None:
    """The workers inherit our variables: those of a real cluster must not reach a demo."""
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        if name != "TRAILWEAVE_JARS":
            del os.environ[name]


def _run(folder: Path, sessions: int, seed: int, anomalies: float) -> "Outcome":
    from rich.progress import Progress
    from trailweave.deploy.demo import run_demo
    from trailweave.deploy.output import stderr_console

    with Progress(console=stderr_console(), transient=True) as bar:
        task = bar.add_task("starting Kafka, ClickHouse and the workers", total=None)

        def told(step: str, done: int, of: int) -> None:
            bar.update(task, description=step, completed=done, total=of or None)

        return run_demo(folder, sessions, seed, anomalies, told)


def _print(outcome: "Outcome") -> None:
    from trailweave.deploy.demo import summary_rows
    from trailweave.deploy.output import stdout_console, table
    from trailweave.deploy.render import print_trail

    console = stdout_console()
    if outcome.example is not None:
        console.rule("One session")
        print_trail(console, outcome.example)
    if outcome.dead_letters:
        columns = ("topic", "partition", "offset", "stage", "code", "reason")
        rows = [[row[name] for name in columns] for row in outcome.dead_letters]
        console.rule("Dead letters")
        console.print(table(None, columns, rows))
    console.rule("All sessions")
    console.print(table(None, ("what", "how many"), summary_rows(outcome)))
    counts = ("finding", "planted", "caught", "missed", "invented")
    console.print(table(None, counts, outcome.score.rows()))
    steps = outcome.document()["steps"]
    took = ", ".join(f"{name} {seconds:g} s" for name, seconds in steps.items())
    console.print(f"{outcome.document()['seconds']:g} s: {took}")
    if outcome.exact:
        console.print("exactly the planted anomalies were caught; nothing is missing or double",
                      style="green")  # fmt: skip
    else:
        console.print("not exact: see the numbers above", style="bold red")
    if not outcome.in_time:
        console.print("the deadline came before everything was stored and judged", style="red")
