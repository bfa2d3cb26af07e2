"""`trailweave ingest`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from trailweave.deploy.commands.options import Given, common, setting

if TYPE_CHECKING:
    from trailweave.producers.adapters.record import Context
    from trailweave.producers.ingest import Report


@click.command()
@click.argument("name", metavar="FORMAT", type=click.Choice(("otlp", "opa", "vault", "mcp")))
@click.argument(
    "files",
    metavar="FILE…",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
)
@setting("--tenant", "producer.tenant", str, "Whose records they are (default: default).")
@click.option("--reporter", help="Who wrote them: a SPIFFE id or a name (default: the format).")
@click.option(
    "--capture",
    type=click.Choice(("metadata", "hashed", "redacted", "full")),
    default="metadata",
    show_default=True,
    help="How much of contents is kept.",
)
@click.option(
    "--audit-hashes",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON object of a vault's sys/audit-hash answers: hash -> plain value.",
)
@click.option("--dry-run", is_flag=True, help="Print the events as JSON lines; send nothing.")
@common
def ingest(
    given: Given,
    name: str,
    files: tuple[Path, ...],
    reporter: str | None,
    capture: str,
    audit_hashes: Path | None,
    dry_run: bool,
) -> None:
    """Translate outside records into events: OTLP/JSON, OPA decision logs, Vault audit lines, MCP.

    Reading a file twice doubles nothing. Malformed records are reported with their position and go
    to the dead letters; exit 1 when there are any.
    """
    from trailweave.producers import ingest as work

    context = _context(given, name, reporter, capture, audit_hashes)
    if dry_run:
        _print_events(work.dry_run(files, name, context), given.json)
        return
    from trailweave.deploy.output import print_json, progress
    from trailweave.deploy.registry import writer
    from trailweave.deploy.sender import Sender

    encoder = writer(given.settings)
    with progress("reading records", None) as told, Sender(given.settings, "ingest") as sender:
        sender.publish_schemas()
        report = work.ingest(
            files,
            name,
            context,
            sender.send,
            lambda so_far: told(so_far.records),
            encoder=encoder,
        )
    if given.json:
        print_json(report.as_json())
    else:
        _print_report(report)
    if report.problems:
        raise SystemExit(1)


def _context(
    given: Given, name: str, reporter: str | None, capture: str, audit_hashes: Path | None
) -> "Context":
    from trailweave.producers.adapters.record import Context
    from trailweave.producers.identity import identity_of
    from trailweave.schemas.errors import Fatal
    from trailweave.schemas.hashing import TenantKey

    producer = given.settings.producer
    if bool(producer.key_id) != bool(producer.key_secret):
        raise Fatal(
            "couldn't use half a key: set both TRAILWEAVE_PRODUCER_KEY_ID and"
            " TRAILWEAVE_PRODUCER_KEY_SECRET, or neither"
        )
    key = TenantKey(producer.key_id, producer.key_secret.encode()) if producer.key_id else None
    known: dict[str, str] = {}
    if audit_hashes is not None:
        try:
            known = dict(json.loads(audit_hashes.read_text("utf-8")))
        except ValueError as error:
            raise Fatal(f"couldn't read {audit_hashes}: {error}; it must be one object") from None
    return Context(
        tenant=producer.tenant,
        adapter=name,
        reporter=identity_of(reporter or name, "service_account"),
        key=key,
        environment=producer.environment,
        capture=capture,  # type: ignore[arg-type]
        audit_hashes=known,
    )


def _print_events(events: Any, as_json: bool) -> None:
    from trailweave.deploy.output import json_value, print_json

    if as_json:
        print_json(list(events))
        return
    for event in events:
        sys.stdout.write(json.dumps(event, default=json_value) + "\n")


def _print_report(report: "Report") -> None:
    from trailweave.deploy.output import stdout_console, table
    from trailweave.deploy.terminal import plain

    console = stdout_console()
    rows = [(f"event {kind}", count) for kind, count in sorted(report.events.items())]
    rows += [(f"passed over: {plain(why)}", count) for why, count in sorted(report.skipped.items())]
    rows += [(f"tied {how}", count) for how, count in sorted(report.correlation.items())]
    rows.append(("dead-lettered: malformed", report.malformed))
    rows.append(("dead-lettered: couldn't be sent", report.unsendable))
    console.print(table(f"{report.records:,} records of {report.files} files",
                        ("what", "how many"), rows))  # fmt: skip
    for problem in report.problems:
        console.print(plain(problem), style="red")
