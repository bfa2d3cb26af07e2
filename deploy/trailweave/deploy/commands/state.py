"""`trailweave account` and `trailweave status`."""

import click
from trailweave.deploy.commands.options import Given, common


@click.command()
@common
def account(given: Given) -> None:
    """Show the sum of each stage: in = out + duplicates + dead-lettered + held.

    Exit 1 when a sum doesn't add up, or can't be said yet.
    """
    from trailweave.deploy.account import summed, take_account
    from trailweave.deploy.clients import clickhouse
    from trailweave.deploy.output import (
        print_json,
        progress,
        stderr_console,
        stdout_console,
        table,
    )

    with clickhouse(given.settings) as client, progress("counting records", None) as told:
        lines = take_account(given.settings, client, told)
    documents = [line.document() for line in lines]
    adds_up = all(line.adds_up for line in lines)
    if given.json:
        print_json({"adds_up": adds_up, "stages": documents})
    else:
        columns = ("stage", "of", "in", "out", "duplicates", "dead_lettered", "held", "difference")
        shown = [line.document() for line in summed(lines)]
        rows = [[line[name] for name in columns] for line in shown]
        stdout_console().print(table(None, columns, rows))
        for line in lines:
            if not line.adds_up:
                why = "; ".join(line.wrong) or f"{line.difference} records are unaccounted for"
                stderr_console().print(f"{line.stage} {line.of}: {why}", style="bold red")
        if adds_up:
            stderr_console().print("everything adds up", style="green")
    if not adds_up:
        raise SystemExit(1)


@click.command()
@common
def status(given: Given) -> None:
    """Show how far workers are behind, how fresh answers are, and which sessions are open."""
    import dataclasses
    from datetime import UTC, datetime

    from trailweave.deploy.clients import clickhouse
    from trailweave.deploy.output import print_json
    from trailweave.deploy.status import take_status

    with clickhouse(given.settings) as client:
        found = take_status(given.settings, client, datetime.now(UTC))
    if given.json:
        print_json(dataclasses.asdict(found))
        return
    from trailweave.deploy.output import stdout_console, table

    console = stdout_console()
    lags = [(r["worker"], r["topic"], r["end"], r["lag"]) for r in found.lags]
    console.print(table("Lag", ("worker", "topic", "end", "lag"), lags))
    rows = [(r["table"], r["records"], r["newest"], r["age_s"]) for r in found.tables]
    console.print(table("Stored", ("table", "records", "newest", "age in s"), rows))
    style = "bold red" if found.dead_letters else "green"
    console.print(f"open sessions {found.open_sessions:,} with {found.open_events:,} events")
    console.print(f"dead letters {found.dead_letters:,}", style=style)
    if found.silent_producers:
        columns = ("tenant", "producer_id", "last_recorded_at", "age_s", "buffered", "spooled")
        silent = [[row[name] for name in columns] for row in found.silent_producers]
        console.print(table("Silent producers", columns, silent))
