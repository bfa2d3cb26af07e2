"""ClickHouse at the edge: creating and checking tables, inserting, asking what is there.

Every exception of the driver becomes one of our errors here (`clickhouse_errors`). Calls block; a
`Store` belongs to one thread at a time.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError, ProgrammingError
from trailweave.schemas.errors import Fatal, Rejected, Retryable, TrailError
from trailweave.sinks import tables
from trailweave.sinks.clickhouse_errors import translated
from trailweave.sinks.rows import Layout

#: The container goes to the socket in pieces of this size.
_PIECE_BYTES: Final = 1 << 20

#: One insert is one block, read in order by one thread: only then does a token stand for exactly
#: its rows, and a table's insert for one part per time partition.
_ONE_BLOCK: Final[dict[str, str | int]] = {
    "async_insert": 0,
    "insert_deduplicate": 1,
    "max_threads": 1,
    "max_insert_threads": 1,
    "input_format_parallel_parsing": 0,
    "max_insert_block_size": 10_000_000,
    "min_insert_block_size_rows": 0,
    "min_insert_block_size_bytes": 0,
    "max_partitions_per_insert_block": 0,
    "input_format_null_as_default": 1,
    "input_format_defaults_for_omitted_fields": 1,
    # A range holds no record twice: to collapse its rows would be a merge for nothing, a quarter of
    # what an insert costs.
    "optimize_on_insert": 0,
}
#: The same for servers that have these; unknown settings would be refused.
_ONE_BLOCK_IF_KNOWN: Final[dict[str, str | int]] = {
    "max_insert_block_size_bytes": 0,
    "input_format_max_block_size_bytes": 0,
    "use_strict_insert_block_limits": 0,
}


def connect(dsn: str, read_timeout_s: float = 300.0) -> Any:
    """A client of clickhouse-connect; the DSN's query parameters are its options.

    TLS options among them: verify, ca_cert, client_cert, client_cert_key, server_host_name.
    Raises `Retryable` if the server is away, `Fatal` if it refuses us or the DSN makes no sense.
    """
    try:
        scheme = urlsplit(dsn).scheme
        if scheme not in (*_PLAIN_SCHEMES, *_TLS_SCHEMES):
            raise Fatal(_DSN_UNREADABLE)
        return clickhouse_connect.get_client(
            dsn=dsn,
            # The driver looks at the port only, and would talk plain HTTP to any but 443 and 8443.
            interface="https" if scheme in _TLS_SCHEMES else None,
            # A session would carry settings from one query to the next, a token for instance.
            autogenerate_session_id=False,
            send_receive_timeout=int(read_timeout_s),
        )
    except ProgrammingError:
        # What it quotes of the DSN may be a secret.
        raise Fatal(f"{_DSN_UNREADABLE}, and check the values of its options") from None
    except (ClickHouseError, OSError) as error:
        raise _whole("couldn't connect to ClickHouse", error) from error
    except TypeError as error:
        option = re.search(r"argument '(\w+)'", str(error))
        name = f" {option[1]}" if option else "s"
        raise Fatal(f"couldn't use the option{name} in the query of the ClickHouse DSN") from None
    except ValueError:
        # The error quotes what it took for the port: a password with a slash in it, for instance.
        raise Fatal(_DSN_UNREADABLE) from None


_PLAIN_SCHEMES: Final = ("http", "clickhouse", "clickhousedb")
_TLS_SCHEMES: Final = ("https", "clickhouses")
_DSN_UNREADABLE: Final = (
    "couldn't read the ClickHouse DSN; write it as https://user:password@host:8443/database,"
    " special characters of the password percent-encoded"
)


def apply_tables(client: Any, profile: tables.Profile) -> None:
    """Create what is missing; views are replaced. Never changes or drops a table."""
    for statement in tables.statements(profile):
        name = re.search(r"(?:EXISTS|VIEW) (\w+)", statement)
        _run(client, statement, f"couldn't create {name[1] if name else 'a table'}")


def check_tables(client: Any, profile: tables.Profile) -> list[str]:
    """How the database differs from the definitions, one sentence per difference."""
    rows = _query(
        client,
        "SELECT table, name, type FROM system.columns"
        " WHERE database = currentDatabase() AND default_kind != 'EPHEMERAL'",
    )
    found: dict[str, dict[str, str]] = {}
    for table, name, kind in rows:
        found.setdefault(table, {})[name] = _plain(kind)
    drift = []
    for table in tables.TABLES:
        wanted = {c.name: _plain(c.type) for c in tables.columns(table) if "." not in c.name}
        drift += _column_drift(table, wanted, found.get(table))
    drift += [f"the view {name} is missing" for name in tables.VIEWS if name not in found]
    return drift + _engine_drift(client, profile)


def _column_drift(table: str, wanted: dict[str, str], found: dict[str, str] | None) -> list[str]:
    if found is None:
        return [f"the table {table} is missing"]
    missing = [f"{table}.{name} is missing" for name in wanted if name not in found]
    return missing + [
        f"{table}.{name} has the type {found[name]}, not {kind}"
        for name, kind in wanted.items()
        if name in found and found[name] != kind
    ]


def _engine_drift(client: Any, profile: tables.Profile) -> list[str]:
    wanted = {
        match[1]: statement
        for statement in tables.statements(profile)
        if (match := re.search(r"EXISTS (\w+)", statement))
    }
    drift = []
    rows = _query(
        client,
        "SELECT name, engine, engine_full FROM system.tables WHERE database = currentDatabase()",
    )
    for name, engine, full in rows:
        if name not in wanted:
            continue
        ours = re.search(r"ENGINE = (\w+)", wanted[name])
        # Cloud services put a prefix of their own in front of the engine's name.
        if ours and not engine.endswith(ours[1].removeprefix("Replicated")):
            drift.append(f"{name} has the engine {engine}, not {ours[1]}")
        for setting, value in re.findall(r"(\w+) = ('?[\w]+'?)(?:,|$)", wanted[name]):
            if setting != "PARTITION" and f"{setting} = {value}" not in full:
                drift.append(f"{name} lacks the setting {setting} = {value}")
        kept = re.search(r"toIntervalDay\((\d+)\)(?!.*TO VOLUME)", full.partition(" TTL ")[2])
        if kept is None or int(kept[1]) != profile.keep_days:
            days = kept[1] if kept else "unlimited"
            drift.append(f"{name} keeps rows for {days} days, not {profile.keep_days}")
    return drift


def _plain(kind: str) -> str:
    return re.sub(r"\s+", "", kind)


class Store:
    """The tables as the load worker uses them; connects when first asked and after a failure."""

    def __init__(
        self, dsn: str, insert_timeout_s: float, settings: Mapping[str, str | int] | None = None
    ) -> None:
        self._dsn = dsn
        self._timeout_s = insert_timeout_s
        self._settings = dict(settings or {})
        self._client: Any = None
        self._insert_settings: dict[str, str | int] = {}

    def insert(self, layout: Layout, rows: Iterable[bytes], token: str) -> None:
        """Insert one container as one block. When this returns, the rows are durable.

        Raises `Retryable` when nothing is known about the rows: some, all or none may be there;
        `Rejected` when ClickHouse takes some of them in no case: then it has taken none.
        """
        settings = {**self._insert_settings_of(), "insert_deduplication_token": token}
        body = _in_pieces(layout.statement().encode() + b"\n", layout.header, rows)
        try:
            # Given as a generator, the driver can't repeat the request by itself: between two
            # attempts the worker has to look what the first one did.
            self._client.raw_insert(insert_block=body, settings=settings)
        except (ClickHouseError, OSError) as error:
            self.close()
            raise translated(f"couldn't insert into {layout.table}", error) from error

    def present(
        self, table: str, topic_id: str, partition: int, start: int, end: int
    ) -> set[tuple[int, int]]:
        """The (offset, ordinal) that the table has of a range; for `decide`."""
        p = "letter_" if table == "dead_letters" else ""
        return set(
            self._ask(
                f"SELECT DISTINCT {p}offset, ordinal FROM {table}"  # noqa: S608 - our own names
                f" WHERE {p}topic_id = {{topic_id:UUID}} AND {p}partition = {{partition:Int32}}"
                f" AND {p}offset BETWEEN {{start:Int64}} AND {{end:Int64}}",
                {"topic_id": topic_id, "partition": partition, "start": start, "end": end},
            )
        )

    def count(self, table: str, topic_id: str, partition: int, start: int, end: int) -> int:
        """How many (offset, ordinal) the table has of a range."""
        p = "letter_" if table == "dead_letters" else ""
        ((found,),) = self._ask(
            f"SELECT uniqExact({p}offset, ordinal) FROM {table}"  # noqa: S608 - our own names
            f" WHERE {p}topic_id = {{topic_id:UUID}} AND {p}partition = {{partition:Int32}}"
            f" AND {p}offset BETWEEN {{start:Int64}} AND {{end:Int64}}",
            {"topic_id": topic_id, "partition": partition, "start": start, "end": end},
        )
        return int(found)

    def newest(self, table: str, topic_id: str, partition: int, start: int) -> int:
        """The largest offset from `start` on that the table has of the partition, else -1."""
        p = "letter_" if table == "dead_letters" else ""
        ((offset,),) = self._ask(
            f"SELECT if(count() = 0, -1, max({p}offset)) FROM {table}"  # noqa: S608 - our names
            f" WHERE {p}topic_id = {{topic_id:UUID}} AND {p}partition = {{partition:Int32}}"
            f" AND {p}offset >= {{start:Int64}}",
            {"topic_id": topic_id, "partition": partition, "start": start},
        )
        return int(offset)

    def close(self) -> None:
        """Drop the connection; the next call makes a new one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> Any:
        if self._client is None:
            # Longer than the server may work on it: whoever gives up first must be the server.
            self._client = connect(self._dsn, self._timeout_s + 5)
        return self._client

    def _ask(self, sql: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        try:
            return _query(self._connected(), sql, parameters)
        except TrailError:
            self.close()
            raise

    def _insert_settings_of(self) -> dict[str, str | int]:
        client = self._connected()
        if not self._insert_settings:
            names = ", ".join(f"'{name}'" for name in _ONE_BLOCK_IF_KNOWN)
            sql = f"SELECT name FROM system.settings WHERE name IN ({names})"  # noqa: S608 - ours
            known = self._ask(sql, {})
            self._insert_settings = {
                **_ONE_BLOCK,
                **{name: _ONE_BLOCK_IF_KNOWN[name] for (name,) in known},
                # Without the bound, an insert could land after its token was forgotten.
                "max_execution_time": int(self._timeout_s),
                **self._settings,
            }
        if self._client is not client:
            raise Retryable("couldn't keep the connection to ClickHouse")
        return self._insert_settings


def _in_pieces(statement: bytes, header: bytes, rows: Iterable[bytes]) -> Iterator[bytes]:
    held, size = [statement, header], 0
    for row in rows:
        held.append(row)
        size += len(row)
        if size >= _PIECE_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def _query(
    client: Any, sql: str, parameters: dict[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    try:
        return list(client.query(sql, parameters=parameters).result_rows)
    except (ClickHouseError, OSError) as error:
        raise _whole("couldn't query ClickHouse", error) from error


def _run(client: Any, statement: str, failed: str) -> None:
    try:
        client.command(statement)
    except (ClickHouseError, OSError) as error:
        raise _whole(failed, error) from error


def _whole(failed: str, error: Exception) -> TrailError:
    """Where there are no rows of ours: data that a statement can't read is the tables' affair."""
    problem = translated(failed, error)
    return Fatal(f"{failed}: {problem}") if isinstance(problem, Rejected) else problem
