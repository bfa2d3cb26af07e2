"""From a session that is due to the records its transaction carries. Pure.

`close` decides nothing by itself: `lanes` said that the session is due, and the bytes say whether
it is a chain or a fragment. That content decides is what lets a recovery agree with the run before
it.
"""

from dataclasses import dataclass
from typing import Any

from trailweave.stream_processors.chain import Reading, Source, read
from trailweave.stream_processors.lanes import Lane, Refused
from trailweave.stream_processors.session import Session
from trailweave.stream_processors.verdict import (
    Circumstances,
    RulesConfig,
    Verdict,
    chain_record,
    finding_record,
    judge,
    unjudged,
)


@dataclass(frozen=True, slots=True)
class Closing:
    """What one closed session adds to the transaction under way."""

    session: bytes
    trace_id: str
    tenant: str
    #: `chain` or `fragment`: the header by which recovery and load know the record.
    kind: str
    chain: dict[str, Any]
    findings: list[dict[str, Any]]
    refused: list[Refused]


def close(
    session: Session, reason: str, lane: Lane, source: Source, config: RulesConfig
) -> Closing | None:
    """The session's records; None when it is not to be closed yet.

    That is so when its total was reached although a producer's own count was not: the total had
    been made up by a producer that nobody announced.
    """
    reading = read(session, source)
    if reason == "counts" and not reading.chain.whole():
        return None
    return _closing(session.key, reading, reason, lane, config)


def _closing(key: bytes, reading: Reading, reason: str, lane: Lane, config: RulesConfig) -> Closing:
    chain = reading.chain
    whole = bool(chain.of("session_started"))
    verdict: Verdict = judge(chain, config) if whole else unjudged(chain)
    at = Circumstances(
        state="closed" if whole else "fragment",
        close_reason=reason,
        part=lane.number + 1,
        judged_at_ms=max(lane.clock_ms(), chain.times[1]),
        dead_lettered=len(reading.refused),
    )
    return Closing(
        key,
        chain.trace_id,
        chain.tenant,
        "chain" if whole else "fragment",
        chain_record(chain, verdict, at, config),
        [finding_record(finding, chain, at, config) for finding in verdict.findings],
        reading.refused,
    )
