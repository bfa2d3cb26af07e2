"""The process behind `ClickHouseEngine`: the engine, the HTTP front, and their end on SIGTERM.

Started by `clickhouse.py` as `python -m trailweave.deploy.local.clickhouse_server`, never by hand.
"""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
from pathlib import Path

import uvicorn
from trailweave.deploy.local.clickhouse_access import PASSWORD_VARIABLE, Access
from trailweave.deploy.local.clickhouse_http import Front
from trailweave.deploy.local.clickhouse_run import Engine

LOG_BYTES_MAX = 10_000_000
LOG_FILES = 2
#: What still runs may end; below the guard's own patience.
DRAIN_S = 5
#: Clients keep connections; one that we close in the moment of its next use is an error to them.
KEEP_ALIVE_S = 300
CONNECTIONS_WAITING_MAX = 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--user", required=True)
    asked = parser.parse_args()
    _log_to(asked.log)
    access = Access(asked.host, asked.user, os.environ.pop(PASSWORD_VARIABLE, ""))
    engine = Engine(asked.data)
    front = Front(engine, access)
    try:
        uvicorn.Server(
            uvicorn.Config(
                front.app(),
                host=asked.host,
                port=asked.port,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                backlog=CONNECTIONS_WAITING_MAX,
                timeout_graceful_shutdown=DRAIN_S,
                timeout_keep_alive=KEEP_ALIVE_S,
                server_header=False,
            )
        ).run()
    finally:
        front.close()
        engine.close()


def _log_to(path: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES
    )
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s (%(name)s)",
        handlers=[handler],
    )


if __name__ == "__main__":
    main()
