"""What Trailweave and its users' clients ask of ClickHouse: the same answers from both kinds."""

from __future__ import annotations

import gzip
import http.client
import io
import json
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode, urlsplit

import clickhouse_connect
import fastavro
import lz4.frame
import pytest
import zstandard
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

DDL = (
    "CREATE TABLE t (a UInt64, b String, d String DEFAULT concat(b, '!'), e String EPHEMERAL,"
    " g String MATERIALIZED concat('m', e)) ENGINE = MergeTree ORDER BY a"
    " SETTINGS non_replicated_deduplication_window = 100"
)
AVRO = {
    "type": "record",
    "name": "row",
    "fields": [{"name": "a", "type": "long"}, {"name": "b", "type": "bytes"}],
}
EVERY_BYTE = bytes(range(256))


class Raw:
    """Plain HTTP, for what a library hides."""

    def __init__(self, dsn: str) -> None:
        self.at = urlsplit(dsn)

    def ask(
        self, method: str, url: dict[str, str], body: bytes = b"", **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        assert self.at.hostname is not None
        if self.at.username:
            pair = f"{self.at.username}:{self.at.password}".encode()
            headers["Authorization"] = "Basic " + b64encode(pair).decode()
        connection = http.client.HTTPConnection(self.at.hostname, self.at.port, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        query = urlencode({"database": self.at.path.lstrip("/"), **url})
        connection.request(method, "/?" + query, body, sent)
        answer = connection.getresponse()
        found = answer.status, answer.headers, answer.read()
        connection.close()
        return found


@pytest.fixture
def raw(either_clickhouse: str) -> Raw:
    return Raw(either_clickhouse)


def avro(rows: int) -> bytes:
    out = io.BytesIO()
    fastavro.writer(out, AVRO, [{"a": i, "b": EVERY_BYTE} for i in range(rows)])
    return out.getvalue()


def test_rows_come_back_as_they_went_in(client: Client) -> None:
    client.command(DDL)
    summary = client.insert("t", [[1, "x"], [2, "y\x00'\\\n"]], column_names=["a", "b"])
    rows = client.query(
        "SELECT a, b, d FROM t WHERE a >= {least:UInt64} ORDER BY a", parameters={"least": 1}
    ).result_rows

    assert summary.written_rows == 2
    assert rows == [(1, "x", "x!"), (2, "y\x00'\\\n", "y\x00'\\\n!")]


def test_parameters_are_values_and_not_sql(client: Client) -> None:
    odd = "it's \\ \t \n {a:String} ; DROP TABLE t --"

    assert client.query("SELECT {s:String}", parameters={"s": odd}).result_rows == [(odd,)]
    assert client.query("SELECT {l:Array(String)}", parameters={"l": ["a", "b"]}).result_rows == [
        (["a", "b"],)
    ]


def test_a_setting_belongs_to_one_query(client: Client) -> None:
    """A token that outlived its insert would make the engine swallow all later ones."""
    client.command(DDL)
    token = {"insert_deduplication_token": "once"}
    for _ in range(3):
        client.insert("t", [[1, "x"]], column_names=["a", "b"], settings=token)
    for number in range(5):
        client.insert("t", [[10 + number, "x"]], column_names=["a", "b"])
    client.query("SELECT 1", settings={"max_threads": 1, "max_result_rows": 1})

    assert client.query("SELECT count() FROM t").result_rows == [(6,)]
    assert len(client.query("SELECT number FROM numbers(10)").result_rows) == 10
    assert client.query("SELECT getSetting('insert_deduplication_token')").result_rows == [("",)]


def test_a_repeated_token_is_inserted_once_even_with_other_bytes_and_pieces(raw: Raw) -> None:
    raw.ask("POST", {"query": DDL})
    statement = {"query": "INSERT INTO t (a) FORMAT TSV", "insert_deduplication_token": "k"}
    for body in (b"1\n2\n", b"3\n", b"".join(b"%d\n" % n for n in range(300_000))):
        assert raw.ask("POST", statement, body)[0] == 200

    assert raw.ask("POST", {}, b"SELECT sum(a), count() FROM t")[2] == b"3\t2\n"


@pytest.mark.parametrize("compression", [None, "gzip", "zstd", "lz4"])
def test_an_avro_container_goes_in_raw(client: Client, compression: str | None) -> None:
    client.command(DDL)
    body = avro(1000)
    packed = {
        None: body,
        "gzip": gzip.compress(body),
        "zstd": zstandard.compress(body),
        "lz4": lz4.frame.compress(body),
    }[compression]
    client.raw_insert(
        "t", ["a", "b"], insert_block=packed, fmt="Avro", compression=compression or ""
    )

    hexes = client.query("SELECT count(), any(hex(b)), max(a) FROM t").result_rows
    assert hexes == [(1000, EVERY_BYTE.hex().upper(), 999)]


def test_a_broken_container_inserts_nothing(client: Client) -> None:
    client.command(DDL)
    with pytest.raises(DatabaseError):
        client.raw_insert("t", ["a", "b"], insert_block=avro(1000)[:-20], fmt="Avro")

    assert client.query("SELECT count() FROM t").result_rows == [(0,)]


def test_an_ephemeral_column_feeds_a_materialized_one(raw: Raw) -> None:
    raw.ask("POST", {"query": DDL})
    raw.ask("POST", {"query": "INSERT INTO t (a, e) FORMAT TSV"}, b"1\tx\n")

    assert raw.ask("POST", {}, b"SELECT a, d, g FROM t")[2] == b"1\t!\tmx\n"


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("INSERT INTO t (a) FORMAT TSV", b"1\n2\n"),
        ("INSERT INTO t (a) FORMAT TSV 1\n", b"2\n"),
        ("", b"INSERT INTO t (a) FORMAT TSV\n1\n2\n"),
        ("", b"/* FORMAT CSV */ insert into t (a) -- FORMAT CSV\n format TSV 1\n2\n"),
        ("INSERT INTO t (a) SETTINGS log_comment = 'FORMAT CSV' FORMAT TSV", b"1\n2\n"),
        ("INSERT INTO t (a) VALUES", b"(1), (2)"),
        ("", b"INSERT INTO t (a) VALUES (1), (2)"),
        ("INSERT INTO t (a) SELECT number + 1 FROM numbers(2)", b""),
    ],
)
def test_data_is_found_wherever_an_insert_carries_it(raw: Raw, url: str, body: bytes) -> None:
    raw.ask("POST", {"query": DDL})
    status, _, text = raw.ask("POST", {"query": url} if url else {}, body)

    assert (status, text) == (200, b"")
    assert raw.ask("POST", {}, b"SELECT a FROM t ORDER BY a")[2] == b"1\n2\n"


def test_arrow_goes_both_ways(client: Client) -> None:
    pa = pytest.importorskip("pyarrow")
    client.command(DDL)
    client.insert_arrow("t", pa.table({"a": pa.array([1, 2], pa.uint64()), "b": ["x", "y"]}))

    table = client.query_arrow("SELECT a, d FROM t ORDER BY a", use_strings=True)
    assert table.to_pydict() == {"a": [1, 2], "d": ["x!", "y!"]}


@pytest.mark.parametrize("compress", [False, "lz4", "zstd", "gzip"])
def test_large_results_stream_whole(either_clickhouse: str, compress: bool | str) -> None:
    client = clickhouse_connect.get_client(dsn=either_clickhouse, compress=compress)
    with client.query_row_block_stream(
        "SELECT number, toString(number) FROM numbers(500000)"
    ) as blocks:
        numbers = [row[0] for block in blocks for row in block]
    client.close()

    assert numbers == list(range(500_000))


@pytest.mark.parametrize(
    "name", ["TSVWithNames", "JSON", "JSONEachRow", "CSVWithNames", "Values", "XML"]
)
def test_large_results_have_one_head_and_one_foot(raw: Raw, name: str) -> None:
    statement = b"SELECT number AS n FROM numbers(300000) FORMAT " + name.encode()
    status, headers, text = raw.ask("POST", {}, statement)

    assert status == 200
    assert headers["X-ClickHouse-Format"] == name
    if name == "JSON":
        assert len(json.loads(text)["data"]) == 300_000
    elif name.endswith("WithNames"):
        lines = text.splitlines()
        assert (lines[0].strip(b'"'), len(set(lines))) == (b"n", 300_001)
    elif name == "XML":
        assert text.count(b"<?xml") == 1
    else:
        assert text.count(b"299999") == 1


@pytest.mark.parametrize(
    ("url", "body", "status", "code"),
    [
        ({}, b"SELECT * FROM nowhere", 404, "60"),
        ({"database": "nowhere"}, b"SELECT 1", 404, "81"),
        ({"no_such_setting": "1"}, b"SELECT 1", 404, "115"),
        ({}, b"SELECT 1 FROM", 400, "62"),
        ({}, b"SELECT 1; SELECT 2", 400, "62"),
        ({}, b"SELECT throwIf(1)", 500, "395"),
        ({}, b"SELECT {a:String}", 500, "456"),
        (
            {"max_execution_time": "1"},
            b"SELECT sum(sipHash64(number)) FROM numbers(1e12)",
            408,
            "159",
        ),
        ({"max_result_rows": "2"}, b"SELECT number FROM numbers(10)", 500, "396"),
        ({"readonly": "1"}, b"CREATE TABLE t (a Int8) ENGINE = Memory", 500, "164"),
    ],
)
def test_errors_carry_clickhouses_codes(
    raw: Raw, url: dict[str, str], body: bytes, status: int, code: str
) -> None:
    found, headers, text = raw.ask("POST", url, body)

    assert (found, headers["X-ClickHouse-Exception-Code"]) == (status, code)
    assert text.startswith(f"Code: {code}. DB::Exception: ".encode())


def test_an_error_in_the_middle_of_a_result_reaches_the_client(client: Client) -> None:
    statement = "SELECT throwIf(number = 3000000) FROM numbers(5000000) SETTINGS max_threads = 1"

    with (
        pytest.raises((DatabaseError, OperationalError)),
        client.query_row_block_stream(statement) as blocks,
    ):
        assert sum(len(block) for block in blocks) < 5_000_000


def test_get_reads_and_does_not_write(raw: Raw) -> None:
    assert raw.ask("GET", {"query": "SELECT 1"})[2] == b"1\n"
    assert raw.ask("GET", {"query": DDL})[1]["X-ClickHouse-Exception-Code"] == "164"
    assert raw.ask("GET", {})[2] == b"Ok.\n"


def test_answers_say_what_was_done(raw: Raw) -> None:
    raw.ask("POST", {"query": DDL})
    headers = raw.ask("POST", {"query": "INSERT INTO t (a) FORMAT TSV"}, b"1\n2\n3\n")[1]
    assert json.loads(headers["X-ClickHouse-Summary"])["written_rows"] == "3"

    headers = raw.ask("POST", {"query_id": "mine", "default_format": "CSV"}, b"SELECT 1")[1]
    assert headers["X-ClickHouse-Query-Id"] == "mine"
    assert headers["X-ClickHouse-Format"] == "CSV"
    assert headers["X-ClickHouse-Timezone"]


def test_a_session_keeps_what_was_set_in_it_alone(raw: Raw) -> None:
    raw.ask("POST", {"session_id": "one" + raw.at.path}, b"SET max_block_size = 77")
    ask = b"SELECT getSetting('max_block_size')"

    assert raw.ask("POST", {"session_id": "one" + raw.at.path}, ask)[2] == b"77\n"
    assert raw.ask("POST", {"session_id": "two" + raw.at.path}, ask)[2] != b"77\n"
    assert raw.ask("POST", {}, ask)[2] != b"77\n"


def test_many_clients_at_once_lose_nothing(either_clickhouse: str, client: Client) -> None:
    client.command(DDL)

    def work(number: int) -> int:
        mine = clickhouse_connect.get_client(dsn=either_clickhouse)
        for row in range(10):
            mine.insert("t", [[number * 1000 + row, "x"]], column_names=["a", "b"])
        ask = "SELECT count() FROM t WHERE intDiv(a, 1000) = {n:UInt64}"
        found = mine.query(ask, parameters={"n": number}).result_rows
        mine.close()
        return int(found[0][0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [10] * 8
    assert client.query("SELECT count() FROM t").result_rows == [(80,)]


def test_a_hundred_megabytes_go_in_at_once(raw: Raw) -> None:
    raw.ask("POST", {"query": DDL})
    line = b"1\t" + b"x" * 1021 + b"\n"
    status, _, text = raw.ask("POST", {"query": "INSERT INTO t (a, b) FORMAT TSV"}, line * 100_000)

    assert (status, text) == (200, b"")
    assert (
        raw.ask("POST", {}, b"SELECT count(), sum(length(b)) FROM t")[2] == b"100000\t102100000\n"
    )


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("SHOW TABLES", "t"),
        ("show tables -- SELECT", "t"),
        ("/* SELECT */ SHOW CREATE TABLE t", "CREATE TABLE"),
        ("DESCRIBE TABLE t", "UInt64"),
        ("EXPLAIN SELECT a FROM t", "Read"),
        ("EXISTS TABLE t", "1"),
        ("SHOW COLUMNS FROM t", "UInt64"),
        ("(SELECT 'x')", "x"),
        ("WITH 'x' AS x SELECT x", "x"),
    ],
)
def test_what_reads_and_is_no_select_is_answered_too(
    client: Client, statement: str, words: str
) -> None:
    client.command(DDL)

    assert words in str(client.command(statement))
    assert words in str(client.query(statement).result_rows)
