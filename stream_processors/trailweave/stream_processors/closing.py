"""From a session that is due to the records its transaction carries. Pure.

`close` decides nothing by itself: `lanes` said that the session is due, and the bytes say whether
it is a chain or a fragment. That content decides is what lets a recovery agree with the run before
it. `seal` makes the bytes. Worker and child processes (`closers`) both call these two.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from trailweave.schemas.codec import Encoder
from trailweave.stream_processors.chain import Chain, Reading, Source, read
from trailweave.stream_processors.lanes import Refused
from trailweave.stream_processors.session import Session
from trailweave.stream_processors.verdict import (
    Circumstances,
    Own,
    RulesConfig,
    Verdict,
    chain_record,
    finding_record,
    judge,
    unjudged,
)

#: Kafka's own default limit of a record is 1 MiB; a chain record over this drops its event list
#: and keeps ranges and root.
CHAIN_BYTES_MAX: Final = 900_000


class Closing(NamedTuple):
    """What one closed session adds to the transaction under way."""

    session: bytes
    trace_id: str
    tenant: str
    #: `chain`, `fragment` or `open`: the header by which recovery and load know the record.
    kind: str
    chain: dict[str, Any]
    findings: list[dict[str, Any]]
    refused: list[Refused]


class Sealed(NamedTuple):
    """A closing as it is produced, and what the figures tell of it."""

    session: bytes
    trace_id: str
    tenant: str
    kind: str
    close_reason: str
    duplicates: int
    #: The chain record.
    chain: bytes
    #: The rule and the record of each finding.
    findings: list[tuple[str, bytes]]
    refused: list[Refused]


class Then(Protocol):
    """What a record says of its lane: a `Turn`, or a child's `Job`."""

    @property
    def number(self) -> int:
        """Of the record's transaction."""
        ...

    @property
    def clock_ms(self) -> int:
        """The lane's clock."""
        ...


def seal(closing: Closing, encoder: Encoder) -> Sealed:
    """The closing's records as bytes."""
    chain = encoder.encode("chain", closing.chain)
    if len(chain) > CHAIN_BYTES_MAX:
        chain = encoder.encode("chain", {**closing.chain, "evidence": []})
    return Sealed(
        closing.session,
        closing.trace_id,
        closing.tenant,
        closing.kind,
        closing.chain["close_reason"],
        closing.chain["duplicates"],
        chain,
        [(finding["rule"], encoder.encode("finding", finding)) for finding in closing.findings],
        closing.refused,
    )


def dead_letter(
    topic: str, partition: int, refused: Refused, closing: Sealed | None
) -> dict[str, Any]:
    """The record of bytes that are no event, of a session that closes or of none."""
    return {
        "topic": topic,
        "partition": partition,
        "offset": refused.offset,
        "stage": "join",
        "code": refused.reason.code,
        "reason": refused.reason.detail,
        "recorded_at": refused.recorded_ms,
        "tenant": closing.tenant if closing else None,
        "trace_id": closing.trace_id if closing else None,
        "key": refused.key,
        "value": refused.value,
    }


def close(
    session: Session,
    reason: str,
    turn: Then,
    source: Source,
    config: RulesConfig,
    own: Own | None = None,
) -> Closing | None:
    """The session's records; None when it is not to be closed yet.

    That is so when its total was reached although a producer's own count was not: the total had
    been made up by a producer that nobody announced.
    """
    reading = read(session, source)
    if reason == "counts" and not reading.chain.whole():
        return None
    return _closing(session.key, reading, reason, turn, config, own)


def _closing(
    key: bytes,
    reading: Reading,
    reason: str,
    turn: Then,
    config: RulesConfig,
    own: Own | None,
) -> Closing:
    chain = reading.chain
    whole = bool(chain.of("session_started"))
    verdict: Verdict = judge(chain, config, own=own) if whole else unjudged(chain)
    at = Circumstances(
        state="closed" if whole else "fragment",
        close_reason=reason,
        part=turn.number,
        judged_at_ms=max(turn.clock_ms, chain.times[1]),
        dead_lettered=len(reading.refused),
    )
    return records(key, chain, verdict, at, config, reading.refused)


def records(
    key: bytes,
    chain: Chain,
    verdict: Verdict,
    at: Circumstances,
    config: RulesConfig,
    refused: Sequence[Refused] = (),
) -> Closing:
    """The chain record and the findings of a chain, closed or not."""
    return Closing(
        key,
        chain.trace_id,
        chain.tenant,
        "chain" if at.state == "closed" else at.state,
        chain_record(chain, verdict, at, config),
        [finding_record(finding, chain, at, config) for finding in verdict.findings],
        list(refused),
    )
