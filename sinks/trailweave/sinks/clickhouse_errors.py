"""What ClickHouse's refusals mean: which error of ours each becomes, and what a person can do.

Pure; `clickhouse` asks. ClickHouse's own text is never passed on: of an error about data it quotes
the data, of one about a statement the statement.
"""

from typing import Final

from trailweave.schemas.errors import Fatal, Rejected, Retryable, TrailError

#: The statement, the tables or the rights are to blame: repeating it changes nothing.
_FATAL: Final = {
    16: "the columns", 36: "the statement", 43: "the statement", 44: "the statement",
    47: "the columns", 53: "the columns", 60: "a missing table", 62: "the statement",
    81: "a missing database", 115: "a setting", 192: "the user", 193: "the password",
    194: "the password", 497: "the user's rights", 516: "the user or the password",
}  # fmt: skip

#: Some of the rows are to blame, and the others may be fine.
_ROWS: Final = {
    6, 26, 27, 33, 38, 41, 69, 70, 72, 117, 131, 321, 349, 376, 407, 469, 691,
}  # fmt: skip

_BUSY: Final = "it goes on when there is less to do"
_REPLICAS: Final = "look after its replicas and Keeper"
#: What a server says that can't take rows now, and what helps.
_AWAY: Final = {
    159: ("took longer than it may", "raise load.insert_timeout_s or give it faster disks"),
    164: ("may only be read", "let the load's user write (readonly = 0)"),
    201: ("says that a quota is used up", "raise the quota of the load's user"),
    202: ("has too many queries at once", _BUSY),
    203: ("has too many connections", _BUSY),
    209: ("lost a connection of its own", _REPLICAS),
    210: ("lost a connection of its own", _REPLICAS),
    225: ("has no Keeper", _REPLICAS),
    236: ("is shutting down", "start it again"),
    241: ("has too little memory", "give it more, or lower load.batch_rows_max"),
    242: ("takes no writes into this table", _REPLICAS),
    243: ("has no space left", "give it more disk"),
    252: ("has too many parts to merge", "let it merge, or lower load.inserts_per_s_max"),
    285: ("has too few live replicas", _REPLICAS),
    286: ("waits for the quorum of an earlier write", _REPLICAS),
    319: ("can't say what became of it", _REPLICAS),
    394: ("was told to stop it", _BUSY),
    439: ("has no thread for it", _BUSY),
    999: ("has trouble with its Keeper", _REPLICAS),
}

#: How the network's errors begin to differ, by the name of the class that says it.
_NETWORK: Final = {
    "NewConnectionError": "nobody answers at its address",
    "ConnectTimeoutError": "nobody answers at its address in time",
    "NameResolutionError": "its host name is unknown",
    "ReadTimeoutError": "it did not answer in time",
    "ConnectionRefusedError": "nobody answers at its address",
    "ConnectionResetError": "it closed the connection without an answer",
    "BrokenPipeError": "it closed the connection without an answer",
    "RemoteDisconnected": "it closed the connection without an answer",
    "IncompleteRead": "its answer broke off",
    "_IncompleteResponseError": "its answer broke off",
    "ProtocolError": "it closed the connection without an answer",
}


def translated(failed: str, error: Exception) -> TrailError:
    """The error to raise for one of the driver's; `failed` is our sentence's beginning.

    `Retryable` if the same may succeed later, `Rejected` if only rows are to blame, else `Fatal`.
    """
    code = getattr(error, "code", None)
    if "avro::" in str(error):
        code = 117  # what the reader itself would call it: INCORRECT_DATA
    # An error about data quotes the data; only its number and name may go into a message.
    name = getattr(error, "name", None) or type(error).__name__
    known = f"{name}, code {code}" if code is not None else name
    if code in _ROWS:
        return Rejected("refused_by_clickhouse", f"ClickHouse refuses the row ({known})")
    if code in _FATAL:
        hint = "; apply the tables first" if code in (60, 81) else ""
        return Fatal(f"{failed}: {_FATAL[code]} ({known}){hint}")
    if code in _AWAY:
        said, helps = _AWAY[code]
        return Retryable(f"{failed}: ClickHouse {said} ({known}); {helps}")
    if "CERTIFICATE_VERIFY_FAILED" in str(error) or "CertificateError" in str(error):
        known = "its certificate is not trusted; see ca_cert and server_host_name in the DSN"
    elif code is None and (network := _network(error)):
        known = f"{network}; is ClickHouse running?"
    return Retryable(f"{failed}: {known}")


def _network(error: BaseException) -> str | None:
    """What the innermost error that we know says."""
    found, seen = None, 0
    at: BaseException | None = error
    while at is not None and seen < 8:  # chains may be circles
        found = _NETWORK.get(type(at).__name__, found)
        inner = getattr(at, "reason", None)
        at = inner if isinstance(inner, BaseException) else at.__cause__ or at.__context__
        seen += 1
    return found
