"""The embedded engines as processes: what survives a stop, a kill and a parent's death."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from trailweave.deploy.local import datadir, jars
from trailweave.deploy.local.engines import (
    ClickHouseEngine,
    DataDirInUseError,
    EngineError,
    JarMismatchError,
    KafkaEngine,
    LocalEngines,
    UnsafeBindingError,
)
from trailweave.deploy.local.kafka import LOCK

from tests.processes import lives

DEADLINE_S = 30.0

PARENT = """
import sys, time
from trailweave.deploy.local.engines import LocalEngines
engines = LocalEngines(sys.argv[1]).start()
print(engines.kafka.pid, engines.clickhouse.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def clickhouse_engine(tmp_path: Path) -> Iterator[ClickHouseEngine]:
    with ClickHouseEngine(tmp_path / "clickhouse") as engine:
        yield engine


@pytest.fixture
def kafka_engine(tmp_path: Path) -> Iterator[KafkaEngine]:
    with KafkaEngine(tmp_path / "kafka") as engine:
        yield engine


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def produce(address: str, topic: str, values: list[bytes]) -> list[bytes]:
    """Send the values; return those that the broker acknowledged."""
    acknowledged: list[bytes] = []

    def heard(error: KafkaError | None, sent: Message) -> None:
        if error is None:
            acknowledged.append(sent.value() or b"")

    producer = Producer({"bootstrap.servers": address, "acks": "all", "linger.ms": 0})
    for value in values:
        producer.produce(
            topic,
            value,
            on_delivery=heard,
        )
    producer.flush(DEADLINE_S)
    return acknowledged


def make_topic(address: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(DEADLINE_S)


def read(address: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": address, "group.id": "reader"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found = consumer.consume(count, timeout=DEADLINE_S)
    values = [message.value() or b"" for message in found if message.error() is None]
    consumer.close()
    return values


def test_kafka_keeps_records_and_its_address_over_a_stop_and_a_kill(
    kafka_engine: KafkaEngine,
) -> None:
    address = kafka_engine.address
    make_topic(address, "kept")
    sent = produce(address, "kept", [b"%d" % number for number in range(500)])
    kafka_engine.stop()
    kafka_engine.stop()

    assert kafka_engine.start() == address
    sent += produce(address, "kept", [b"more"])
    kafka_engine.kill()

    assert not kafka_engine.running
    assert kafka_engine.start() == address
    assert len(sent) == 501
    assert read(address, "kept", 501) == sent
    # Nor did a start wait until the broker before it was counted out.
    log = kafka_engine.data_dir / "log" / "kafka.log"
    assert "DUPLICATE_BROKER_REGISTRATION" not in log.read_text("utf-8")


def test_every_acknowledged_insert_survives_a_kill(clickhouse_engine: ClickHouseEngine) -> None:
    dsn = clickhouse_engine.dsn
    with closing(clickhouse_connect.get_client(dsn=dsn)) as client:
        client.command("CREATE TABLE kept (a UInt64) ENGINE = MergeTree ORDER BY a")
    acknowledged: list[list[int]] = [[], []]

    def insert(which: int) -> None:
        client = clickhouse_connect.get_client(dsn=dsn)
        try:
            for number in range(which * 1_000_000, which * 1_000_000 + 100_000):
                client.insert("kept", [[number]], column_names=["a"])
                acknowledged[which].append(number)
        except Exception:  # noqa: BLE001  (the engine was killed: every failure is the end)
            client.close()

    threads = [threading.Thread(target=insert, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    assert until(lambda: sum(map(len, acknowledged)) > 100)
    clickhouse_engine.kill()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert clickhouse_engine.start() == dsn
    with closing(clickhouse_connect.get_client(dsn=dsn)) as client:
        found = {row[0] for row in client.query("SELECT a FROM kept").result_rows}
    assert set(acknowledged[0] + acknowledged[1]) <= found


def test_a_setting_does_not_leak_into_other_inserts(clickhouse: str, database: str) -> None:
    """A deduplication token that stayed made the engine swallow later inserts without an error."""
    with closing(clickhouse_connect.get_client(dsn=database)) as client:
        client.command(
            "CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a"
            " SETTINGS non_replicated_deduplication_window = 100"
        )
        token = {"insert_deduplication_token": "once", "readonly": 0}
        client.insert("t", [[0]], settings=token)
        client.raw_insert("t", ["a"], insert_block=b"0\n", fmt="TSV", settings=token)
        for number in range(1, 6):
            client.insert("t", [[number]])
            client.raw_insert("t", ["a"], insert_block=b"%d0\n" % number, fmt="TSV")
    with closing(clickhouse_connect.get_client(dsn=clickhouse)) as other:
        name = database.rpartition("/")[2]
        ask = "SELECT a FROM {db:Identifier}.t ORDER BY a"
        rows = other.query(ask, parameters={"db": name}).result_rows

    assert [row[0] for row in rows] == [0, 1, 2, 3, 4, 5, 10, 20, 30, 40, 50]


def test_engines_end_when_their_parent_is_killed_and_start_again_on_the_same_data(
    tmp_path: Path,
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(lives, pids))

    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    assert until(lambda: not any(map(lives, pids)))
    # The broker's own mark of a clean end.
    assert (tmp_path / "kafka" / "topics" / ".kafka_cleanshutdown").exists()
    with LocalEngines(tmp_path) as engines:
        assert engines.kafka.running
        assert engines.clickhouse.running


def test_a_guards_death_ends_the_broker(kafka_engine: KafkaEngine) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process of its parent's death")
    pid = kafka_engine.pid
    guard = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(guard, signal.SIGKILL)

    assert until(lambda: not lives(pid))


def test_two_engines_on_one_directory_are_refused(
    clickhouse_engine: ClickHouseEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datadir, "LOCK_WAIT_S", 0.1)
    second = ClickHouseEngine(clickhouse_engine.data_dir)
    with pytest.raises(DataDirInUseError, match=f"process {os.getpid()} "):
        second.start()

    assert clickhouse_engine.running


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"port {port} "):
            ClickHouseEngine(tmp_path, port).start()
        with pytest.raises(EngineError, match=f"port {port} "):
            KafkaEngine(tmp_path, port).start()


def test_an_engine_that_does_not_start_says_why_and_leaves_the_directory_free(
    tmp_path: Path,
) -> None:
    broken = KafkaEngine(tmp_path, settings={"log.cleaner.threads": "many"})
    with pytest.raises(EngineError, match=r"log\.cleaner\.threads"):
        broken.start()

    datadir.DataDir(tmp_path).release()


def test_a_jar_with_other_bytes_is_never_run(tmp_path: Path) -> None:
    cache = tmp_path / "jars"
    shutil.copytree(jars.default_cache(), cache, ignore=shutil.ignore_patterns(".*"))
    forged = cache / jars.read_lock(LOCK)[2].file_name
    with forged.open("ab") as file:
        file.write(b"x")
    engine = KafkaEngine(tmp_path / "kafka", jar_cache=cache)
    with pytest.raises(JarMismatchError, match=forged.name):
        engine.start()

    assert not engine.running
    assert not (tmp_path / "kafka").exists()


def test_a_download_that_does_not_match_the_lock_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(_group: str, artifact: str, version: str, into: Path) -> Path:
        path = into / f"{artifact}-{version}.jar"
        path.write_bytes(b"not what was asked for")
        return path

    monkeypatch.setattr(jars, "download", download)
    cache = tmp_path / "jars"
    with pytest.raises(JarMismatchError):
        jars.class_path(jars.read_lock(LOCK), cache)

    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_the_lock_names_every_jar_once_and_no_place_to_get_it_from() -> None:
    text = LOCK.read_text()
    names = [jar.file_name for jar in jars.read_lock(LOCK)]

    assert len(set(names)) == len(names) > 40
    assert all(len(entry["sha256"]) == 64 for entry in json.loads(text)["jars"])
    assert "://" not in text


@pytest.mark.parametrize("host", ["::", "192.0.2.1", "example.org"])
def test_listening_beyond_this_machine_needs_a_password(tmp_path: Path, host: str) -> None:
    with pytest.raises(UnsafeBindingError, match="set a user and a password"):
        ClickHouseEngine(tmp_path, host=host)


def test_a_password_is_asked_for_when_one_is_set(tmp_path: Path) -> None:
    with ClickHouseEngine(tmp_path, user="me", password="p@ss:w/rd") as engine:
        with closing(clickhouse_connect.get_client(dsn=engine.dsn)) as client:
            assert client.command("SELECT 1") == 1
        with pytest.raises(DatabaseError, match="Authentication failed"):
            clickhouse_connect.get_client(host="127.0.0.1", port=engine.port)


def test_a_page_in_a_browser_is_refused(clickhouse: str) -> None:
    port = int(clickhouse.rpartition(":")[2].partition("/")[0])

    def ask(*headers: str) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
            lines = ["GET /?query=SELECT+1 HTTP/1.1", *headers, "Connection: close", "", ""]
            connection.sendall("\r\n".join(lines).encode())
            return connection.makefile("rb").readline()

    assert b" 200 " in ask("Host: localhost")
    assert b" 403 " in ask("Host: rebound.example")
    assert b" 403 " in ask(f"Host: 127.0.0.1:{port}", "Origin: https://page.example")
    assert b" 403 " in ask(f"Host: 127.0.0.1:{port}", "Sec-Fetch-Site: cross-site")


def test_a_long_read_ends_when_its_client_goes(clickhouse: str) -> None:
    port = int(clickhouse.rpartition(":")[2].partition("/")[0])
    statement = b"SELECT count() FROM numbers(1e13) WHERE NOT ignore(sipHash64(number), 'gone')"
    with closing(clickhouse_connect.get_client(dsn=clickhouse)) as client:

        def running() -> int:
            found = client.query("SELECT countIf(query LIKE '%go' || 'ne%') FROM system.processes")
            return int(found.result_rows[0][0])

        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
            connection.sendall(head % len(statement) + statement)
            assert until(lambda: running() == 1)

        assert until(lambda: running() == 0)


def test_a_client_that_goes_in_the_middle_of_its_body_inserts_nothing(database: str) -> None:
    port = int(database.rpartition(":")[2].partition("/")[0])
    name = database.rpartition("/")[2]
    with closing(clickhouse_connect.get_client(dsn=database)) as client:
        client.command("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
        with socket.create_connection(("127.0.0.1", port)) as connection:
            path = f"/?database={name}&query=INSERT+INTO+t+FORMAT+TSV"
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\n"
            connection.sendall(head.encode() + b"1\n" * 1000)
        client.insert("t", [[2]])

        assert client.query("SELECT a FROM t").result_rows == [(2,)]
