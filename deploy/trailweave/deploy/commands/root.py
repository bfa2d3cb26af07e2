"""The root of the command line: which subcommand lives in which module."""

import importlib
from typing import Final

import click

_HERE: Final = "trailweave.deploy.commands"

#: Command -> module, name in it, and the line of the overview, so that `--help` imports nothing.
COMMANDS: Final = {
    "demo": ("demo", "demo", "Everything embedded, a simulated fleet, and what was caught."),
    "up": ("up", "up", "Embedded Kafka, ClickHouse and all workers, in the foreground."),
    "topics": ("topics", "topics", "Create the topics, or say how the cluster differs."),
    "tables": ("tables", "tables", "Create ClickHouse's tables, or say how they differ."),
    "join": ("workers", "join", "The join worker: events into judged chains."),
    "load": ("workers", "load", "The load worker: Kafka into ClickHouse."),
    "watch": ("workers", "watch", "What only many sessions together show."),
    "reassess": ("reassess", "reassess", "Judge stored sessions anew."),
    "simulate": ("produce", "simulate", "A reproducible fleet of agents, with known anomalies."),
    "score": ("score", "score", "The verdicts against what the fleet's labels say."),
    "ingest": ("ingest", "ingest", "Outside records (OTLP, OPA, Vault, MCP) into events."),
    "spool": ("produce", "spool", "What producers left on disk."),
    "sessions": ("sessions", "sessions", "List, show and search chains."),
    "findings": ("findings", "findings", "List findings; explain what one means."),
    "workflows": ("workflows", "workflows", "Sessions that serve one task, seen as one."),
    "report": ("report", "report", "What an identity did; what shows that a control holds."),
    "dead-letters": ("dead_letters", "dead_letters", "List, show and replay refused bytes."),
    "account": ("state", "account", "The sum of each stage: in = out + dead-lettered + held."),
    "status": ("state", "status", "Lag, freshness, open sessions."),
    "schemas": ("schemas", "schemas", "The Avro schemas, for producers in other languages."),
    "settings": ("settings", "settings", "The settings in force, secrets masked."),
}


class LazyGroup(click.Group):
    """Imports a subcommand's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, name, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"{_HERE}.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="trailweave", prog_name="trailweave")
def root() -> None:
    """The flight recorder for AI agents.

    Settings come from trailweave.toml, then TRAILWEAVE_… variables, then flags. The two that
    matter: TRAILWEAVE_KAFKA (bootstrap servers) and TRAILWEAVE_CLICKHOUSE (a DSN).
    """
