"""`trailweave up`: the embedded engines, the topics, the tables and the workers, supervised.

Order of a start: engines, topics and tables, workers; a worker finds all that it needs. Order of a
stop: the other way round. `demo` starts the same with settings of its own.
"""

import logging
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trailweave.deploy.addresses import remove_addresses, write_addresses
from trailweave.deploy.local.datadir import DataDir
from trailweave.deploy.local.engines import ClickHouseEngine, KafkaEngine
from trailweave.deploy.settings import BOOTSTRAP, Settings, SettingsError, as_environment
from trailweave.deploy.supervisor import Part, Supervisor, Worker

log = logging.getLogger(__name__)

ENGINES: Final = ("kafka", "clickhouse")
WORKERS: Final = ("join", "load")
PARTS: Final = (*ENGINES, *WORKERS)

#: The embedded Kafka listens on the loopback address without TLS and without names.
_SECURED: Final = ("security.", "sasl.", "ssl.")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start, where its data lies, and with which settings."""

    data: Path
    settings: Settings
    parts: frozenset[str] = frozenset(PARTS)
    kafka_port: int = 0
    clickhouse_port: int = 0
    config: Path | None = None
    #: Settings given as flags, which the workers must get too.
    flags: tuple[tuple[str, str], ...] = ()


class Up:
    """Everything that `trailweave up` runs. A context manager: leaving it stops all."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.supervisor = Supervisor()
        self._dir: DataDir | None = None

    def __enter__(self) -> "Up":
        # Held while we live: a second `up` would overwrite the first one's address file.
        self._dir = DataDir(self.plan.data.absolute())
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # First, so that nobody new comes while the engines go down.
        remove_addresses(self.plan.data)
        self.supervisor.stop()
        if self._dir is not None:
            self._dir.release()
            self._dir = None

    @property
    def addresses(self) -> dict[str, str]:
        """Where others reach what runs here."""
        return {
            "kafka": self.settings.kafka.get(BOOTSTRAP, ""),
            "clickhouse": self.settings.clickhouse.dsn,
            "data": str(self.plan.data.absolute()),
        }

    def _start(self) -> None:
        self._start_engines()
        self._make_room()
        for name in WORKERS:
            if name in self.plan.parts:
                self.supervisor.add(name, self._worker(name))
        write_addresses(self.plan.data, self.addresses)

    def _start_engines(self) -> None:
        data, plan = self.plan.data.absolute(), self.plan
        engines: dict[str, Part] = {}
        if "kafka" in plan.parts:
            _refuse_secured(plan.settings)
            kafka = engines["kafka"] = KafkaEngine(data / "kafka", plan.kafka_port)
        if "clickhouse" in plan.parts:
            clickhouse = engines["clickhouse"] = ClickHouseEngine(
                data / "clickhouse", plan.clickhouse_port
            )
        _start_together(engines.values())
        for name, engine in engines.items():
            self.supervisor.add(name, engine, started=True)
        if "kafka" in engines:
            table = {**self.settings.kafka, BOOTSTRAP: kafka.address}
            self.settings = replace(self.settings, kafka=table)
        if "clickhouse" in engines:
            place = replace(self.settings.clickhouse, dsn=clickhouse.dsn)
            self.settings = replace(self.settings, clickhouse=place)

    def _make_room(self) -> None:
        """Topics and tables; each may be there already."""
        from trailweave.deploy.topics import apply_topics

        parts = self.plan.parts
        with ThreadPoolExecutor(2) as pool:
            making: list[Future[object]] = []
            if "kafka" in parts or "join" in parts:
                making.append(pool.submit(apply_topics, self.settings))
            if "clickhouse" in parts or "load" in parts:
                from trailweave.deploy.tables import apply_tables

                making.append(pool.submit(apply_tables, self.settings))
            for made in making:
                made.result()

    def _worker(self, name: str) -> Worker:
        env = as_environment(dict(self.plan.flags))
        env["TRAILWEAVE_KAFKA"] = self.settings.kafka_config()[BOOTSTRAP]
        if self.settings.clickhouse.dsn:
            env["TRAILWEAVE_CLICKHOUSE"] = self.settings.clickhouse.dsn
        # A variable of a section beats its short form only by being read later; leave one.
        env.pop("TRAILWEAVE_KAFKA_BOOTSTRAP_SERVERS", None)
        env.pop("TRAILWEAVE_CLICKHOUSE_DSN", None)
        if self.plan.config is not None:
            env["TRAILWEAVE_CONFIG"] = str(self.plan.config.absolute())
        return Worker(name, (), env, self.plan.data.absolute() / "workers")


def _start_together(engines: Iterable[Part]) -> None:
    """Start side by side; when one fails, stop the others and raise what it raised."""
    parts = list(engines)
    with ThreadPoolExecutor(max(1, len(parts))) as pool:
        starting = [pool.submit(part.start) for part in parts]
    errors = [error for started in starting if (error := started.exception()) is not None]
    if errors:
        for part in parts:
            part.stop()
        raise errors[0]


def _refuse_secured(settings: Settings) -> None:
    for name in settings.kafka:
        if name.startswith(_SECURED):
            raise SettingsError(
                f"couldn't start the embedded Kafka with {name} set: it speaks plain text on this"
                " machine only; leave the setting out, or use your own cluster with"
                " --only clickhouse,join,load"
            )
