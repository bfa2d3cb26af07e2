"""What tests of the whole path share: own engines, the workers as processes, and what came out.

Engines and workers of the product, as `trailweave up` starts them, but without its supervisor: a
test ends and starts each part when it wants to. What came out is asked of ClickHouse and of
`trailweave account`, as a person would.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from click.testing import CliRunner, Result
from trailweave.deploy.account import take_account
from trailweave.deploy.addresses import write_addresses
from trailweave.deploy.clients import clickhouse
from trailweave.deploy.commands.root import root
from trailweave.deploy.fleet.send import PRODUCER_SETTINGS
from trailweave.deploy.local.child import Child
from trailweave.deploy.local.engines import ClickHouseEngine, KafkaEngine
from trailweave.deploy.settings import BOOTSTRAP, Settings, read_settings
from trailweave.deploy.supervisor import Supervisor, Worker
from trailweave.deploy.tables import apply_tables
from trailweave.deploy.topics import apply_topics
from trailweave.schemas.errors import TrailError
from trailweave.sinks.ask import ask, ask_one

from tests.integration.test_cli import wait_until

VECTORS: Final = Path(__file__).parents[3] / "shared" / "vectors"
#: For whatever needs every part: on a busy machine each may take its time.
DEADLINE_S: Final = 120.0
WORKERS: Final = ("join", "load")


@dataclass
class Pipeline:
    """Both engines on one folder, with topics and tables; workers come and go."""

    folder: Path
    kafka: KafkaEngine
    clickhouse: ClickHouseEngine
    workers: dict[str, Worker] = field(default_factory=dict)
    #: What the workers that have ended wrote.
    said: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / "trailweave.toml"

    @property
    def settings(self) -> Settings:
        addresses = {
            f"kafka.{BOOTSTRAP}": self.kafka.address,
            "clickhouse.dsn": self.clickhouse.dsn,
        }
        return read_settings(self.config, {}, addresses)

    @property
    def producing(self) -> dict[str, Any]:
        """What a producer of event topics is made with."""
        return {BOOTSTRAP: self.kafka.address, "log_level": 0, **PRODUCER_SETTINGS}

    # --- workers ---

    @contextlib.contextmanager
    def working(self, grace_s: float = 30.0, idle_s: float = 900.0) -> Iterator[None]:
        """Both workers, with these times; they end in order, and must still run then."""
        self.config.write_text(
            f"[join]\ngrace_s = {grace_s}\nidle_s = {idle_s}\napproval_hold_max_s = {idle_s}\n"
            # So often a killed worker's death is nobody's business but its successor's.
            "session_timeout_s = 30.0\n"
            "[schemas]\nunknown_wait_s = 1.0\n"
            "[load]\ninsert_timeout_s = 10.0\n",
            "utf-8",
        )
        for old in (self.folder / "workers").glob("*.log"):
            old.unlink()  # what workers said in another run is no answer in this one
        try:
            for name in WORKERS:
                self.start(name)
            yield
            ended = {name: self.console(name) for name in WORKERS if not self.workers[name].running}
            assert not ended, ended
        finally:
            with ThreadPoolExecutor() as pool:
                list(pool.map(self.stop, WORKERS))

    @contextlib.contextmanager
    def supervised(self) -> Iterator[Supervisor]:
        """Workers that end are started again, as under `trailweave up`."""
        supervisor, stop = Supervisor(), threading.Event()
        for name in WORKERS:
            supervisor.add(name, self.workers[name], started=True)
        watching = threading.Thread(target=supervisor.run, args=(stop,))
        watching.start()
        try:
            yield supervisor
        finally:
            stop.set()
            watching.join()

    def start(self, name: str) -> None:
        env = {
            "TRAILWEAVE_KAFKA": self.kafka.address,
            "TRAILWEAVE_CLICKHOUSE": self.clickhouse.dsn,
            "TRAILWEAVE_CONFIG": str(self.config),
        }
        worker = self.workers[name] = Worker(name, (), env, self.folder / "workers")
        worker.start()

    def stop(self, name: str) -> None:
        if name in self.workers:
            self.workers[name].stop()
            self._keep(name)

    def kill(self, name: str) -> None:
        """SIGKILL, and what it had written by then."""
        child = self.workers[name]._child
        assert isinstance(child, Child)
        assert child.running, self.console(name)
        child.kill()
        self.workers[name].stop()
        self._keep(name)

    def _keep(self, name: str) -> None:
        self.said[name] = self.said.get(name, "") + self.workers.pop(name).console.read_text()

    def console(self, name: str) -> str:
        """What the worker has written, with its last words before it was started again, if any."""
        if name not in self.workers:
            return self.said[name]
        now = self.workers[name].console
        before = now.with_suffix(".previous.log")
        return "".join(path.read_text() for path in (before, now) if path.exists())

    # --- what came out ---

    def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        with clickhouse(self.settings) as client:
            return list(client.query(sql, parameters=parameters).named_results())

    def asked(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        """The answer to one of the product's own questions."""
        with clickhouse(self.settings) as client:
            return ask(client, name, **parameters)

    def dead_letters(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM dead_letters_distinct")

    def quiet(self, records: int, *, distinct: bool = False) -> bool:
        """Whether all records of the event topics are judged and stored, and nothing is held.

        `distinct`: those that were sent twice are not counted among these, as after an outage,
        where a producer can't know what had arrived.
        """
        try:
            with clickhouse(self.settings) as client:
                lines = take_account(self.settings, client)
                sums = ask_one(client, "demo_sums")
        except TrailError:
            return False  # an engine is on its way back
        joined = [line for line in lines if line.stage == "join"]
        return (
            all(line.adds_up and not line.held for line in lines)
            and sum(line.records_in - distinct * line.duplicates for line in joined) == records
            and sums["finding_rows"] == sums["findings_judged"]
        )

    def settle(self, records: int, *, distinct: bool = False) -> dict[str, Any]:
        """Wait for quiet; the document of `trailweave account`, which must agree."""
        with self.explained():
            wait_until(lambda: self.quiet(records, distinct=distinct), DEADLINE_S)
        done = self.run("account", "--json")
        assert done.stdout, done.exception
        document: dict[str, Any] = json.loads(done.stdout)
        assert (done.exit_code, document["adds_up"]) == (0, True), document
        return document

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """A condition that never comes true is told with where everything stands."""
        try:
            yield
        except AssertionError as error:
            told = self.run("account").output
            words = {name: self.console(name)[-2000:] for name in WORKERS}
            raise AssertionError(f"{error}\n{told}\n{words}") from error

    def run(self, *arguments: str) -> Result:
        """One command in this process: what it prints, and its exit code."""
        return CliRunner().invoke(
            root, [*arguments, "--data", str(self.folder), "--config", str(self.config)]
        )


@contextlib.contextmanager
def engines(folder: Path) -> Iterator[Pipeline]:
    """Engines with topics and tables, no workers yet."""
    folder.mkdir(parents=True, exist_ok=True)
    kafka, store = KafkaEngine(folder / "kafka"), ClickHouseEngine(folder / "clickhouse")
    with contextlib.ExitStack() as stack:
        stack.callback(store.stop)
        stack.callback(kafka.stop)
        pipeline = Pipeline(folder, kafka, store)
        pipeline.config.write_text("", "utf-8")
        _together(kafka.start, store.start)
        _together(lambda: apply_topics(pipeline.settings), lambda: apply_tables(pipeline.settings))
        write_addresses(folder, {"kafka": kafka.address, "clickhouse": store.dsn})
        yield pipeline


def _together(*calls: Callable[[], object]) -> None:
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()
