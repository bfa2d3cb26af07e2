"""`trailweave topics`."""

import dataclasses

import click
from trailweave.deploy.commands.options import Given, common, setting

_PARTITIONS = setting(
    "--partitions", "topics.partitions", click.IntRange(1), "Number of lanes (default: 4)."
)
_REPLICATION = setting(
    "--replication-factor", "topics.replication_factor", click.IntRange(1), "Default: 1."
)


@click.group()
def topics() -> None:
    """The topics of topics.yaml on a cluster."""


@topics.command()
@_PARTITIONS
@_REPLICATION
@common
def apply(given: Given) -> None:
    """Create what is missing and change configuration that differs.

    Never changes the partitions of a topic that exists: exit 1 when they differ.
    """
    from trailweave.deploy.output import print_json, stderr_console
    from trailweave.deploy.topics import apply_topics

    done = apply_topics(given.settings)
    if given.json:
        print_json(dataclasses.asdict(done))
    else:
        for name in done.created:
            click.echo(f"created {name}")
        for drift in done.changed:
            click.echo(f"changed {drift.name} of {drift.topic}: {drift.actual} to {drift.wanted}")
        if not done.created and not done.changed:
            click.echo("nothing to do")
    for drift in done.left:
        stderr_console().print(
            f"{drift.topic} has {drift.actual} partitions and not {drift.wanted}: left as it is;"
            " use --partitions, or make the topic anew while nothing runs"
        )
    if done.left:
        raise SystemExit(1)


@topics.command()
@_PARTITIONS
@_REPLICATION
@common
def check(given: Given) -> None:
    """Say how the cluster differs; exit 1 when it does."""
    from trailweave.deploy.output import print_rows
    from trailweave.deploy.topics import check_topics

    drifts = [dataclasses.asdict(drift) for drift in check_topics(given.settings)]
    columns = ("topic", "name", "wanted", "actual")
    print_rows(drifts, given.json, columns, "the cluster is as topics.yaml wants it")
    if drifts:
        raise SystemExit(1)
