"""What an HTTP request asks of ClickHouse: the statement, the data behind it, the settings.

Pure: bytes and strings in, values out. Used by the embedded front. It reads only as much SQL as
ClickHouse's own HTTP handler has to: where an INSERT's statement ends and its data begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trailweave.deploy.local.clickhouse_errors import own

#: An INSERT's statement, without its data, is looked for in so many bytes of a body.
STATEMENT_BYTES_MAX = 1 << 20

#: URL parameters that are the interface's own; every other one is a setting of the query.
_OWN = frozenset(
    {"query", "database", "default_format", "user", "password", "quota_key", "query_id"}
    | {"session_id", "session_timeout", "session_check", "close_session"}
    | {"compress", "decompress", "enable_http_compression", "http_zlib_compression_level"}
    | {"wait_end_of_query", "buffer_size", "stacktrace", "role", "client_protocol_version"}
)
#: Formats that stay whole when a result comes in pieces: no header, footer or separator.
_STREAMABLE = frozenset(
    {"native", "rowbinary", "tsv", "tabseparated", "tsvraw", "tabseparatedraw", "csv", "tskv"}
    | {"jsoneachrow", "jsonlines", "ndjson", "jsoncompacteachrow", "linesasstring", "null"}
)
_FORMAT = re.compile(r"\bFORMAT\s+(\w+)", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_SESSION_STATE = re.compile(r"\s*(?:SET\s+(?!ROLE\b|DEFAULT\b)|USE\s)", re.IGNORECASE)
_TEMPORARY = re.compile(r"\s*CREATE\s+(?:OR\s+REPLACE\s+)?TEMPORARY\s", re.IGNORECASE)
_INSERT = re.compile(rb"INSERT\b", re.IGNORECASE)
_SELECT = re.compile(rb"(?:SELECT|WITH|FROM)\b", re.IGNORECASE)
# Strings, quoted names and comments are stepped over as a whole; so a FORMAT inside is no FORMAT.
_TOKEN = re.compile(
    rb"""(?P<space>\s+|--[^\n]*|\#[!\ ][^\n]*|/\*.*?\*/)
    |(?P<quoted>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`)
    |(?P<word>[A-Za-z_0-9]+)
    |(?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
_DATA_GAP = re.compile(rb"[ \t\f]*;?[ \t\f]*(?:\r?\n)?")


@dataclass(frozen=True, slots=True)
class Insert:
    """`INSERT … FORMAT X` with its data in the body: what to hand to the engine, and as what."""

    head: str
    format: str
    #: Where the data begins, in the text that was split.
    data_at: int


@dataclass(frozen=True, slots=True)
class Options:
    """The parts of a request's URL that are not the statement."""

    database: str | None
    query_id: str | None
    session_id: str | None
    session_timeout_s: float
    default_format: str
    wait_end: bool
    settings: Mapping[str, str]
    parameters: Mapping[str, str]
    readonly: str | None


@dataclass(slots=True)
class Session:
    """What the statements of one session left behind: `SET` and `USE`, to be said again."""

    statements: list[str] = field(default_factory=list)
    expires_at: float = 0.0


def split_insert(text: bytes) -> Insert | None:
    """The statement in front of an INSERT's data; None for anything without data behind FORMAT."""
    position = _skip_space(text, 0)
    if _INSERT.match(text, position) is None:
        return None
    after_format = False
    format_at = 0
    limit = min(len(text), STATEMENT_BYTES_MAX)
    while position < limit:
        token = _TOKEN.match(text, position)
        if token is None:
            break
        position = token.end()
        if token.lastgroup != "word":
            after_format = after_format and token.lastgroup == "space"
            continue
        word = token.group().upper()
        if after_format:
            head = decode_statement(text[:format_at])
            return Insert(head, token.group().decode(), _data_at(text, position))
        if word == b"VALUES":
            # Data follows at once, and it is SQL; the engine reads the statement as a whole.
            return None
        after_format = word == b"FORMAT"
        format_at = token.start()
    return None


def result_format(statement: str, default: str) -> tuple[str, bool]:
    """The format that a result will have, and whether its pieces may be sent one by one."""
    named = _FORMAT.findall(statement)
    if not named:
        return default, default.lower() in _STREAMABLE
    # The word may also stand in a string; then the result is only not streamed.
    return named[-1], all(name.lower() in _STREAMABLE for name in named)


def is_select(statement: str) -> bool:
    """Whether the engine can give the result in pieces: it does that for no SHOW or EXPLAIN."""
    text = statement.encode()
    position = _skip_space(text, 0)
    while text[position : position + 1] == b"(":
        position = _skip_space(text, position + 1)
    return _SELECT.match(text, position) is not None


def is_session_state(statement: str) -> bool:
    return _SESSION_STATE.match(statement) is not None


def refuse_temporary(statement: str) -> None:
    """Temporary tables live in a connection, and the front has one for each request."""
    if _TEMPORARY.match(statement):
        raise own(
            48,
            "NOT_IMPLEMENTED",
            "the embedded front keeps no temporary tables; create a table with ENGINE = Memory",
        )


def options(pairs: Iterable[tuple[str, str]], headers: Mapping[str, str], method: str) -> Options:
    """Sort a URL's parameters into the interface's own, query parameters and settings."""
    known: dict[str, str] = {}
    settings: dict[str, str] = {}
    parameters: dict[str, str] = {}
    for name, value in pairs:
        if name in _OWN:
            known[name] = value
        elif name.startswith("param_"):
            parameters[name.removeprefix("param_")] = value
        else:
            settings[name] = value
    _refuse_what_is_not_offered(known)
    for name in (*settings, *parameters):
        if _NAME.match(name) is None:
            raise own(36, "BAD_ARGUMENTS", f"couldn't read a setting's name: {name!r}")
    readonly = settings.pop("readonly", None)
    if method != "POST" and readonly in (None, "0"):
        # As a server does: GET must not change anything.
        readonly = "2"
    return Options(
        database=known.get("database") or headers.get("x-clickhouse-database"),
        query_id=known.get("query_id"),
        session_id=known.get("session_id"),
        session_timeout_s=float(known.get("session_timeout", "60")),
        default_format=known.get("default_format")
        or headers.get("x-clickhouse-format", "TabSeparated"),
        wait_end=known.get("wait_end_of_query") == "1",
        settings=settings,
        parameters=parameters,
        readonly=readonly,
    )


def set_statement(settings: Mapping[str, str], prefix: str = "") -> str:
    """`SET a = '1', b = '2'`; ClickHouse reads a number or a bool from a string as well."""
    return "SET " + ", ".join(f"{prefix}{k} = {quote(v)}" for k, v in settings.items())


def quote(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quote_name(text: str) -> str:
    """An identifier."""
    return "`" + text.replace("\\", "\\\\").replace("`", "\\`") + "`"


def _refuse_what_is_not_offered(known: Mapping[str, str]) -> None:
    for name in ("compress", "decompress"):
        if known.get(name, "0") not in ("0", "false", ""):
            raise own(
                48,
                "NOT_IMPLEMENTED",
                f"the embedded front doesn't offer {name}=1; use Content-Encoding, or"
                f" enable_http_compression=1 with Accept-Encoding",
            )
    if known.get("role"):
        raise own(48, "NOT_IMPLEMENTED", "the embedded engine has no roles")


def _data_at(text: bytes, position: int) -> int:
    gap = _DATA_GAP.match(text, position)
    return gap.end() if gap else position


def _skip_space(text: bytes, position: int) -> int:
    while (token := _TOKEN.match(text, position)) and token.lastgroup == "space":
        position = token.end()
    return position


def decode_statement(text: bytes) -> str:
    """A statement's text. Raises the engine's syntax error for bytes that are none."""
    try:
        return text.decode()
    except UnicodeDecodeError as why:
        raise own(62, "SYNTAX_ERROR", f"Syntax error: the statement isn't UTF-8 ({why})") from why
