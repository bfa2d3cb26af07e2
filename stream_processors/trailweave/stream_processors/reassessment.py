"""A session judged anew, with all its parts as one chain. Pure.

The join judges a session once, when it closes; what comes later is a fragment, and rules change. A
reassessment reads every event of the session and makes the next revision: a chain record of its own
writer, the findings that are new, and the retraction of those that the whole chain does not bear
out. It takes no events: the join's records say what was read, and recovery leaves this one out.

The same events and rules give the same verdict as in the join: both read and judge by the same
functions. Finding ids repeat, so to do it twice adds revisions that say the same, and no finding.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from trailweave.schemas.codec import Encoder
from trailweave.stream_processors.chain import Source, read
from trailweave.stream_processors.closing import Sealed, records, seal
from trailweave.stream_processors.lanes import OFFSET_BITS, group_key
from trailweave.stream_processors.rules import RULES, RULES_VERSION
from trailweave.stream_processors.session import Session
from trailweave.stream_processors.verdict import (
    Circumstances,
    Own,
    OwnVerdict,
    RulesConfig,
    judge,
)

_RULES: Final = frozenset(rule.name for rule in RULES)


class Row(NamedTuple):
    """An event as it is stored: the topic's index and the offset, and its exact bytes."""

    topic: int
    offset: int
    recorded_ms: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Before:
    """What is stored of a session: its parts, taken together, and its latest verdict."""

    tenant: str
    trace_id: str
    lane: int
    #: The newest part of the join's, and the newest that a reassessment covers (-1: none).
    newest_part: int
    covered_part: int
    #: Whether a part is a fragment: then the parts have to be judged together.
    fragmented: bool
    #: Records that all parts have taken, dead letters left out.
    records: int
    dead_lettered: int
    rules_version: str
    rules_config_hash: str

    @property
    def pending(self) -> bool:
        """Whether a part came that no reassessment covers; dead letters alone make none."""
        return self.fragmented and self.newest_part > self.covered_part and self.records > 0

    def outdated(self, config: RulesConfig) -> bool:
        """Whether other rules than these judged it."""
        judged_by = (self.rules_version, self.rules_config_hash)
        return self.records > 0 and judged_by != (RULES_VERSION, config.digest)


class Revision(NamedTuple):
    """What a reassessment adds."""

    sealed: Sealed
    #: Findings that are new, and those that are taken back, encoded, with their rules.
    opened: list[tuple[str, bytes]]
    retracted: list[tuple[str, bytes]]

    @property
    def changed(self) -> frozenset[str]:
        """The rules whose findings change."""
        return frozenset(rule for rule, _ in (*self.opened, *self.retracted))


class NotLoadedError(Exception):
    """Events of the session are not stored yet, or not any more."""


def revise(  # noqa: PLR0913 - what a revision hangs on
    before: Before,
    rows: Sequence[Row],
    standing: Iterable[Mapping[str, Any]],
    source: Source,
    config: RulesConfig,
    encoder: Encoder,
    now_ms: int,
    *,
    own: Own | None = None,
) -> Revision:
    """The next revision of a session.

    `standing` are its open findings as records of the schema `finding`; of rules that are asked of
    no chain (fleet-level ones), or that could not be asked now, nothing is taken back. Raises
    `NotLoadedError`.
    """
    if len(rows) < before.records or not all(row.value for row in rows):
        raise NotLoadedError(f"{len(rows)} of {before.records} events are stored with their bytes")
    session = Session(group_key(before.trace_id.encode(), rows[0].value), [-1] * len(source.topics))
    for row in rows:
        session.places.append(row.topic << OFFSET_BITS | row.offset)
        session.times.append(row.recorded_ms)
        session.values.append(row.value)
    reading = read(session, source)
    at = Circumstances(
        state="closed",
        close_reason="reassess",
        part=before.newest_part,
        judged_at_ms=now_ms,
        dead_lettered=before.dead_lettered,
        writer="reassess",
    )
    theirs = OwnVerdict([], []) if own is None else own(reading.chain)
    verdict = judge(reading.chain, config, own=lambda _: theirs)
    sealed = seal(records(session.key, reading.chain, verdict, at, config), encoder)
    known = {record["finding_id"]: record for record in standing}
    found = {finding.finding_id for finding in verdict.findings}
    return Revision(
        sealed,
        [
            one
            for finding, one in zip(verdict.findings, sealed.findings, strict=True)
            if finding.finding_id not in known
        ],
        [
            (record["rule"], encoder.encode("finding", _retracted(record, config, now_ms)))
            for finding_id, record in sorted(known.items())
            if finding_id not in found and record["rule"] in _RULES | theirs.answered
        ],
    )


def _retracted(record: Mapping[str, Any], config: RulesConfig, now_ms: int) -> dict[str, Any]:
    return {
        **record,
        "state": "retracted",
        "chain_state": "closed",
        "detected_at": now_ms,
        "rules_version": RULES_VERSION,
        "rules_config_hash": config.digest,
    }
