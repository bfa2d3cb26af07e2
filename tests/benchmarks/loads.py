"""Our load beside ClickHouse's own Kafka engine: the same events into tables of the same form.

The engine gets what it needs to read Avro by itself: Confluent's framing and a schema registry, a
small one in this process. It fills fewer columns than ours (no raw bytes, nothing of nested types)
and is at least once. Rates are taken between the first rows that can be seen and the last; CPU is
that of the worker, where there is one, and of ClickHouse.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from trailweave.deploy.fleet.send import FleetProducer
from trailweave.deploy.local.engines import LocalEngines
from trailweave.schemas import codec, events
from trailweave.sinks import clickhouse
from trailweave.sinks.tables import PROFILES

from tests.benchmarks import feed
from tests.benchmarks.peers import Figures, NotRunError, WrongError
from tests.benchmarks.processes import Watch
from tests.benchmarks.workers import EndedError, workers

TOPIC: Final = "bench.confluent"
POLL_S: Final = 0.05
PATIENCE_S: Final = 60.0
#: Columns of ours that the engine can fill by name: (column, type).
COLUMNS: Final = {
    "event_type": "String",
    "event_id": "String",
    "trace_id": "String",
    "tenant": "String",
    "producer_id": "String",
    "producer_epoch": "Int64",
    "trace_seq": "Nullable(Int64)",
    "occurred_at": "DateTime64(6, 'UTC')",
    "span_id": "Nullable(String)",
    "parent_span_id": "Nullable(String)",
    "agent_id": "Nullable(String)",
    "agent_version": "Nullable(String)",
    "environment": "String",
    "purpose": "String",
    "data_class": "Nullable(String)",
    "capture": "String",
    "delayed": "Bool",
    "call_id": "Nullable(String)",
    "tool": "Nullable(String)",
    "server": "Nullable(String)",
    "credential_id": "Nullable(String)",
    "decision_id": "Nullable(String)",
    "policy_id": "Nullable(String)",
}


def measure(traces: int, per_trace: int, partitions: int) -> list[Figures]:
    """Our load, then the engine."""
    with feed.engines(partitions) as both:
        feed.produce(both.kafka.address, feed.sessions(traces, per_trace))
        total = traces * per_trace
        return [_ours(both, total), _engine(both, traces, per_trace, partitions)]


def _ours(both: LocalEngines, total: int) -> Figures:
    name = "Trailweave load, exactly once"
    try:
        with workers(both, "load") as pids:
            pids |= {"clickhouse": both.clickhouse.pid}
            return _rate(name, both.clickhouse.dsn, total, pids)
    except (WrongError, EndedError) as error:
        return Figures(name, why_not=f"does not count: {error}")


def _engine(both: LocalEngines, traces: int, per_trace: int, partitions: int) -> Figures:
    name = "ClickHouse's Kafka engine, one consumer"
    dsn = both.clickhouse.dsn.rpartition("/")[0] + "/engine"
    try:
        _reframe(both.kafka.address, traces, per_trace, partitions)
        with _registry() as url:
            _create(both, dsn, url)
            total = traces * per_trace
            return _rate(name, dsn, total, {"clickhouse": both.clickhouse.pid})
    except NotRunError as error:
        return Figures(name, why_not=f"not run: {error}")
    except WrongError as error:
        return Figures(name, why_not=f"does not count: {error}")


def _rate(name: str, dsn: str, total: int, pids: dict[str, int]) -> Figures:
    client = clickhouse.connect(dsn)
    seen: list[tuple[float, int]] = []
    deadline = time.monotonic() + PATIENCE_S
    with Watch(**pids) as watch:
        while not seen or seen[-1][1] < total:
            there = sum(count for (count,) in rows(client, "SELECT count() FROM events"))
            if there > (seen[-1][1] if seen else 0):
                seen.append((time.time(), there))
                deadline = time.monotonic() + PATIENCE_S
            if time.monotonic() > deadline:
                raise WrongError(f"{total - (seen[-1][1] if seen else 0):,} rows are missing")
            time.sleep(POLL_S)
    found = rows(client, "SELECT count(), uniqExact(event_id) FROM events")[0]
    client.close()
    if found != (total, total):
        raise WrongError(f"{found[0]:,} rows of {found[1]:,} events instead of {total:,}")
    (began, first), (ended, last) = seen[0], seen[-1]
    if last == first:
        raise WrongError("all rows came at once; measure with more events")
    cpu_s = sum(usage.cpu_s(began, ended) for usage in watch.usage.values())
    peak = sum(usage.peak_bytes for usage in watch.usage.values())
    moved = last - first
    return Figures(name, moved / (ended - began), cpu_s / moved * 1e6, peak_mb=peak / 2**20)


def rows(client: Any, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query; none while its tables are not there yet."""
    try:
        return [tuple(row) for row in client.query(query).result_rows]
    except Exception as error:
        if "UNKNOWN_TABLE" in str(error):
            return []
        raise


# --- what ClickHouse's engine needs ----------------------------------------------------------


def _reframe(address: str, traces: int, per_trace: int, partitions: int) -> None:
    """The same sessions in Confluent's framing: the ids are those of `_registry`."""
    client = AdminClient({"bootstrap.servers": address})
    for created in client.create_topics([NewTopic(TOPIC, partitions, 1)]).values():
        created.result(30)
    numbers = {kind.fingerprint: i for i, kind in enumerate(events.event_types().values())}
    with FleetProducer(address) as producer:
        for sent in feed.sessions(traces, per_trace):
            key, start = codec.frame(sent.value)
            framed = codec.CONFLUENT + numbers[key].to_bytes(4) + sent.value[start:]
            producer.send(TOPIC, sent.key, framed)


@contextmanager
def _registry() -> Iterator[str]:
    """A registry that knows the event types; its URL."""
    schemas = [json.dumps(events.event_schema(name)) for name in events.event_types()]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            number = int(self.path.partition("/schemas/ids/")[2].partition("?")[0])
            body = json.dumps({"schema": schemas[number]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def _create(both: LocalEngines, dsn: str, registry: str) -> None:
    """The tables of ours, the engine's table, and the view that moves rows from it to ours."""
    client = clickhouse.connect(both.clickhouse.dsn)
    client.command("CREATE DATABASE engine")
    own = clickhouse.connect(dsn)
    clickhouse.apply_tables(own, PROFILES["ai_act"])
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    try:
        own.command(
            f"CREATE TABLE queue ({columns}) ENGINE = Kafka SETTINGS"
            f" kafka_broker_list = '{both.kafka.address}', kafka_topic_list = '{TOPIC}',"
            " kafka_group_name = 'bench-engine', kafka_format = 'AvroConfluent',"
            " kafka_num_consumers = 1, kafka_max_block_size = 25000,"
            " kafka_poll_max_batch_size = 25000, kafka_flush_interval_ms = 1000,"
            f" format_avro_schema_registry_url = '{registry}',"
            " input_format_avro_allow_missing_fields = 1"
        )
    except Exception as error:  # the client's own kind of error has no name of ours
        # chDB 4.4 says so and makes the table all the same.
        if "Shutdown was called" not in str(error):
            raise NotRunError(str(error).splitlines()[0][:200]) from error
    names = ", ".join(
        name if "Null" not in kind else f"ifNull({name}, {_zero(kind)}) AS {name}"
        for name, kind in COLUMNS.items()
    )
    place = "toInt32(_partition) AS partition, toInt64(_offset) AS offset"
    select = f"SELECT _topic AS topic, {place}, _timestamp_ms AS recorded_at, {names} FROM queue"  # noqa: S608 - our own names
    own.command(f"CREATE MATERIALIZED VIEW mover TO events AS {select}")


def _zero(kind: str) -> str:
    return "''" if "String" in kind else "0"
