"""The verdicts in ClickHouse, as `score` compares them with what a fleet's labels say."""

from typing import TYPE_CHECKING

from trailweave.deploy.fleet.score import Verdict
from trailweave.sinks.ask import ask

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client


def read_verdicts(client: "Client") -> list[Verdict]:
    """The latest verdict on every session that has one; a fragment alone is none."""
    found: dict[str, set[tuple[str, str]]] = {}
    for row in ask(client, "demo_findings"):
        found.setdefault(row["trace_id"], set()).add((row["rule"], row["subject"]))
    return [
        Verdict(row["trace_id"], frozenset(found.get(row["trace_id"], ())), row["completeness"])
        for row in ask(client, "demo_chains")
        if row["state"] == "closed"
    ]
