"""The whole pipeline under faults: both engines behind proxies, two processes of each worker.

Everything runs as in operation, as processes of its own. What ends by itself is started again and
counted, as `trailweave up` does. The tables are the product's, but of plain MergeTree: a doubled
row must stay in them to be seen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError
from trailweave.deploy.addresses import write_addresses
from trailweave.deploy.local.child import Child
from trailweave.deploy.local.engines import ClickHouseEngine, KafkaEngine
from trailweave.deploy.settings import BOOTSTRAP, Settings, read_settings
from trailweave.deploy.supervisor import Worker
from trailweave.deploy.topics import apply_topics
from trailweave.schemas import events
from trailweave.sinks import tables

from tests.crash.proxy import HOST, ClickHouseProxy, KafkaProxy

#: The longest wait for anything: the broker ends a dead worker's transaction after 20 s, and
#: everything else is a matter of seconds. On a machine that gives each process a tenth of a core a
#: broker's start alone takes more than a minute, and that is no failure of the pipeline's.
DEADLINE_S: Final = 240.0
POLL_S: Final = 0.1
#: A worker that ended by itself is started again after so long.
RESTART_S: Final = 0.3
WORKERS: Final = ("join", "load")
#: Of the join's advice when a broker came back with a part of the group's offsets.
RESTART_IT: Final = "restart it once more"


@dataclass(frozen=True, slots=True)
class Shape:
    """What runs."""

    lanes: int = 2
    #: Processes of each worker.
    slots: int = 2
    closers: int = 0
    grace_s: float = 1.0
    idle_s: float = 2.5
    #: A stopped worker is counted out after so long. Kafka allows it by a broker setting.
    session_timeout_s: float = 2.0
    #: The lease of load is what its session timeout has above this; its client waits 5 s longer.
    insert_timeout_s: float = 3.0
    inserts_per_s_max: float = 20.0
    #: So few that after an outage more is there than may be read at once.
    batch_rows_max: int = 100
    #: So few that after an outage batches follow each other, and one is committed while the next
    #: one is folded and children close its sessions.
    batch_events_max: int = 400
    #: So short that sessions leave chunks behind while they are open.
    promote_s: float = 0.7
    #: Bytes of events in memory: so few that after an outage partitions wait, and sessions leave
    #: for their chunks. What is due comes back half of it at a time.
    held_bytes_max: int = 60_000

    def toml(self) -> str:
        """As `trailweave.toml`."""
        return (
            # Or what the clients wait after an outage would be most of every recovery.
            '[kafka]\n"reconnect.backoff.max.ms" = 1000\n'
            f"[join]\ngrace_s = {self.grace_s}\nidle_s = {self.idle_s}\n"
            f"promote_s = {self.promote_s}\nheld_bytes_max = {self.held_bytes_max}\n"
            f"approval_hold_max_s = {self.idle_s}\nclosers = {self.closers}\n"
            f"batch_events_max = {self.batch_events_max}\n"
            f"session_timeout_s = {self.session_timeout_s}\n"
            f"[load]\nsession_timeout_s = {self.session_timeout_s + self.insert_timeout_s}\n"
            f"insert_timeout_s = {self.insert_timeout_s}\n"
            f"inserts_per_s_max = {self.inserts_per_s_max}\n"
            f"batch_rows_max = {self.batch_rows_max}\n"
            f"[schemas]\nunknown_wait_s = 1.0\n[topics]\npartitions = {self.lanes}\n"
        )


def until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + deadline_s
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(POLL_S)
    return met


class Life:
    """One process of a worker, from its start to its end."""

    def __init__(self, name: str, slot: int, env: dict[str, str], folder: Path) -> None:
        self._worker = Worker(name, ("--slot", str(slot)), env, folder)
        self._worker.start()

    @property
    def running(self) -> bool:
        return self._worker.running

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child.pid, number)

    def kill(self) -> None:
        self._child.kill()
        self.end()

    def end(self) -> None:
        """Ask it to drain, if it runs, and wait."""
        self._worker.stop()

    def said(self) -> str:
        return self._worker.console.read_text("utf-8", "replace")

    def last_words(self) -> str:
        return self._worker.last_words()

    @property
    def _child(self) -> Child:
        child = self._worker._child
        assert isinstance(child, Child)
        return child


@dataclass(eq=False)
class Slot:
    """A worker's place in its group, and the process that has it."""

    name: str
    number: int
    start: Callable[[str, int, int], Life]
    life: Life = field(init=False)
    lives: int = 0
    #: Last words of processes that ended by themselves.
    ended: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> Life:
        """A new process in the place of the last one, which may still be there as a zombie."""
        self.lives += 1
        self.life = self.start(self.name, self.number, self.lives)
        return self.life

    def kill(self) -> None:
        """SIGKILL, and a new process at once."""
        with self.lock:
            self.life.kill()
            self.begin()

    def replace(self) -> Life:
        """A new process although the old one is there; the old one."""
        with self.lock:
            old = self.life
            self.begin()
            return old

    def mend(self) -> str:
        """Start it again if it ended by itself; its last words, if so."""
        with self.lock:
            if self.life.running:
                return ""
            self.ended.append(self.life.last_words())
            self.life.end()
            time.sleep(RESTART_S)
            self.begin()
            return self.ended[-1]


@dataclass(eq=False)
class Rig:
    """The engines, the proxies in front of them, and the slots."""

    folder: Path
    shape: Shape
    kafka: KafkaEngine
    clickhouse: ClickHouseEngine
    kafka_proxy: KafkaProxy
    clickhouse_proxy: ClickHouseProxy
    slots: list[Slot] = field(default_factory=list)
    #: Held by whoever ends the broker or starts it.
    kafka_lock: threading.Lock = field(default_factory=threading.Lock)
    #: What a join said after which the broker was restarted, as it asked for.
    asked_for: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Of Kafka, through the proxy: the broker names no other."""
        return f"{HOST}:{self.kafka_proxy.port}"

    @property
    def config(self) -> Path:
        return self.folder / "trailweave.toml"

    @property
    def settings(self) -> Settings:
        found = {f"kafka.{BOOTSTRAP}": self.address, "clickhouse.dsn": self.clickhouse.dsn}
        return read_settings(self.config, {}, found)

    def of(self, name: str) -> list[Slot]:
        return [slot for slot in self.slots if slot.name == name]

    def rows(self, sql: str, timeout_s: float = DEADLINE_S) -> list[tuple[Any, ...]]:
        """From ClickHouse itself, past the proxy."""
        client = clickhouse_connect.get_client(
            dsn=self.clickhouse.dsn, connect_timeout=2, send_receive_timeout=timeout_s
        )
        with contextlib.closing(client):
            return [tuple(row) for row in client.query(sql).result_rows]

    def went_on(self, since_s: float) -> bool:
        """Whether every lane has loaded events, and joined sessions, that began after a time.

        By the broker's clock, which is this machine's.
        """
        try:
            return not self.behind(since_s)
        except (ClickHouseError, OSError):
            return False

    def behind(self, since_s: float) -> list[str]:
        """The topic partitions of which nothing that came after a time is stored."""
        at = f"fromUnixTimestamp64Milli({int(since_s * 1000)})"
        sql = (
            f"SELECT DISTINCT topic, partition FROM events WHERE recorded_at > {at} UNION ALL"  # noqa: S608 - our own text
            f" SELECT DISTINCT topic, partition FROM chains WHERE first_recorded_at > {at}"
        )
        topics = (*events.event_topics(), events.SESSIONS_TOPIC)
        wanted = {(topic, lane) for topic in topics for lane in range(self.shape.lanes)}
        return sorted(f"{t}/{p}" for t, p in wanted.difference(self.rows(sql, timeout_s=2)))

    def start_life(self, name: str, slot: int, number: int) -> Life:
        env = {
            "TRAILWEAVE_KAFKA": self.address,
            "TRAILWEAVE_CLICKHOUSE": f"http://{HOST}:{self.clickhouse_proxy.port}/default",
            "TRAILWEAVE_CONFIG": str(self.config),
        }
        return Life(name, slot, env, self.folder / "workers" / f"{name}-{slot}" / str(number))

    def restart_kafka(self, why: str) -> None:
        """As a person would whom the join has told that the broker lost offsets."""
        self.asked_for.append(why)
        with self.kafka_lock:
            self.kafka.stop()
            self.kafka.start()

    def counted_out(self) -> int:
        """How often the broker was counted out for silence: its partitions then have no leader."""
        log = self.kafka.data_dir / "log" / "kafka.log"
        return log.read_text("utf-8", "replace").count("session has timed out")

    def kafka_signal(self, number: signal.Signals) -> None:
        os.kill(self.kafka.pid, number)

    def clickhouse_signal(self, number: signal.Signals) -> None:
        os.kill(self.clickhouse.pid, number)

    def told(self) -> str:
        """The end of what every worker said, for a wait that came to no end."""
        return "\n".join(f"{s.name} {s.number}: {s.life.said()[-1500:]}" for s in self.slots)


@contextlib.contextmanager
def rig(folder: Path, shape: Shape) -> Iterator[Rig]:
    """Engines with topics and tables, and all workers, mended while they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    store = ClickHouseEngine(folder / "clickhouse")
    with contextlib.ExitStack() as stack:
        kafka_proxy = stack.enter_context(KafkaProxy(lambda: kafka.port))
        kafka = KafkaEngine(
            folder / "kafka",
            settings={
                "advertised.listeners": f"PLAINTEXT://{HOST}:{kafka_proxy.port}",
                "group.min.session.timeout.ms": "1000",
            },
        )
        store_proxy = stack.enter_context(ClickHouseProxy(lambda: store.port))
        stack.callback(store.stop)
        stack.callback(kafka.stop)
        made = Rig(folder, shape, kafka, store, kafka_proxy, store_proxy)
        made.config.write_text(shape.toml(), "utf-8")
        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(kafka.start), pool.submit(store.start)]:
                done.result()
        write_addresses(folder, {"kafka": made.address, "clickhouse": store.dsn})
        apply_topics(made.settings)
        _make_tables(store.dsn)
        stack.enter_context(_working(made))
        yield made


def _make_tables(dsn: str) -> None:
    with contextlib.closing(clickhouse_connect.get_client(dsn=dsn)) as client:
        for statement in tables.statements(tables.PROFILES["ai_act"]):
            client.command(statement.replace("ReplacingMergeTree", "MergeTree"))


@contextlib.contextmanager
def _working(made: Rig) -> Iterator[None]:
    stop = threading.Event()

    def mend() -> None:
        while not stop.wait(POLL_S):
            said = [slot.mend() for slot in made.slots]
            asking = next((words for words in said if RESTART_IT in words), None)
            if asking:
                made.restart_kafka(asking)

    for name in WORKERS:
        made.slots += [Slot(name, n, made.start_life) for n in range(made.shape.slots)]
    for slot in made.slots:
        slot.begin()
    mending = threading.Thread(target=mend)
    mending.start()
    try:
        yield
    finally:
        stop.set()
        mending.join()
        with ThreadPoolExecutor(len(made.slots)) as pool:
            list(pool.map(lambda slot: slot.life.end(), made.slots))
