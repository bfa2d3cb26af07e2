"""`trailweave simulate`, `ingest` and `spool`: the commands that send events."""

import time
from pathlib import Path

import click
from trailweave.deploy.commands.options import Given, common, setting


@click.command()
@click.option("--sessions", type=click.IntRange(1), default=300, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Same seed, same fleet.")
@click.option("--anomalies", type=click.FloatRange(0, 1), default=0.05, show_default=True)
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Records per second at most.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what each trace truly holds, as JSON lines.",
)
@common
def simulate(
    given: Given,
    sessions: int,
    seed: int,
    anomalies: float,
    rate: float | None,
    labels: Path | None,
) -> None:
    """Send a reproducible fleet of agents, with known anomalies, to Kafka."""
    from trailweave.deploy.clients import kafka_errors, require_topics
    from trailweave.deploy.fleet.fleet import Fleet
    from trailweave.deploy.fleet.labels import write_labels
    from trailweave.deploy.fleet.send import FleetProducer, send_fleet
    from trailweave.deploy.output import print_json, progress
    from trailweave.deploy.registry import writer
    from trailweave.deploy.settings import BOOTSTRAP

    config = given.settings.kafka_config()
    require_topics(given.settings, "send the fleet")
    now_us = int(time.time() * 1_000_000)
    fleet = Fleet(sessions, seed, now_us, anomalies, writer=writer(given.settings))
    with (
        kafka_errors(given.settings, "send the fleet"),
        progress("sending events", None) as told,
        FleetProducer(config[BOOTSTRAP], {**config, "log_level": "0"}) as producer,
    ):
        send_fleet(fleet, producer.send, rate, told)
    if labels is not None:
        write_labels(labels, fleet.labels)
    totals = fleet.totals
    if given.json:
        print_json(totals.as_dict())
    else:
        click.echo(
            f"sent {totals.records:,} records of {totals.sessions:,} sessions:"
            f" {totals.events_distinct:,} distinct, {totals.duplicates:,} sent again,"
            f" {totals.dead_letters:,} corrupt; {sum(totals.anomalies.values()):,} anomalies"
        )


@click.group()
def spool() -> None:
    """What producers left on disk."""


@spool.command()
@setting("--dir", "producer.spool", click.Path(file_okay=False), "Spool directory.")
@click.option("--failed", is_flag=True, help="Also try again what Kafka refused for good.")
@common
def drain(given: Given, failed: bool) -> None:
    """Send what dead processes left in the spool; exit 1 when something stays."""
    from trailweave.deploy.output import print_json
    from trailweave.deploy.spool import drain_spool

    document = drain_spool(given.settings, failed=failed)
    if given.json:
        print_json(document)
    else:
        click.echo(f"{document['delivered']} delivered, {document['left']} left in the spool")
    if document["left"]:
        raise SystemExit(1)
