"""Tables, views and inserts on a real ClickHouse, without Kafka."""

import contextlib
import re
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from trailweave.schemas import codec, events
from trailweave.schemas.errors import Fatal
from trailweave.schemas.examples import example
from trailweave.sinks import rows, tables
from trailweave.sinks.ask import ask
from trailweave.sinks.clickhouse import Store, apply_tables, check_tables, connect
from trailweave.sinks.load_build import Builder, Record, Source

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
    pieces: list[bytes] = []
    for offset, value in enumerate(events_):
        columns = prefix + rows.number(offset) + now + kind + rows.text(value)
        rows.glue(pieces, columns, value, 10)
    return rows.current_events(), pieces


def test_the_workers_rows_are_what_these_tests_glue() -> None:
    key = example("tool_requested")["trace_id"].encode()
    (insert,) = Builder().build(TOOLS, [Record(0, 1, key, values(1)[0])]).inserts
    layout, pieces = glued(values(1))

    assert (layout, len(pieces)) == (insert.layout, len(insert.pieces))
    assert pieces[3] == insert.pieces[3]


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

    with pytest.raises(Fatal):
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
        (0, "join", "open"),
        (1, "join", "chain"),
        (2, "join", "fragment"),
        (3, "reassess", "chain"),
        (4, "join", "fragment"),
    ]
    sql = "SELECT offset, reassessment_pending FROM chains_latest WHERE trace_id = 't'"
    latest = []
    for offset, writer, kind in revisions:
        insert(client, "chains", offset=offset, w=writer, kind=kind)
        latest += client.query(sql).result_rows

    assert latest == [(0, 0), (1, 0), (1, 1), (3, 0), (3, 1)]


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
        " recorded_at) SELECT generateUUIDv4(), number, 'a', 'r', toString(number),"
        " toString(number), now() + number, now() FROM numbers(100000)"
    )
    sql = "EXPLAIN indexes = 1 SELECT * FROM findings_latest WHERE {column:Identifier} = '77'"
    plan = client.command(sql, parameters={"column": column})
    granules = [tuple(map(int, found)) for found in re.findall(r"Granules: (\d+)/(\d+)", plan)]

    assert max(of for _, of in granules) > 10
    assert granules[-1][0] < granules[0][1] / 4


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
