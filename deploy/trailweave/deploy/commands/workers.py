"""`trailweave join`, `trailweave load` and `trailweave watch`."""

from collections.abc import Callable
from typing import Any

import click
from trailweave.deploy.commands.options import Given, common, setting

_PORT = setting(
    "--metrics-port",
    "metrics.port",
    click.IntRange(0, 65535),
    "Prometheus endpoint (default: 0, none).",
)
_HOST = setting("--metrics-host", "metrics.host", str, "Where it listens (default: 127.0.0.1).")


@click.command()
@setting("--group", "join.group", str, "Consumer group.")
@setting("--slot", "join.slot", click.IntRange(0), "Number of this process among its group's.")
@setting("--grace-s", "join.grace_s", float, "From a session's end to its close (default: 30).")
@setting("--idle-s", "join.idle_s", float, "Close without an event for so long (default: 900).")
@setting("--closers", "join.closers", click.IntRange(0), "Child processes that close sessions.")
@setting("--rules", "rules.path", click.Path(dir_okay=False), "rules.toml.")
@_PORT
@_HOST
@common
def join(given: Given) -> None:
    """Join events by trace into judged chains.

    One process; start as many as there are partitions, each with a --slot of its own. SIGTERM
    drains, SIGKILL loses nothing.
    """
    from trailweave.deploy.workers import run_join

    _run(given, run_join)


@click.command()
@setting("--group", "load.group", str, "Consumer group.")
@setting("--slot", "load.slot", click.IntRange(0), "Number of this process among its group's.")
@_PORT
@_HOST
@common
def load(given: Given) -> None:
    """Load events, chains, findings and heartbeats from Kafka into ClickHouse, exactly once.

    One process; start as many as there are partitions, each with a --slot of its own. SIGTERM
    drains, SIGKILL loses nothing.
    """
    from trailweave.deploy.workers import run_load

    _run(given, run_load)


@click.command()
@setting("--group", "watch.group", str, "Consumer group.")
@setting("--rules", "rules.path", click.Path(dir_okay=False), "rules.toml.")
@common
def watch(given: Given) -> None:
    """Look for what only many sessions together show: shared credentials, approval fatigue, ...

    One process; start as many as there are partitions. What a killed one had not said, the next one
    says; what it says again has the same finding id. Needs the extra `watch`.
    """
    from trailweave.deploy import signals
    from trailweave.deploy.clients import require_topics
    from trailweave.deploy.workers import run_watch

    signals.log_to_stderr()
    require_topics(given.settings, "watch")
    run_watch(given.settings)


def _run(given: Given, work: Callable[..., Any]) -> None:
    from trailweave.deploy import output, signals

    signals.log_to_stderr()
    with signals.stop_on_signals() as stop:
        work(given.settings, stop)
    if given.json:
        output.print_json({"drained": True})
