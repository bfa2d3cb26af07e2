"""The embedded engines together: what the command line and the tests start.

`KafkaEngine` and `ClickHouseEngine` each run alone as well; both are importable from here.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from trailweave.deploy.local.clickhouse import ClickHouseEngine
from trailweave.deploy.local.errors import (
    DataDirInUseError,
    EngineError,
    JarMismatchError,
    UnsafeBindingError,
)
from trailweave.deploy.local.kafka import KafkaEngine

__all__ = [
    "ClickHouseEngine",
    "DataDirInUseError",
    "EngineError",
    "JarMismatchError",
    "KafkaEngine",
    "LocalEngines",
    "UnsafeBindingError",
]


class LocalEngines:
    """Kafka in `data_dir/kafka` and ClickHouse in `data_dir/clickhouse`, started side by side.

    Neither engine gets a terminal's Ctrl-C by itself: they stop when this object says so, or when
    this process is gone, however it went.
    """

    def __init__(
        self, data_dir: Path | str, *, kafka_port: int = 0, clickhouse_port: int = 0
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.kafka = KafkaEngine(self.data_dir / "kafka", kafka_port)
        self.clickhouse = ClickHouseEngine(self.data_dir / "clickhouse", clickhouse_port)

    def start(self) -> Self:
        """Start both; when one fails, stop the other and raise what it raised."""
        try:
            with ThreadPoolExecutor(2) as pool:
                starting = [pool.submit(self.kafka.start), pool.submit(self.clickhouse.start)]
            for started in starting:
                started.result()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop both cleanly. May be called again."""
        with ThreadPoolExecutor(2) as pool:
            stopping = [pool.submit(self.kafka.stop), pool.submit(self.clickhouse.stop)]
        for stopped in stopping:
            stopped.result()

    def kill(self) -> None:
        """End both with SIGKILL: for tests of what survives that."""
        self.kafka.kill()
        self.clickhouse.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
