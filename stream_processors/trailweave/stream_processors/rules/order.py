"""Findings about times and spans: what can't have happened in the order in which it is told."""

from collections.abc import Iterator
from operator import itemgetter
from typing import Final

from trailweave.stream_processors.chain import Chain, Record
from trailweave.stream_processors.rules.limits import Limits
from trailweave.stream_processors.rules.rule import Hit, rule
from trailweave.stream_processors.rules.times import SKEW_US, started_at

_SPAN: Final = itemgetter("span_id")
_PARENT: Final = itemgetter("parent_span_id")


@rule(
    "medium",
    controls=("AU-12", "AU-3"),
    expected="an event for every span that others name as their parent",
    next_step="find out which process worked under that span, and have it record",
)
def orphan_span(chain: Chain) -> Iterator[Hit]:
    """An event belongs to a span of which nothing is there.

    Asked of events that a recorder has numbered: what is translated from other logs may well belong
    to a span that never was an agent's. A parent in another process, such as the caller's, counts
    as there if the event says so (`parent_remote`).
    """
    lacking = {*map(_PARENT, chain.records)}
    lacking.difference_update(map(_SPAN, chain.records))
    lacking.discard(None)
    for record in chain.records if lacking else ():
        parent = record["parent_span_id"]
        if parent in lacking and not record["parent_remote"] and record["trace_seq"] is not None:
            yield Hit(parent, "nothing is there of the span that events belong to", (record,))


@rule(
    "low",
    controls=("AU-8", "NIST CSF DE.CM-1"),
    expected="producers' clocks in step with the broker's",
    next_step="see to the host's time service (NTP)",
    early=True,
)
def clock_skew(chain: Chain, limits: Limits) -> Iterator[Hit]:
    """An event happened, by its reporter's clock, well after Kafka had stored it.

    Well after: more than `limits.clock_ahead_s`. A clock that is behind can't be told from an event
    that came late.
    """
    for record, ahead_us in chain.ahead:
        if ahead_us > limits.clock_ahead_s * 1_000_000:
            summary = f"a clock is {ahead_us // 1_000_000} s ahead"
            yield Hit(record["producer_id"], summary, (record,))


@rule(
    "medium",
    controls=("AU-8", "AU-10"),
    expected="causes before their effects",
    next_step="compare the clocks of both reporters; if they agree, one of the records is not true",
)
def impossible_order(chain: Chain) -> Iterator[Hit]:
    """What came of something is told to have happened before it.

    A downstream system saw a call before it started; a call started before any decision on it; a
    credential was used before it was issued. Each by more than five seconds, for clocks differ;
    what has no time is not judged.
    """
    for call_id, ran in chain.runs.items():
        start, run = _first_start(ran)
        if not start:
            continue
        # They are in the order of time, those without one in front.
        for seen in chain.observations.get(call_id, ()):
            if 0 < seen["occurred_at"] < start - SKEW_US:
                yield Hit(call_id, "a call was seen downstream before it started", (seen, run))
                break
        decided = chain.decisions.get(call_id)
        if decided and decided[0]["occurred_at"] > start + SKEW_US:
            yield Hit(call_id, "a call started before any decision on it", (run, decided[0]))
    issues, uses = chain.of("credential_issued"), chain.of("credential_used")
    if not issues or not uses or issues[-1]["occurred_at"] <= uses[0]["occurred_at"] + SKEW_US:
        return
    issued: dict[str, Record] = {}
    for record in issues:
        issued.setdefault(record["credential_id"], record)  # the first, in the order of time
    for use in uses:
        issue = issued.get(use["credential_id"])
        if issue and use["occurred_at"] and issue["occurred_at"] > use["occurred_at"] + SKEW_US:
            yield Hit(
                use["credential_id"], "a credential was used before it was issued", (use, issue)
            )


def _first_start(ran: list[Record]) -> tuple[int, Record]:
    """When a call first ran, and the record that says so; 0 if any of its starts is unknown."""
    if len(ran) == 1:
        return started_at(ran[0]) or 0, ran[0]
    return min(((started_at(record) or 0, record) for record in ran), key=itemgetter(0))


@rule(
    "high",
    controls=("ASI10", "AU-12"),
    about=("session_ended",),
    expected="nothing that acts once the root session has ended",
    next_step="find the process that goes on with the session's access, and end it",
)
def action_after_end(chain: Chain) -> Iterator[Hit]:
    """A call started, or a downstream system saw one, after the root session had ended.

    By more than five seconds, for clocks differ; what has no time is not judged.
    """
    ends = [r for r in chain.of("session_ended") if r["root"] and r["occurred_at"]]
    if not ends:
        return
    end = ends[-1]
    late = end["occurred_at"] + SKEW_US
    if chain.records[-1]["occurred_at"] <= late:
        return
    for call_id in {**chain.executions, **chain.observations}:
        after = [record for record in chain.ran(call_id) if (started_at(record) or 0) > late]
        if after:
            seconds = ((started_at(after[0]) or 0) - end["occurred_at"]) // 1_000_000
            yield Hit(call_id, f"a call came {seconds} s after the session's end", (end, *after))
