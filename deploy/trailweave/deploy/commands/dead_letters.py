"""`trailweave dead-letters`."""

from typing import Any

import click
from trailweave.deploy.commands.filters import all_of, limit
from trailweave.deploy.commands.options import Given, common

_COLUMNS = {
    "recorded_at": "recorded",
    "place": "place",
    "stage": "refused by",
    "code": "code",
    "reason": "reason",
    "bytes": "bytes",
    "trace_id": "trace",
}
_FILTERS = (
    click.option("--topic", default="", help="From this topic or file."),
    click.option("--stage", default="", help="Refused by this stage, such as join or load."),
    click.option("--code", default="", help="Refused for this reason, such as truncated."),
    limit,
)
_filtered = all_of(_FILTERS)


@click.group("dead-letters")
def dead_letters() -> None:
    """Records that couldn't be used: nothing is ever silently dropped."""


@dead_letters.command("list")
@_filtered
@common
def list_(given: Given, **filters: Any) -> None:
    """List refused records, newest first."""
    from trailweave.deploy.output import print_rows

    print_rows(_rows(given, filters), given.json, _COLUMNS, "there are no dead letters")


@dead_letters.command()
@click.argument("place")
@common
def show(given: Given, place: str) -> None:
    """Show one refused record, PLACE as topic/partition@offset: why, and its bytes."""
    from trailweave.deploy.clients import clickhouse
    from trailweave.deploy.output import print_json
    from trailweave.deploy.replay import read_letters, read_place
    from trailweave.deploy.terminal import plain

    wanted = read_place(place)
    with clickhouse(given.settings) as client:
        letters = read_letters(client, wanted)
    if given.json:
        print_json({"place": str(wanted), "letters": letters})
        return
    for letter in letters:
        where = plain(f"{wanted} refused by {letter['stage']}: {letter['code']}")
        click.echo(where)
        click.echo(f"  {plain(letter['reason'])}")
    value = letters[0]["value"]
    click.echo(f"key   {plain(letters[0]['key'].decode('utf-8', 'replace'))}")
    click.echo(f"value {len(value)} bytes")
    for start in range(0, min(len(value), 512), 16):
        part = value[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        click.echo(f"  {start:08x}  {part.hex(' '):<47}  {text}")
    if len(value) > 512:
        click.echo("  … --json has all of it")


@dead_letters.command()
@click.argument("places", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that the filters match.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@_filtered
@common
def replay(
    given: Given, places: tuple[str, ...], every: bool, dry_run: bool, **filters: Any
) -> None:
    """Send refused records again whose bytes are accepted by now.

    For after a schema was published or a worker updated. Name PLACES, or filter with --all. Each
    is tried once; exit 1 when some would be refused again.
    """
    from trailweave.deploy.clients import clickhouse
    from trailweave.deploy.output import print_json, progress
    from trailweave.deploy.replay import Place, read_place
    from trailweave.deploy.replay import replay as run

    if bool(places) == every:
        raise click.UsageError("name the PLACES to replay, or say --all")
    wanted = [read_place(place) for place in places]
    if every:
        wanted = [Place(r["topic"], r["partition"], r["offset"]) for r in _rows(given, filters)]
    with clickhouse(given.settings) as client, progress("replaying", len(wanted)) as told:
        done = run(given.settings, client, wanted, dry_run=dry_run, told=told)
    document = done.document()
    if given.json:
        print_json(document)
    else:
        word = "would be sent" if dry_run else "sent"
        codes = ", ".join(f"{code} {count}" for code, count in document["refused_codes"].items())
        click.echo(
            f"{done.looked_at} looked at: {done.sent} {word}, {done.stored} stored already,"
            f" {document['refused_again']} refused again{f' ({codes})' if codes else ''},"
            f" {done.not_from_kafka} not from Kafka"
        )
    if done.refused:
        raise SystemExit(1)


def _rows(given: Given, filters: dict[str, Any]) -> list[dict[str, Any]]:
    from trailweave.deploy.clients import clickhouse
    from trailweave.sinks.ask import ask

    with clickhouse(given.settings) as client:
        rows = ask(client, "dead_letters", **filters)
    for row in rows:
        row["place"] = f"{row['topic']}/{row['partition']}@{row['offset']}"
    return rows
