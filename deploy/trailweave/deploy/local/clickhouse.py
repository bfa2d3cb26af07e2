"""ClickHouse as a child process: its engine (chDB) behind an HTTP front, on the loopback address.

What is where in the data directory: `store/` the engine's files, `log/` its logs, `ports.json` the
port of the last start.

What a kill can lose: nothing that was acknowledged. An insert is answered once its part is named
in the table's directory; the bytes are in the operating system's page cache, which outlives the
process. When the *machine* loses power, the last seconds may go; `fsync_after_insert` in a table's
settings closes that too.

Whoever has an account on this machine can reach a loopback port, and ClickHouse's table functions
read and write files as the user who started it. On a machine with other people, set a password.
"""

from __future__ import annotations

import http.client
import logging
import sys
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from trailweave.deploy.local.child import Child
from trailweave.deploy.local.clickhouse_access import PASSWORD_VARIABLE, Access
from trailweave.deploy.local.datadir import DataDir, choose_port
from trailweave.deploy.local.errors import EngineError

log = logging.getLogger(__name__)

SERVER = "trailweave.deploy.local.clickhouse_server"
#: One second here; more with thousands of parts to load, or on a machine under load.
READY_TIMEOUT_S = 60.0
PING_TIMEOUT_S = 1.0
GRACE_S = 30.0


class ClickHouseEngine:
    """One engine on one data directory. Use as a context manager, or `start` and `stop`.

    `port` 0 means the port of the last start on this directory, or a free one. Raises
    `UnsafeBindingError` for a host that other machines reach while no password is set, and
    `EngineError` from `start`.
    """

    def __init__(
        self,
        data_dir: Path | str,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        user: str = "default",
        password: str = "",
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.port = port
        self.access = Access(host, user, password)
        self._dir: DataDir | None = None
        self._child: Child | None = None

    @property
    def dsn(self) -> str:
        """`http://127.0.0.1:PORT/default`, with user and password if one is set."""
        access = self.access
        who = ""
        if access.password or access.user != "default":
            who = f"{quote(access.user, safe='')}:{quote(access.password, safe='')}@"
        host = f"[{access.host}]" if ":" in access.host else access.host
        return f"http://{who}{host}:{self.port}/default"

    @property
    def pid(self) -> int:
        """The engine's process id."""
        if self._child is None:
            raise EngineError("couldn't tell ClickHouse's process id: it isn't running")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    def start(self) -> str:
        """Start the engine, wait until it answers, return its DSN."""
        if self._child is not None:
            return self.dsn
        self._dir = DataDir(self.data_dir)
        try:
            self._start(self._dir)
        except BaseException:
            self.kill()
            raise
        return self.dsn

    def stop(self) -> None:
        """End the engine cleanly. May be called again, and without `start`."""
        if self._child is not None:
            self._child.stop()
        self._release()

    def kill(self) -> None:
        """End the engine with SIGKILL: for tests of what survives that."""
        if self._child is not None:
            self._child.kill()
        self._release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self, folder: DataDir) -> None:
        host = self.access.host
        port = choose_port(self.port, folder.ports().get("clickhouse"), "ClickHouse", host)
        (folder.path / "log").mkdir(exist_ok=True)
        # -P: whatever lies in the working directory must not be imported.
        command = [sys.executable, "-P", "-m", SERVER]
        command += ["--data", str(folder.path / "store")]
        command += ["--log", str(folder.path / "log" / "clickhouse.log")]
        command += ["--host", host, "--port", str(port), "--user", self.access.user]
        self._child = Child(
            "ClickHouse",
            command,
            folder.lock_fd,
            folder.path / "log" / "clickhouse-console.log",
            grace_s=GRACE_S,
            env={PASSWORD_VARIABLE: self.access.password},
        )
        self._child.wait_ready(lambda: _answers(host, port), READY_TIMEOUT_S)
        folder.keep_ports({"clickhouse": port})
        self.port = port
        log.info(
            "ClickHouse answers on %s:%d, process %d, data in %s", host, port, self.pid, folder.path
        )

    def _release(self) -> None:
        self._child = None
        if self._dir is not None:
            self._dir.release()
            self._dir = None


def _answers(host: str, port: int) -> bool:
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  (compared, not bound)
    connection = http.client.HTTPConnection(reached, port, timeout=PING_TIMEOUT_S)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()
