"""ClickHouse's errors as the HTTP interface tells them: a code, a name, a status.

Used by the embedded front only. Clients see what a server would have sent them.
"""

from __future__ import annotations

import re

#: Which HTTP status a server gives to which error; all others are 500.
_STATUS_BY_NAME = {
    "REQUIRED_PASSWORD": 401,
    **dict.fromkeys(("UNKNOWN_USER", "WRONG_PASSWORD", "AUTHENTICATION_FAILED"), 403),
    **dict.fromkeys(("SET_NON_GRANTED_ROLE", "ACCESS_DENIED"), 403),
    **dict.fromkeys(("BAD_ARGUMENTS", "CANNOT_COMPILE_REGEXP", "CANNOT_PARSE_TEXT"), 400),
    **dict.fromkeys(("CANNOT_PARSE_ESCAPE_SEQUENCE", "CANNOT_PARSE_QUOTED_STRING"), 400),
    **dict.fromkeys(("CANNOT_PARSE_DATE", "CANNOT_PARSE_DATETIME", "CANNOT_PARSE_NUMBER"), 400),
    **dict.fromkeys(("CANNOT_PARSE_IPV4", "CANNOT_PARSE_IPV6", "CANNOT_PARSE_UUID"), 400),
    "CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING": 400,
    "CANNOT_PARSE_INPUT_ASSERTION_FAILED": 400,
    **dict.fromkeys(("DUPLICATE_COLUMN", "ILLEGAL_COLUMN", "THERE_IS_NO_COLUMN"), 400),
    **dict.fromkeys(("UNKNOWN_ELEMENT_IN_AST", "UNKNOWN_TYPE_OF_AST_NODE"), 400),
    **dict.fromkeys(("TOO_DEEP_AST", "TOO_BIG_AST", "UNEXPECTED_AST_STRUCTURE"), 400),
    **dict.fromkeys(("SYNTAX_ERROR", "INCORRECT_DATA", "TYPE_MISMATCH"), 400),
    "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE": 400,
    **dict.fromkeys(("UNKNOWN_TABLE", "UNKNOWN_FUNCTION", "UNKNOWN_IDENTIFIER"), 404),
    **dict.fromkeys(("UNKNOWN_TYPE", "UNKNOWN_STORAGE", "UNKNOWN_DATABASE"), 404),
    **dict.fromkeys(("UNKNOWN_SETTING", "UNKNOWN_DIRECTION_OF_SORTING", "UNKNOWN_FORMAT"), 404),
    **dict.fromkeys(("UNKNOWN_AGGREGATE_FUNCTION", "UNKNOWN_DATABASE_ENGINE"), 404),
    **dict.fromkeys(("UNKNOWN_TYPE_OF_QUERY", "UNKNOWN_ROLE"), 404),
    "QUERY_IS_TOO_LARGE": 413,
    "NOT_IMPLEMENTED": 501,
    **dict.fromkeys(("SOCKET_TIMEOUT", "CANNOT_OPEN_FILE", "CANNOT_SCHEDULE_TASK"), 503),
    "TIMEOUT_EXCEEDED": 408,
    "UNSUPPORTED_MEDIA_TYPE": 415,
}
_CODE = re.compile(r"Code: (\d+)\. ")
_NAME = re.compile(r"\(([A-Z][A-Z0-9_]+)\)(?: \(version [^)]*\))?\s*$")


class ClickHouseError(Exception):
    """One error of the engine, or of the front in the engine's words."""

    def __init__(self, code: int, name: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.name = name
        self.text = text
        self.status = _STATUS_BY_NAME.get(name, 500)


def from_engine(error: BaseException) -> ClickHouseError:
    """What chDB raised; its message is ClickHouse's."""
    text = str(error)
    code = _CODE.search(text)
    name = _NAME.search(text)
    if code is None or name is None:
        return ClickHouseError(1002, "UNKNOWN_EXCEPTION", f"Code: 1002. DB::Exception: {text}")
    return ClickHouseError(int(code.group(1)), name.group(1), text)


def own(code: int, name: str, detail: str) -> ClickHouseError:
    """An error that the front itself finds, in the form of the engine's."""
    return ClickHouseError(code, name, f"Code: {code}. DB::Exception: {detail} ({name})")
