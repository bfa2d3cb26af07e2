"""Tables, views and inserts on a real ClickHouse, without Kafka."""

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from trailweave.schemas import codec, events
from trailweave.schemas.errors import Fatal, Rejected, Retryable
from trailweave.schemas.examples import example
from trailweave.sinks import rows, tables
from trailweave.sinks.ask import ask
from trailweave.sinks.clickhouse import Store, apply_tables, check_tables, connect
from trailweave.sinks.load_build import Builder, Record, Source
from trailweave.sinks.load_insert import Inserter
from trailweave.sinks.load_job import Job, Seen
from trailweave.sinks.load_plan import Range, Target
from trailweave.sinks.metrics import LoadMetrics

AI_ACT = tables.PROFILES["ai_act"]
TOOLS = Source("trailweave.tools", str(uuid.UUID(int=9)), 0)


@pytest.fixture
def client(database: str) -> Iterator[Any]:
    with contextlib.closing(connect(database)) as client:
        apply_tables(client, AI_ACT)
        yield client


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    with contextlib.closing(Store(database, 5.0)) as store:
        yield store


def stored(client: Any) -> list[tuple[int, str]]:
    return list(client.query("SELECT offset, call_id FROM events ORDER BY offset").result_rows)


def values(n: int) -> list[bytes]:
    record, encoder = example("tool_requested"), codec.Encoder()
    return [encoder.encode("tool_requested", {**record, "call_id": f"call_{i}"}) for i in range(n)]


def glued(events_: list[bytes]) -> tuple[rows.Layout, list[bytes]]:
    """What the worker would insert if it didn't check the bytes first."""
    now = rows.number(int(time.time() * 1000))
    kind = rows.number(events.event_names().index("tool_requested"))
    prefix = rows.place_prefix(TOOLS.topic, TOOLS.topic_id, TOOLS.partition)
    return rows.current_events(), [
        rows.event_block(prefix + rows.number(offset) + now + kind, value, 10)
        for offset, value in enumerate(events_)
    ]


def test_the_workers_rows_are_what_these_tests_glue() -> None:
    key = example("tool_requested")["trace_id"].encode()
    (insert,) = Builder().build(TOOLS, [Record(0, 1, key, values(1)[0])]).inserts
    insert.give_up_columns()
    layout, (row,) = glued(values(1))

    assert (layout, 1) == (insert.layout, len(insert.rows))
    # Their times differ.
    assert row.rpartition(values(1)[0])[2] == insert.rows[0].rpartition(values(1)[0])[2]


def test_without_the_check_a_forged_record_still_stays_in_its_own_row(
    client: Any, store: Store
) -> None:
    three = values(3)
    three[1] += three[1][10:]

    store.insert(*glued(three), "t")

    assert stored(client) == [(0, "call_0"), (1, "call_1"), (2, "call_2")]


def test_without_the_check_a_truncated_record_fails_and_stores_nothing(
    client: Any, store: Store
) -> None:
    three = values(3)
    three[1] = three[1][:200]

    with pytest.raises(Rejected):
        store.insert(*glued(three), "t")

    assert stored(client) == []


def test_a_token_swallows_its_own_repeat_and_nothing_else(client: Any, store: Store) -> None:
    counts = []
    for token in ("a", "a", "b"):
        store.insert(*glued(values(2)), token)
        counts.append(len(stored(client)))
    # Another connection's insert, without a token: none may have leaked into the engine.
    insert(client, "events", offset=9)

    assert counts == [2, 2, 4]
    assert len(stored(client)) == 5


REFUSING = {
    "has too many parts to merge .TOO_MANY_PARTS, code 252.; let it merge": {},
    "may only be read .READONLY, code 164.; let the load's user write": {"readonly": 1},
}


@pytest.mark.parametrize(("said", "settings"), REFUSING.items(), ids=["parts", "readonly"])
def test_what_a_busy_clickhouse_says_is_told_with_what_helps(
    client: Any, database: str, said: str, settings: dict[str, str | int]
) -> None:
    if not settings:
        throw_at(client, 1)
        insert(client, "events", offset=9)
    with (
        contextlib.closing(Store(database, 5.0, settings)) as store,
        pytest.raises(Retryable, match=f"couldn't insert into events: ClickHouse {said}"),
    ):
        store.insert(*glued(values(2)), "t")
    throw_at(client, 3000)
    with contextlib.closing(Store(database, 5.0)) as store:
        store.insert(*glued(values(2)), "t")

    assert [row for row in stored(client) if row[0] != 9] == [(0, "call_0"), (1, "call_1")]


def throw_at(client: Any, parts: int) -> None:
    settings = f"parts_to_delay_insert = {parts}, parts_to_throw_insert = {parts}"
    client.command(f"ALTER TABLE events MODIFY SETTING {settings}")


def test_a_row_that_clickhouse_refuses_keeps_no_other_from_its_table(
    client: Any, store: Store
) -> None:
    refused = []
    for _ in range(2):  # the second attempt is a redo by another worker
        job = job_of(values(9))
        insert_ = job.built.inserts[0]
        insert_.give_up_columns()
        insert_.rows[3] = cut_short(insert_.rows[3])
        Inserter(store, LoadMetrics(), AI_ACT.keep_days).attempt(job)
        refused.append(dict(job.refused))

    assert [offset for offset, _ in stored(client)] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert [list(found) for found in refused] == [[("events", (3, 0))]] * 2
    assert job.letters()[0][1].detail.startswith("ClickHouse refuses the row (")


def cut_short(row: bytes) -> bytes:
    """A block that says that it is longer."""
    return row[:-300] + rows.SYNC


def job_of(events_: list[bytes]) -> Job:
    """A range of them, about to be attempted."""
    key = example("tool_requested")["trace_id"].encode()
    now = int(time.time() * 1000)
    records = [Record(offset, now, key, value) for offset, value in enumerate(events_)]
    target = Target("cluster", TOOLS.topic_id, "group", TOOLS.partition)
    built = Builder().build(TOOLS, records)
    job = Job(TOOLS, target, Range(0, len(records) - 1, 0), records, built, Seen(), doubt=False)
    job.leased_until = time.monotonic() + 60
    return job


def test_a_table_that_refuses_every_row_is_a_persons_to_mend(client: Any, store: Store) -> None:
    job = job_of(values(12))
    (insert_,) = job.built.inserts
    insert_.give_up_columns()
    insert_.rows = [cut_short(row) for row in insert_.rows]

    with pytest.raises(Fatal, match=r"couldn't insert 12 rows of .*trailweave tables check"):
        Inserter(store, LoadMetrics(), AI_ACT.keep_days).attempt(job)

    assert stored(client) == []


def test_what_is_acknowledged_and_not_there_is_inserted_again(client: Any, store: Store) -> None:
    """chDB acknowledges an insert that a constraint refuses behind the reader."""
    client.command("ALTER TABLE events ADD CONSTRAINT c CHECK call_id != 'call_1'")
    job = job_of(values(2))

    with pytest.raises(Fatal, match="couldn't find 2 rows"):
        Inserter(store, LoadMetrics(), AI_ACT.keep_days).attempt(job)
    client.command("ALTER TABLE events DROP CONSTRAINT c")
    Inserter(store, LoadMetrics(), AI_ACT.keep_days).attempt(job)

    assert [offset for offset, _ in stored(client)] == [0, 1]


Fault = Literal["lost", "late", "memory", "nothing"]


class Proxy(ThreadingHTTPServer):
    """Between the load and ClickHouse; does to the next inserts what `faults` says."""

    daemon_threads = True

    def __init__(self, dsn: str) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.behind = urlsplit(dsn)
        self.faults: list[Fault] = []
        #: Inserts on their way, as the path and the body.
        self.late: list[tuple[str, bytes]] = []
        place = self.behind.netloc.rpartition(":")[0]
        self.dsn = self.behind._replace(netloc=f"{place}:{self.server_port}").geturl()

    def forward(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[Any, bytes]:
        """ClickHouse's answer and its content."""
        assert self.behind.hostname is not None
        behind = HTTPConnection(self.behind.hostname, self.behind.port)
        with contextlib.closing(behind):
            behind.request("POST", path, body, headers)
            answer = behind.getresponse()
            return answer, answer.read()


class Passing(BaseHTTPRequestHandler):
    """One connection of the load."""

    server: Proxy

    def do_POST(self) -> None:
        body = b"".join(self.pieces())
        passed = ("authorization", "content-encoding", "content-type")
        headers = {name: value for name, value in self.headers.items() if name.lower() in passed}
        insert_ = b"INSERT INTO" in body[:20]
        fault = self.server.faults.pop(0) if insert_ and self.server.faults else "nothing"
        if fault == "memory":
            used_up = {"X-ClickHouse-Exception-Code": "241"}
            self.reply(500, used_up, b"Code: 241. DB::Exception: no (MEMORY_LIMIT_EXCEEDED)")
            return
        if fault == "late":
            self.server.late.append((self.path, body))
            return
        answer, content = self.server.forward(self.path, body, headers)
        if fault == "nothing":
            self.reply(answer.status, dict(answer.headers), content)

    do_GET = do_POST  # noqa: N815 - the name that http.server looks for

    def reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def pieces(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with Proxy(database) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.shutdown()


def attempt(inserter: Inserter, job: Job) -> str:
    """As the worker does: what was said, or nothing if it is done."""
    try:
        inserter.attempt(job)
    except Retryable as error:
        job.doubt = True
        return str(error)
    return ""


CLOSED = "couldn't insert into events: it closed the connection without an answer"
USED_UP = "couldn't insert into events: ClickHouse has too little memory"


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (["lost"], CLOSED),
        (["late"], CLOSED),
        (["late", "lost"], CLOSED),
        (["late", "late", "lost"], CLOSED),
        (["memory"], USED_UP),
    ],
    ids=str,
)
def test_whatever_becomes_of_answers_every_row_is_there_once(
    client: Any, proxy: Proxy, faults: list[Fault], said: str
) -> None:
    proxy.faults = faults.copy()
    job = job_of(values(20))
    with contextlib.closing(Store(proxy.dsn, 5.0)) as store:
        inserter = Inserter(store, LoadMetrics(), AI_ACT.keep_days)
        answers = [attempt(inserter, job) for _ in range(len(faults) + 1)]
    for path, body in proxy.late:
        assert proxy.forward(path, body, {})[0].status == 200

    assert [answer.startswith(said) for answer in answers] == [True] * len(faults) + [False]
    assert answers[-1] == ""
    assert [offset for offset, _ in stored(client)] == list(range(20))


def test_clickhouse_that_is_away_is_told(client: Any, database: str) -> None:
    there = urlsplit(database)
    place = there.netloc.rpartition(":")[0]
    nobody = there._replace(netloc=f"{place}:9").geturl()

    with (
        contextlib.closing(Store(nobody, 5.0)) as store,
        pytest.raises(Retryable, match="nobody answers at its address; is ClickHouse"),
    ):
        store.insert(*glued(values(1)), "t")


def test_an_insert_is_one_part(client: Any, store: Store) -> None:
    store.insert(*glued(values(1) * 5_000), "t")

    assert client.query(
        "SELECT rows FROM system.parts WHERE table = 'events' AND database = currentDatabase()"
        " AND min_block_number = max_block_number AND rows > 0"
    ).result_rows[0] == (5_000,)


def test_what_is_there_is_told_by_place(client: Any, store: Store) -> None:
    store.insert(*glued(values(5)), "t")
    place = (TOOLS.topic_id, TOOLS.partition)

    assert store.present("events", *place, 1, 3) == {(1, 0), (2, 0), (3, 0)}
    assert store.newest("events", *place, 2) == 4
    assert store.newest("events", *place, 5) == -1
    assert store.newest("dead_letters", *place, 0) == -1


def test_content_goes_before_its_row_does(client: Any) -> None:
    old = datetime.now(UTC) - timedelta(days=60)
    insert(client, "events", event_id="old", record="content", recorded_at=old)
    insert(client, "events", event_id="new", record="content")
    client.command("OPTIMIZE TABLE events FINAL")

    found = client.query("SELECT event_id, record FROM events ORDER BY event_id").result_rows
    assert found == [("new", "content"), ("old", "")]


# --- tables ----------------------------------------------------------------------------------


def test_applying_the_tables_again_changes_nothing(client: Any) -> None:
    apply_tables(client, AI_ACT)

    assert check_tables(client, AI_ACT) == []


def test_drift_is_told(client: Any) -> None:
    client.command("ALTER TABLE findings MODIFY COLUMN summary LowCardinality(String)")
    client.command("DROP TABLE handles SYNC")
    client.command("ALTER TABLE heartbeats MODIFY SETTING non_replicated_deduplication_window = 5")

    drift = check_tables(client, tables.PROFILES["pci"])

    assert "findings.summary has the type LowCardinality(String), not String" in drift
    assert "the table handles is missing" in drift
    assert "heartbeats lacks the setting non_replicated_deduplication_window = 20000" in drift
    assert "events keeps rows for 185 days, not 366" in drift


def test_the_newest_revision_of_reassess_wins_over_the_joins(client: Any) -> None:
    revisions = [
        (0, "join", "open", 4),
        (1, "join", "chain", 5),
        (2, "join", "fragment", 6),
        (3, "reassess", "chain", 6),
        (4, "join", "fragment", 8),
        # It had been read before that fragment was there.
        (5, "reassess", "chain", 6),
        (6, "reassess", "chain", 8),
    ]

    assert latest_chains(client, revisions) == [
        (0, 0), (1, 0), (1, 1), (3, 0), (3, 1), (5, 1), (6, 0),
    ]  # fmt: skip


def test_a_session_that_closes_after_its_fragment_was_judged_alone_is_the_joins(
    client: Any,
) -> None:
    revisions = [
        (1, "join", "fragment", 5),
        (2, "reassess", "chain", 5),
        (3, "join", "chain", 9),
        (4, "reassess", "chain", 9),
    ]

    assert latest_chains(client, revisions) == [(1, 1), (2, 0), (3, 1), (4, 0)]


def latest_chains(client: Any, revisions: list[tuple[int, str, str, int]]) -> list[tuple[int, int]]:
    """Offset of the latest, and whether a reassessment is pending, after each one came."""
    sql = "SELECT offset, reassessment_pending FROM chains_latest WHERE trace_id = 't'"
    found: list[tuple[int, int]] = []
    for offset, writer, kind, part in revisions:
        insert(client, "chains", offset=offset, w=writer, kind=kind, part=part)
        found += client.query(sql).result_rows
    return found


def test_the_latest_state_of_a_finding_is_the_one_with_the_highest_offset(client: Any) -> None:
    """Whatever the broker's clock said, and also where a rebuild has written rows twice."""
    states = [(5, "open", 0), (9, "retracted", 2), (7, "open", 1), (9, "retracted", 2)]
    for offset, state, before_s in states:
        finding(client, offset=offset, state=state, recorded_at=ago(before_s))

    assert latest_findings(client) == [("f", 0, 9, "retracted")]


def test_a_state_in_another_partition_is_ordered_by_broker_time(client: Any) -> None:
    finding(client, partition=0, offset=100, state="open", recorded_at=ago(60))
    finding(client, partition=0, offset=101, state="retracted", recorded_at=ago(50))
    finding(client, partition=3, offset=4, state="open", recorded_at=ago(10))
    finding(client, partition=3, offset=2, state="retracted", recorded_at=ago(5))

    assert latest_findings(client) == [("f", 3, 4, "open")]


def test_findings_of_other_traces_and_tenants_keep_their_own_state(client: Any) -> None:
    finding(client, offset=1)
    finding(client, offset=2, finding_id="g", state="retracted")
    finding(client, offset=3, trace_id="u", state="retracted")
    finding(client, offset=4, tenant="b", state="retracted")

    assert latest_findings(client) == [("f", 0, 1, "open"), ("g", 0, 2, "retracted")]


@pytest.mark.parametrize("column", ["trace_id", "finding_id"])
def test_a_filter_on_the_latest_findings_reaches_the_tables_indexes(
    client: Any, column: str
) -> None:
    client.command(
        "INSERT INTO findings (topic_id, offset, tenant, rule, trace_id, finding_id, detected_at,"
        " recorded_at, chain_state) SELECT generateUUIDv4(), number, 'a', 'r', toString(number),"
        " toString(number), now() + number, now(), 'closed' FROM numbers(100000)"
    )
    sql = "EXPLAIN indexes = 1 SELECT * FROM findings_latest WHERE {column:Identifier} = '77'"
    plan = client.command(sql, parameters={"column": column})
    all_of_it = max(int(of) for of in re.findall(r"Granules: \d+/(\d+)", plan))
    table = r"ReadFromMergeTree \(\S+findings\)\n(?:.*\n)??.*\| Granules: (\d+)"
    read = re.findall(table, plan)

    assert read
    assert all_of_it > 10
    assert sum(map(int, read)) < all_of_it / 4


@pytest.mark.parametrize(
    ("newer", "expected"),
    [
        ([("open", ["f"], 5)], "open"),
        ([("open", ["f"], 5), ("open", [], 6)], "retracted"),
        ([("open", ["f"], 5), ("chain", ["g"], 7)], "retracted"),
        ([("open", ["f"], 5), ("chain", ["f"], 7)], "open"),
        ([("open", ["f"], 5), ("fragment", [], 8)], "open"),
        ([], "open"),
        ([("open", [], 4)], "open"),
    ],
    ids=[
        "said by the newest record", "taken back while open", "not found at the close",
        "found at the close", "a fragment says nothing", "its record is not loaded yet",
        "only an older record is loaded",
    ],
)  # fmt: skip
def test_what_was_found_in_an_open_session_holds_as_long_as_its_newest_record_says_it(
    client: Any, newer: list[tuple[str, list[str], int]], expected: str
) -> None:
    finding(client, offset=1, chain_state="open", detected_at=at(5))
    for offset, (kind, found, second) in enumerate(newer):
        named = [(finding_id, "r", "high", "s") for finding_id in found]
        insert(
            client, "chains",
            offset=offset, w="join", kind=kind, judged_at=at(second), findings=named,
        )  # fmt: skip

    assert latest_findings(client) == [("f", 0, 1, expected)]


def at(second: int) -> datetime:
    """By the lane's clock."""
    return datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)


def finding(client: Any, **columns: Any) -> None:
    insert(client, "findings", **{"finding_id": "f", "rule": "r", "state": "open", **columns})


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def latest_findings(client: Any) -> list[tuple[Any, ...]]:
    """Those of trace t of tenant a."""
    return list(
        client.query(
            "SELECT finding_id, partition, offset, state FROM findings_latest"
            " WHERE tenant = 'a' AND trace_id = 't' ORDER BY finding_id"
        ).result_rows
    )


def test_dead_letters_alone_make_no_session(client: Any) -> None:
    at = {"first_recorded_at": ago(9), "last_recorded_at": ago(1)}
    fragment = at | {
        "w": "join",
        "kind": "fragment",
        "state": "fragment",
        "highest_severity": "none",
    }
    insert(client, "chains", trace_id="letters", offset=1, dead_lettered=1, **fragment)
    insert(client, "chains", trace_id="both", offset=2, events=1, **fragment)
    insert(client, "chains", trace_id="both", offset=3, dead_lettered=1, **fragment)
    any_text = ("tenant", "agent", "identity", "credential", "tool", "finding", "word", "state")
    listed = ask(
        client, "sessions", **dict.fromkeys((*any_text, "completeness"), ""), severity_rank=1,
        since=ago(60), until=ago(0), limit=10,
    )  # fmt: skip

    assert [(row["trace_id"], row["events"]) for row in listed] == [("both", 1)]
    assert [row["trace_id"] for row in ask(client, "demo_chains")] == ["both"]
    sums = ask(client, "demo_sums")[0]
    assert (sums["sessions"], sums["events_judged"]) == (1, 3)


def test_a_repeat_collapses_and_a_conflict_stays(client: Any) -> None:
    for offset, record in ((0, "a"), (1, "a"), (2, "b")):
        insert(client, "events", offset=offset, event_id="e", record=record)

    found = client.query("SELECT offset FROM events_distinct WHERE trace_id = 't'").result_rows

    assert sorted(found) == [(0,), (2,)]


def insert(client: Any, table: str, **columns: Any) -> None:
    """One row of trace t of tenant a, as if load had written it."""
    place = {"topic_id": uuid.UUID(int=1), "partition": 0, "recorded_at": datetime.now(UTC)}
    row = {**place, "tenant": "a", "trace_id": "t", **columns}
    client.insert(table, [list(row.values())], column_names=list(row))
