"""The load worker on a real broker and a real ClickHouse: what lands where, and only once."""

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from trailweave.deploy.local.engines import ClickHouseEngine, KafkaEngine
from trailweave.schemas import codec, events, silence
from trailweave.schemas.compiled import Json
from trailweave.schemas.deadline import answer_within
from trailweave.schemas.errors import Fatal, Retryable
from trailweave.schemas.examples import example
from trailweave.schemas.standing import Standing
from trailweave.sinks import clickhouse as store_edge
from trailweave.sinks import load, load_group, rows
from trailweave.sinks.load_build import Builder, Record
from trailweave.sinks.load_group import TOPICS
from trailweave.sinks.load_plan import Range, Target, token

from tests.integration.event_columns import expected_columns, query_bytes

ENCODER = codec.Encoder()
TOOLS = "trailweave.tools"
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker of this module's own: the worker reads topics by their full names."""
    engine = KafkaEngine(tmp_path_factory.mktemp("load-kafka"))
    yield engine.start()
    engine.stop()


@pytest.fixture
def kafka_topics(broker: str) -> str:
    """Every topic anew, with one partition; gives the broker's address."""
    admin = AdminClient({"bootstrap.servers": broker})
    there = [name for name in admin.list_topics(timeout=10).topics if name in TOPICS]
    if there:
        for deleted in admin.delete_topics(there).values():
            deleted.result()
    wait_until(lambda: not set(admin.list_topics(timeout=10).topics) & set(TOPICS))
    config = {"message.timestamp.type": "LogAppendTime"}
    new = [NewTopic(name, 1, 1, config=config) for name in TOPICS]
    for created in admin.create_topics(new).values():
        created.result()
    return broker


@pytest.fixture
def settings(kafka_topics: str, database: str) -> load.LoadSettings:
    return load.LoadSettings(
        kafka={"bootstrap.servers": kafka_topics},
        clickhouse=database,
        group=f"load-{uuid.uuid4().hex[:8]}",
        linger_min_s=0.05,
        linger_max_s=0.1,
        insert_timeout_s=5.0,
        session_timeout_s=10.0,
    )


@pytest.fixture
def client(settings: load.LoadSettings) -> Iterator[Any]:
    with contextlib.closing(store_edge.connect(settings.clickhouse)) as client:
        store_edge.apply_tables(client, settings.profile)
        yield client


def wait_until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)


@contextlib.contextmanager
def working(settings: load.LoadSettings) -> Iterator[load.LoadWorker]:
    worker = load.LoadWorker(settings)
    try:
        yield worker
    finally:
        worker.close()


def drive(worker: load.LoadWorker, until: Callable[[], bool]) -> None:
    def stepped() -> bool:
        with contextlib.suppress(Retryable):
            worker.step()
        return until()

    wait_until(stepped)


def drive_to(worker: load.LoadWorker, client: Any, counts: dict[str, int]) -> None:
    drive(worker, lambda: all(count(client, t) >= n for t, n in counts.items()) and worker.idle())


def count(client: Any, table: str) -> int:
    sql = "SELECT count() FROM {table:Identifier}"
    return int(client.query(sql, parameters={"table": table}).result_rows[0][0])


def places(client: Any) -> tuple[int, int]:
    found = client.query(
        "SELECT count(), uniqExact(topic_id, partition, offset, ordinal) FROM events"
    )
    return tuple(found.result_rows[0])


def produce(
    settings: load.LoadSettings, topic: str, records: Iterable[tuple[bytes, bytes]]
) -> None:
    produce_all(settings, ((topic, *record) for record in records))


def produce_all(settings: load.LoadSettings, records: Iterable[tuple[str, bytes, bytes]]) -> None:
    producer = Producer({**settings.kafka, "linger.ms": 1})
    for topic, key, value in records:
        producer.produce(topic, key=key, value=value, partition=0)
    assert producer.flush(30) == 0


def tool_requests(n: int, start: int = 0) -> list[tuple[bytes, bytes]]:
    record = example("tool_requested")
    made = []
    for i in range(start, start + n):
        one = {**record, "event_id": str(uuid.UUID(int=i + 1)), "call_id": f"call_{i}"}
        made.append((record["trace_id"].encode(), ENCODER.encode("tool_requested", one)))
    return made


# --- what lands where ------------------------------------------------------------------------


def test_every_hot_column_of_every_event_type_has_the_events_value(
    settings: load.LoadSettings, client: Any
) -> None:
    decoder = codec.Decoder()
    values = {name: ENCODER.encode(name, example(name)) for name in events.event_names()}
    kinds = events.event_types()
    keyed = ((kinds[n].topic, example(n)["trace_id"].encode(), v) for n, v in values.items())
    produce_all(settings, keyed)

    with working(settings) as worker:
        drive_to(worker, client, {"events": len(values)})

    found = {row["event_type"]: row for row in query_bytes(client, "SELECT * FROM events")}
    assert set(found) == set(values)
    wrong = {}
    for name, value in values.items():
        expected = expected_columns(name, decoder.decode(value)[1])
        expected["record"] = value.decode("latin-1")
        wrong[name] = {
            column: (found[name][column], value)
            for column, value in expected.items()
            if found[name][column] != value
        }
    assert not {name: differences for name, differences in wrong.items() if differences}


def test_other_records_land_in_their_tables(settings: load.LoadSettings, client: Any) -> None:
    producer = Producer({**settings.kafka})
    headers: list[tuple[str, str | bytes | None]]
    for name, kind in events.record_types().items():
        if kind.topic not in TOPICS:
            continue
        value = ENCODER.encode(name, example(name))
        headers = [("w", b"join"), ("kind", b"chain"), ("n", b"7"), ("cut", b"1")]
        producer.produce(kind.topic, key=b"k", value=value, headers=headers)
    assert producer.flush(30) == 0
    chain, finding = example("chain"), example("finding")
    wanted = {"chains": 1, "findings": 1, "heartbeats": 1, "dead_letters": 1}

    with working(settings) as worker:
        drive_to(worker, client, wanted)

    (row,) = client.query("SELECT * FROM chains_latest").named_results()
    assert (row["w"], row["kind"], row["trace_id"]) == ("join", "chain", chain["trace_id"])
    assert (row["events"], row["completeness"]) == (chain["events"], chain["completeness"])
    assert [e["event_id"] for e in row["evidence"]] == [e["event_id"] for e in chain["evidence"]]
    assert row["reassessment_pending"] == 0
    (row,) = client.query("SELECT * FROM findings_latest").named_results()
    assert (row["finding_id"], row["severity"]) == (finding["finding_id"], finding["severity"])
    hashes = client.query("SELECT hash FROM handles ORDER BY ordinal").result_rows
    assert [h for (h,) in hashes] == [handle["hash"] for handle in chain["handles"]]
    (row,) = client.query("SELECT * FROM heartbeats").named_results()
    assert row["producer_id"] == example("producer_heartbeat")["producer_id"]
    (row,) = client.query("SELECT * FROM dead_letters_distinct").named_results()
    assert (row["topic"], row["code"]) == (
        example("dead_letter")["topic"], example("dead_letter")["code"],
    )  # fmt: skip


def test_what_only_load_reads_and_cannot_use_becomes_a_dead_letter(
    settings: load.LoadSettings, client: Any
) -> None:
    produce(settings, events.HEARTBEATS_TOPIC, [(b"k", b"nonsense")])

    with working(settings) as worker:
        drive_to(worker, client, {"dead_letters": 1})

    (row,) = client.query("SELECT * FROM dead_letters").named_results()
    assert (row["topic"], row["offset"], row["stage"]) == (events.HEARTBEATS_TOPIC, 0, "load")
    assert (row["code"], row["value"]) == ("not_framed", "nonsense")


# --- bytes that lie --------------------------------------------------------------------------


def test_a_forged_second_record_neither_injects_a_row_nor_shifts_one(
    settings: load.LoadSettings, client: Any
) -> None:
    (first, second, third) = tool_requests(3)
    forged = (second[0], second[1] + second[1][10:])
    truncated = (second[0], second[1][:-4])
    produce(settings, TOOLS, [first, forged, truncated, third])

    with working(settings) as worker:
        drive_to(worker, client, {"events": 2})

    found = client.query("SELECT offset, call_id FROM events ORDER BY offset").result_rows
    assert found == [(0, "call_0"), (3, "call_2")]


# --- exactly once ----------------------------------------------------------------------------


@pytest.mark.parametrize("there", [0, 4, 10])
def test_an_open_intent_is_redone_exactly(
    settings: load.LoadSettings, client: Any, there: int
) -> None:
    records = tool_requests(20)
    produce(settings, TOOLS, records)
    # A worker that died after the intent 0..9, `there` rows of which had arrived.
    with working(settings) as dead:
        drive(dead, lambda: (TOOLS, 0) in dead._ranges.readings)
        source = dead._ranges.readings[TOOLS, 0].source
        dead._group.commit(source, 0, Range(0, 9, 0).metadata())
        dead._forget()
    built = Builder().build(source, [Record(n, NOW, *one) for n, one in enumerate(records[:there])])
    for insert in built.inserts:
        store = store_edge.Store(settings.clickhouse, 5.0)
        store.insert(*insert.whole(), "the dead worker's")
        store.close()

    with working(replace(settings, batch_rows_max=3)) as worker:
        drive_to(worker, client, {"events": 20})

    assert places(client) == (20, 20)
    parts = "SELECT rows FROM system.parts WHERE table = 'events' AND database = currentDatabase()"
    sizes = [n for (n,) in client.query(parts + INSERTED).result_rows]
    if there < 10:
        assert 10 - there in sizes


NOW = int(time.time() * 1000)
#: Parts as they were inserted, not merged since.
INSERTED = " AND min_block_number = max_block_number"


def test_a_token_used_up_before_loses_nothing(settings: load.LoadSettings, client: Any) -> None:
    produce(settings, TOOLS, tool_requests(10))
    with working(settings) as dead:
        drive(dead, lambda: (TOOLS, 0) in dead._ranges.readings)
        source = dead._ranges.readings[TOOLS, 0].source
        dead._group.commit(source, 0, Range(0, 9, 0).metadata())
        target = Target(dead._group.cluster_id, source.topic_id, settings.group, 0)
        dead._forget()
    own = token(target, Range(0, 9, 0), "events", rows.current_events().part)
    # The token went in with an insert whose rows are gone.
    store = store_edge.Store(settings.clickhouse, 5.0)
    (insert,) = Builder().build(source, [Record(0, NOW, *tool_requests(1)[0])]).inserts
    store.insert(*insert.whole(), own)
    store.close()
    client.command("ALTER TABLE events DELETE WHERE 1 SETTINGS mutations_sync = 2")

    with working(settings) as worker:
        drive_to(worker, client, {"events": 10})

    assert places(client) == (10, 10)


def test_an_offset_that_went_back_doubles_nothing(settings: load.LoadSettings, client: Any) -> None:
    produce(settings, TOOLS, tool_requests(30))
    with working(settings) as worker:
        drive_to(worker, client, {"events": 30})
        worker._group.commit(worker._ranges.readings[TOOLS, 0].source, 5, "")
    produce(settings, TOOLS, tool_requests(10, start=30))

    with working(replace(settings, batch_rows_max=7)) as worker:
        drive_to(worker, client, {"events": 40})

    assert places(client) == (40, 40)


def test_a_worker_killed_again_and_again_stores_every_record_once(
    settings: load.LoadSettings, client: Any
) -> None:
    broker = str(settings.kafka["bootstrap.servers"])
    program = (
        "import sys, threading, trailweave.sinks.load as load\n"
        "kafka, dsn, group = sys.argv[1:]\n"
        "load.run(load.LoadSettings(kafka={'bootstrap.servers': kafka}, clickhouse=dsn,"
        " group=group, batch_rows_max=40, linger_min_s=0.01, linger_max_s=0.02,"
        " insert_timeout_s=5.0, session_timeout_s=10.0), threading.Event())\n"
    )
    arguments = [sys.executable, "-c", program, broker, settings.clickhouse, settings.group]
    total = 0
    for _ in range(4):
        produce(settings, TOOLS, tool_requests(400, start=total))
        total += 400
        before = count(client, "events")
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
        try:
            # In the middle of its ranges: of ten, some are done.
            wait_until(lambda before=before: count(client, "events") > before)  # type: ignore[misc]
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()

    with working(settings) as worker:
        drive_to(worker, client, {"events": total})

    assert places(client) == (total, total)


def test_clickhouse_may_go_away_and_come_back(settings: load.LoadSettings, tmp_path: Path) -> None:
    engine = ClickHouseEngine(tmp_path / "ch")
    dsn = engine.start()
    port = int(re.findall(r":(\d+)", dsn)[-1])
    own = replace(settings, clickhouse=dsn, insert_timeout_s=2.0, batch_rows_max=10)
    with working(own) as worker:
        produce(settings, TOOLS, tool_requests(20))
        with contextlib.closing(store_edge.connect(dsn)) as client:
            store_edge.apply_tables(client, own.profile)
            drive_to(worker, client, {"events": 20})
        engine.kill()
        produce(settings, TOOLS, tool_requests(200, start=20))
        retries = worker.metrics.retries
        drive(worker, lambda: retries._value.get() >= 2)

        again = ClickHouseEngine(tmp_path / "ch", port)
        with contextlib.closing(store_edge.connect(again.start())) as client:
            drive_to(worker, client, {"events": 220})
            found = places(client)

    again.stop()
    assert found == (220, 220)


def test_an_outage_longer_than_the_session_ends_nothing(
    settings: load.LoadSettings, tmp_path: Path
) -> None:
    engine = KafkaEngine(tmp_path / "kafka")
    address = engine.start()
    admin = AdminClient({"bootstrap.servers": address})
    config = {"message.timestamp.type": "LogAppendTime"}
    for created in admin.create_topics([NewTopic(n, 1, 1, config=config) for n in TOPICS]).values():
        created.result()
    kafka = {"bootstrap.servers": address, "socket.timeout.ms": 3000}
    own = replace(
        settings, kafka=kafka, batch_rows_max=10, insert_timeout_s=3.0, session_timeout_s=6.0
    )
    with working(own) as worker:
        produce(own, TOOLS, tool_requests(20))
        with contextlib.closing(store_edge.connect(own.clickhouse)) as client:
            store_edge.apply_tables(client, own.profile)
            drive_to(worker, client, {"events": 20})
            produce(own, TOOLS, tool_requests(60, start=20))
            drive(worker, lambda: bool(worker._ranges.readings[TOOLS, 0].records))
            before = worker._group
            engine.stop()
            gone = time.monotonic()
            drive(worker, lambda: time.monotonic() - gone > own.session_timeout_s + 1)
            engine = KafkaEngine(tmp_path / "kafka", int(address.rpartition(":")[2]))
            engine.start()
            drive_to(worker, client, {"events": 80})
            found = places(client)
    engine.stop()

    assert worker._group is not before
    assert found == (80, 80)


def test_a_second_process_with_the_same_slot_is_told_of(
    settings: load.LoadSettings, client: Any
) -> None:
    with working(replace(settings, session_timeout_s=6.0)) as first:
        drive(first, lambda: (TOOLS, 0) in first._ranges.readings)
        with working(settings) as second:
            drive(second, lambda: (TOOLS, 0) in second._ranges.readings)
            produce(settings, TOOLS, tool_requests(10))
            with pytest.raises(Fatal, match=r"another process, at \S+, runs as load-\S+-0; give"):
                drive(first, lambda: False)
            drive_to(second, client, {"events": 10})

    assert places(client) == (10, 10)


def test_a_worker_that_is_fenced_by_its_own_membership_joins_again(
    settings: load.LoadSettings, client: Any
) -> None:
    with working(settings) as worker:
        drive(worker, lambda: (TOOLS, 0) in worker._ranges.readings)
        before = worker._group
        # What a client is to its group that has timed out and joined again.
        again = worker._join_group()
        wait_until(lambda: bool(again.read(1, 0.1)) or again._assigned is not None)
        produce(settings, TOOLS, tool_requests(10))
        drive_to(worker, client, {"events": 10})
        again.close()

    assert worker._group is not before
    assert places(client) == (10, 10)


def deaf(worker: load.LoadWorker, patched: pytest.MonkeyPatch) -> None:
    patched.setattr(silence, "CONFIRM_S", 0.1)
    worker._silence = silence.Silence(worker.settings.kafka, silence_s=0.1)
    worker._group.pause([worker._ranges.readings[TOOLS, 0].source])


def without_an_answer(_: load.LoadWorker, patched: pytest.MonkeyPatch) -> None:
    def unanswered(_: float, call: Callable[[], Any]) -> Any:
        patched.undo()
        return answer_within(0.0, lambda: (call(), threading.Event().wait()))

    patched.setattr(load_group, "answer_within", unanswered)


@pytest.mark.parametrize("fault", [deaf, without_an_answer])
def test_a_client_that_is_of_no_more_use_is_given_up(
    settings: load.LoadSettings, client: Any, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    with working(settings) as worker:
        drive(worker, lambda: (TOOLS, 0) in worker._ranges.readings)
        before = worker._group
        fault(worker, monkeypatch)
        produce(settings, TOOLS, tool_requests(10))
        drive_to(worker, client, {"events": 10})

    assert worker._group is not before
    assert places(client) == (10, 10)


class Later:
    """A schema that is published while the worker waits for it."""

    def __init__(self, key: bytes, schema: Json) -> None:
        self.schemas = {key: schema}
        self.answer: Standing = "wait"

    def schema_of(self, key: bytes) -> Json | None:
        return self.schemas.get(key) if self.answer == "known" else None

    def standing(self, key: bytes, recorded_at_ms: int, now_ms: int) -> Standing:
        return self.answer if key in self.schemas and recorded_at_ms <= now_ms else "known"


def test_a_partition_waits_for_a_schema_and_goes_on(
    settings: load.LoadSettings, client: Any
) -> None:
    kind = events.event_types()["tool_requested"]
    fields = [field for field in kind.schema["fields"] if field["name"] != "prev_hash"]
    older = events.record_type(kind.name, kind.topic, {**kind.schema, "fields": fields})
    records = tool_requests(31)
    key, value = records[10]
    records[10] = key, codec.SINGLE_OBJECT + older.fingerprint + value[10:-1]
    schemas = Later(older.fingerprint, older.schema)
    produce(settings, TOOLS, records)

    worker = load.LoadWorker(settings, schemas=schemas)
    drive(worker, lambda: count(client, "events") == 10 and worker.idle())
    schemas.answer = "known"
    drive_to(worker, client, {"events": 31})
    worker.close()

    assert places(client) == (31, 31)
    sql = "SELECT call_id, tool FROM events WHERE offset = 10"
    assert client.query(sql).result_rows == [("call_10", example("tool_requested")["tool"])]


def test_an_orderly_stop_finishes_what_was_read(settings: load.LoadSettings, client: Any) -> None:
    produce(settings, TOOLS, tool_requests(25))
    patient = replace(settings, linger_min_s=30.0, linger_max_s=30.0)

    with working(patient) as worker:
        drive(worker, lambda: not worker.idle())
        drive(worker, lambda: len(worker._ranges.readings[TOOLS, 0].records) == 25)
        worker.drain()

    assert places(client) == (25, 25)


@contextlib.contextmanager
def running(settings: load.LoadSettings, *slots: int) -> Iterator[None]:
    stop = threading.Event()
    own = [replace(settings, slot=slot) for slot in slots]
    threads = [threading.Thread(target=load.run, args=(each, stop)) for each in own]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert not any(thread.is_alive() for thread in threads)


def test_run_stops_when_told_to(settings: load.LoadSettings, client: Any) -> None:
    produce(settings, TOOLS, tool_requests(5))
    with running(settings, 0):
        wait_until(lambda: count(client, "events") == 5)


def test_two_workers_share_the_partitions_and_store_every_record_once(
    settings: load.LoadSettings, client: Any
) -> None:
    produce(settings, TOOLS, tool_requests(50))
    with running(settings, 0, 1):
        produce(settings, TOOLS, tool_requests(50, start=50))
        wait_until(lambda: count(client, "events") >= 100)

    assert places(client) == (100, 100)


def test_a_range_that_is_under_way_at_a_revocation_is_redone_by_the_next_owner(
    settings: load.LoadSettings, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with working(settings) as first:
        drive(first, lambda: (TOOLS, 0) in first._ranges.readings)
        produce(settings, TOOLS, tool_requests(10))
        drive(first, lambda: any(line.running for line in first._lines))
        # From a revocation a commit would have to wait for the call that brought it.
        monkeypatch.setattr(first._group, "commit", lambda *_: pytest.fail("it commits"))
        with running(settings, 1):
            wait_until(lambda: not (first._group.read(1, 0.1) or first._ranges.readings))
            monkeypatch.undo()
            drive_to(first, client, {"events": 10})

    assert places(client) == (10, 10)
