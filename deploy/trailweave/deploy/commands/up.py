"""`trailweave up`."""

from pathlib import Path

import click
from trailweave.deploy.commands.options import Given, common


@click.command()
@click.option(
    "--only",
    metavar="PARTS",
    help="Start only these, with commas between: kafka, clickhouse, join, load.",
)
@click.option(
    "--kafka-port", type=click.IntRange(0, 65535), default=0, help="0: the last one, or a free one."
)
@click.option(
    "--clickhouse-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="0: the last one, or a free one.",
)
@common
def up(given: Given, only: str | None, kafka_port: int, clickhouse_port: int) -> None:
    """Run embedded Kafka, ClickHouse and all workers in the foreground.

    Prints one line with the addresses when everything is ready. SIGINT and SIGTERM stop it: the
    workers drain, then the engines end. Started again on the same --data, it goes on.
    """
    from trailweave.deploy import output, signals
    from trailweave.deploy.masking import masked
    from trailweave.deploy.up import Plan, Up

    signals.log_to_stderr()
    plan = Plan(
        data=given.data,
        settings=given.settings,
        parts=_parts(only),
        kafka_port=kafka_port,
        clickhouse_port=clickhouse_port,
        config=given.config or _existing("trailweave.toml"),
        flags=tuple(given.flags.items()),
    )
    with signals.stop_on_signals() as stop, Up(plan) as running:
        known = {name: masked(value) for name, value in running.addresses.items()}
        if given.json:
            # One line, for whoever reads it goes on at once.
            import json

            click.echo(json.dumps(known))
        else:
            where = "  ".join(f"{name} {place}" for name, place in known.items() if place)
            click.echo(f"ready: {where}")
        running.supervisor.run(stop)
        output.stderr_console().print("stopping: workers drain first")


def _parts(only: str | None) -> frozenset[str]:
    from trailweave.deploy.up import PARTS

    if only is None:
        return frozenset(PARTS)
    named = {part.strip() for part in only.split(",") if part.strip()}
    if not named or not named <= set(PARTS):
        raise click.BadParameter(
            f"name some of {', '.join(PARTS)}, with commas between", param_hint="--only"
        )
    return frozenset(named)


def _existing(name: str) -> Path | None:
    path = Path(name)
    return path if path.exists() else None
