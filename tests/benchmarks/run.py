"""`make bench`: how fast each part is on this machine, as ratios within one run.

Machines are noisy and shared, so no figure stands alone: the join stands beside plain consuming of
the same topics before and after it, the load beside ClickHouse's own rate for the same bytes into
the same tables. Nothing counts unless what came out is right: every trace joined once, every row
there. Writes a table to standard output and `bench.json`.
"""

import argparse
import gc
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer
from rich.console import Console
from rich.table import Table
from trailweave.deploy.fleet.send import FleetProducer
from trailweave.deploy.fleet.synthetic import EVENTS_PER_TRACE_MIN, synthetic_events
from trailweave.deploy.local.engines import LocalEngines
from trailweave.deploy.settings import Join, Load, read_settings
from trailweave.deploy.topics import apply_topics
from trailweave.producers.recorder import Recorder
from trailweave.producers.transport import Counts, Producer
from trailweave.schemas import events
from trailweave.schemas.codec import Decoder
from trailweave.schemas.garbage import rare_collections
from trailweave.sinks import clickhouse
from trailweave.sinks.load import LoadSettings, LoadWorker
from trailweave.sinks.load_build import Builder, Insert, Record, Source
from trailweave.sinks.rows import Layout
from trailweave.sinks.tables import PROFILES
from trailweave.stream_processors import verdict
from trailweave.stream_processors.join import JoinSettings, JoinWorker
from trailweave.stream_processors.session import ClosingTimes

from tests.benchmarks.rules import rules_us
from tests.benchmarks.workers import workers
from tests.integration.join_kafka import until

TIMES = ClosingTimes(grace_ms=2_000, idle_ms=5_000)
#: How often the rows are counted: that is work for ClickHouse as well.
POLL_S = 0.1
#: The whole pipeline needs seconds.
PATIENCE_S = 600.0
#: Rows of one ready-made container, as the load worker makes them.
ROWS = 50_000


class _Nowhere:
    """A transport that takes everything: what is left is the recorder's own cost."""

    delayed = False
    counts = Counts()

    def start(self, producer: Producer) -> None: ...
    def send(self, topic: str, key: bytes, value: bytes) -> None: ...
    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002 - the protocol's argument
        return True

    def close(self, timeout_s: float | None = None) -> None: ...


def note(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is a command


def record_us(calls: int = 20_000) -> float:
    """Microseconds in the calling thread for one `tool_requested` with arguments."""
    arguments = {"invoice": "INV-1042", "amount": 1250, "currency": "EUR"}
    best = float("inf")
    recorder = Recorder(_Nowhere(), tenant="acme", agent="procurement")
    with recorder, recorder.session(task="bench") as session:
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(calls // 5):
                session.tool_requested(tool="invoices.approve", arguments=arguments)
            best = min(best, (time.perf_counter() - began) / (calls // 5))
    return best * 1e6


@contextmanager
def engines() -> Iterator[tuple[LocalEngines, str, str]]:
    """Fresh Kafka with the topics, fresh ClickHouse."""
    with (
        tempfile.TemporaryDirectory(prefix="trailweave-bench-") as folder,
        LocalEngines(folder) as both,
    ):
        apply_topics(read_settings(None, {}, {"kafka.bootstrap.servers": both.kafka.address}))
        yield both, both.kafka.address, both.clickhouse.dsn


def produce(address: str, traces: int, per_trace: int) -> int:
    """Complete sessions onto the event topics; the number of events."""
    count = 0
    with FleetProducer(address) as producer:
        for sent in synthetic_events(traces, time.time_ns() // 1000, per_trace):
            producer.send(sent.topic, sent.key, sent.value)
            count += 1
    return count


def consume(address: str, total: int, group: str) -> float:
    """Events per second of a plain consumer that only asks for batches."""
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "queued.max.messages.kbytes": 131_072,
            # As the workers have it: by default a queue that was full runs dry for a second.
            "fetch.queue.backoff.ms": 20,
        }
    )
    consumer.subscribe(list(events.event_topics()))
    count, began = 0, 0.0
    first = 0
    while count < total:
        # A short wait: the last, partly filled batch would otherwise be timed as one second.
        got = len(consumer.consume(10_000, 0.05))
        if got and not began:
            began, first = time.perf_counter(), got
        count += got
    seconds = time.perf_counter() - began
    consumer.close()
    return (count - first) / seconds


def join(address: str, total: int) -> tuple[float, float]:
    """(events/s, CPU µs per event) of one join worker from its first batch to its last commit.

    With its children for closings as `trailweave join` has them, their start included.
    """
    closers = Join().closers
    settings = JoinSettings({"bootstrap.servers": address}, times=TIMES, closers=closers)
    worker = JoinWorker(settings)
    folded, first, began, cpu = 0, 0, 0.0, 0.0
    with rare_collections():
        while folded < total or not worker.settled or held(worker):
            got = worker.step()
            if got and not began:
                began, cpu, first = time.perf_counter(), _cpu_s(), got
            folded += got
        seconds = time.perf_counter() - began
    worker.close()  # reaps its children, whose time then counts
    spent = _cpu_s() - cpu
    return (folded - first) / seconds, spent / (folded - first) * 1e6


def hot_path() -> str:
    """Whether what is measured is what a wheel holds, or the sources."""
    return "not compiled" if verdict.__file__.endswith(".py") else "compiled"


def held(worker: JoinWorker) -> int:
    """Events in open sessions."""
    return sum(lane.held_events for lane in worker.lanes.values())


def _cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def check_chains(address: str, traces: int, per_trace: int) -> None:
    """Every trace in one chain, complete, with all its events; raises AssertionError."""
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "bench-check",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([events.SESSIONS_TOPIC])
    decoder = Decoder({"chain": ("trace_id", "events", "completeness", "state")})
    found: dict[str, tuple[Any, ...]] = {}
    doubled, quiet = 0, 0
    while len(found) < traces and quiet < 20:
        messages = consumer.consume(10_000, 0.5)
        quiet = 0 if messages else quiet + 1
        for message in messages:
            _, chain = decoder.decode(message.value() or b"")
            doubled += chain["trace_id"] in found
            found[chain["trace_id"]] = (chain["events"], chain["completeness"], chain["state"])
    consumer.close()
    wrong = {v for v in found.values() if v != (per_trace, "complete", "closed")}
    assert (len(found), doubled, wrong) == (traces, 0, set()), (len(found), doubled, wrong)


def load(address: str, dsn: str, total: int) -> float:
    """Rows per second of one load worker into `events`, other tables beside it."""
    worker = LoadWorker(LoadSettings({"bootstrap.servers": address}, dsn))
    client = clickhouse.connect(dsn)
    began, done = 0.0, 0
    look_at = 0.0
    with rare_collections():
        while done < total:
            worker.step()
            if not began and not worker.idle():
                began = time.perf_counter()
            if time.perf_counter() > look_at:
                look_at = time.perf_counter() + POLL_S
                done = _count(client, "events")
        seconds = time.perf_counter() - began
    while not worker.idle():
        worker.step()
    worker.drain()
    worker.close()
    client.close()
    return total / seconds


def _count(client: Any, table: str) -> int:
    try:
        return int(client.command(f"SELECT count() FROM {table}"))  # noqa: S608 - our own names
    except Exception as error:
        if "UNKNOWN_TABLE" in str(error):
            return 0
        raise


def clickhouse_alone(address: str, dsn: str, total: int) -> dict[str, float]:
    """Rows per second at which ClickHouse takes the same rows from ready-made containers.

    Of raw Avro records one at a time; and of what the load makes of them where it is compiled, one
    at a time and as many as the worker has at once.
    """
    inserts: list[Insert] = []
    builder = Builder()
    for (topic, partition), records in _records(address, total).items():
        source = Source(topic, "11111111-2222-3333-4444-555555555555", partition)
        for at in range(0, len(records), ROWS):
            inserts += builder.build(source, records[at : at + ROWS]).inserts
    made = [insert.whole() for insert in inserts]
    for insert in inserts:
        insert.give_up_columns()
    avro = [insert.whole() for insert in inserts]
    ways = {
        "clickhouse_avro_rows_per_s": (avro, 1),
        "clickhouse_one_rows_per_s": (made, 1),
        "clickhouse_rows_per_s": (made, Load().inserts_at_once),
    }
    rates = {}
    with closing(clickhouse.connect(dsn)) as client:
        for name, (containers, at_once) in ways.items():
            client.command(f"CREATE DATABASE {name}")
            own = f"{dsn.rpartition('/')[0]}/{name}"
            with closing(clickhouse.connect(own)) as other:
                clickhouse.apply_tables(other, PROFILES["ai_act"])
                rates[name] = total / _insert_all(containers, own, at_once)
                assert _count(other, "events") == total
    return rates


def _insert_all(containers: list[tuple[Layout, Iterable[bytes]]], dsn: str, at_once: int) -> float:
    """Seconds for all of them, so many at a time."""
    waiting = iter(enumerate(containers))

    def work(store: clickhouse.Store) -> None:
        # Shared: `next` of an enumeration is one step for threads.
        for number, (layout, pieces) in waiting:
            store.insert(layout, pieces, f"bench-{number}")

    with ExitStack() as stack, ThreadPoolExecutor(at_once) as threads:
        stores = [clickhouse.Store(dsn, 300.0) for _ in range(at_once)]
        for store in stores:
            stack.callback(store.close)
        began = time.perf_counter()
        list(threads.map(work, stores))
        return time.perf_counter() - began


def _records(address: str, total: int) -> dict[tuple[str, int], list[Record]]:
    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": "bench-own", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe(list(events.event_topics()))
    found: dict[tuple[str, int], list[Record]] = {}
    count = 0
    while count < total:
        for message in consumer.consume(10_000, 1.0):
            place = (str(message.topic()), int(message.partition() or 0))
            offset, stamp = int(message.offset() or 0), message.timestamp()[1]
            record = Record(offset, stamp, message.key(), message.value())
            found.setdefault(place, []).append(record)
            count += 1
    consumer.close()
    return found


def end_to_end(traces: int, per_trace: int) -> tuple[float, float]:
    """(events/s, seconds) from events in Kafka to chains and events in ClickHouse.

    Join and load run as processes of their own, started when the events are there; their start is
    part of the time.
    """
    with engines() as (both, address, dsn):
        total = produce(address, traces, per_trace)
        client = clickhouse.connect(dsn)
        began = time.perf_counter()
        with closing(client), workers(both, "join", "load"):
            there = until(
                lambda: _count(client, "events") == total and _count(client, "chains") == traces,
                PATIENCE_S,
            )
            seconds = time.perf_counter() - began
            assert there, f"after {seconds:.0f} s not all of {total:,} events are there"
    return total / seconds, seconds


def measure(traces: int, per_trace: int) -> dict[str, Any]:
    """All figures of one run."""
    figures: dict[str, Any] = {"record_us": record_us()}
    note(f"recording costs {figures['record_us']:.1f} µs")
    figures["rules_us"] = rules_us(per_trace)
    note(f"all rules cost {figures['rules_us']:.1f} µs per event")
    with engines() as (_, address, dsn):
        note(f"producing {traces * per_trace:,} events")
        total = produce(address, traces, per_trace)
        before = consume(address, total, "bench-before")
        gc.collect()
        note(f"joining (plain consume: {before:,.0f} events/s)")
        figures["join_events_per_s"], figures["join_cpu_us"] = join(address, total)
        after = consume(address, total, "bench-after")
        check_chains(address, traces, per_trace)
        figures["consume_events_per_s"] = (before + after) / 2
        note(f"loading (join: {figures['join_events_per_s']:,.0f} events/s)")
        figures["load_rows_per_s"] = load(address, dsn, total)
        figures |= clickhouse_alone(address, dsn, total)
    note("end to end")
    figures["end_to_end_events_per_s"], figures["end_to_end_s"] = end_to_end(traces, per_trace)
    figures["join_of_consume"] = figures["join_events_per_s"] / figures["consume_events_per_s"]
    loaded = figures["load_rows_per_s"]
    figures["load_of_clickhouse_avro"] = loaded / figures["clickhouse_avro_rows_per_s"]
    figures["load_of_clickhouse_one"] = loaded / figures["clickhouse_one_rows_per_s"]
    figures["load_of_clickhouse"] = loaded / figures["clickhouse_rows_per_s"]
    figures["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "events": total,
        "machine": f"{platform.machine()}, {platform.python_version()}, {hot_path()}",
        **figures,
    }


ROWS_SHOWN = (
    ("record_us", "recording an event, calling thread", "µs"),
    ("consume_events_per_s", "plain consume", "events/s"),
    ("join_events_per_s", "join with verdicts, exactly once", "events/s"),
    ("join_of_consume", "  of plain consume", "ratio"),
    ("join_cpu_us", "  CPU per event", "µs"),
    ("rules_us", "  all rules, per event", "µs"),
    ("load_rows_per_s", "load into ClickHouse", "rows/s"),
    ("clickhouse_avro_rows_per_s", "ClickHouse alone, ready-made Avro of the same rows", "rows/s"),
    ("load_of_clickhouse_avro", "  load of that", "ratio"),
    ("clickhouse_one_rows_per_s", "ClickHouse alone, what the load hands over", "rows/s"),
    ("load_of_clickhouse_one", "  load of that", "ratio"),
    ("clickhouse_rows_per_s", "ClickHouse alone, the same, as many inserts at once", "rows/s"),
    ("load_of_clickhouse", "  load of that", "ratio"),
    ("end_to_end_events_per_s", "Kafka to queryable chains, both workers", "events/s"),
)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=100_000)
    parser.add_argument("--events-per-trace", type=int, default=EVENTS_PER_TRACE_MIN)
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    options = parser.parse_args()
    figures = measure(options.traces, options.events_per_trace)
    options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    table = Table(title=f"{figures['events']:,} events of about 570 bytes, {figures['machine']}")
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_column("unit")
    for key, text, unit in ROWS_SHOWN:
        value = figures[key]
        table.add_row(text, f"{value:,.3f}" if value < 1 else f"{value:,.1f}", unit)
    Console().print(table)


if __name__ == "__main__":
    main()
