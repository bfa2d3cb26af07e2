"""Asks ClickHouse the questions in `queries/`: one file each, parameters bound by the server.

A value never becomes part of a statement's text. The command line and the viewer call this.
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Final

from clickhouse_connect.driver.client import Client

#: Trace ids in one question. The client puts parameters into the URL up to 4 KiB and sends a form
#: above that, which not every proxy lets through, nor the embedded ClickHouse.
TRACES_MAX: Final = 80
#: Above this, an answer is a report and not a listing.
ROWS_MAX: Final = 1_000_000


@cache
def question(name: str) -> str:
    """The text of `queries/<name>.sql`."""
    file = resources.files(__package__).joinpath("queries", f"{name}.sql")
    return file.read_text("utf-8")


def ask(client: Client, name: str, **parameters: object) -> list[dict[str, Any]]:
    """The rows that answer one question, as dicts by column name.

    Raises what the client raises.
    """
    settings: Mapping[str, Any] = {"max_result_rows": ROWS_MAX, "result_overflow_mode": "throw"}
    answer = client.query(question(name), parameters=dict(parameters), settings=dict(settings))
    return [dict(row) for row in answer.named_results()]


def ask_one(client: Client, name: str, **parameters: object) -> dict[str, Any]:
    """The one row of a question that always has one."""
    return ask(client, name, **parameters)[0]
