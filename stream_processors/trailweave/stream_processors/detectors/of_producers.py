"""What producers say of themselves, held against what came of them. Pure.

A heartbeat has a producer's totals since its start. Every event that arrives stands in exactly one
record of the join, so the events that a producer has in these records add up to what arrived.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from trailweave.stream_processors.detectors.detector import Answer, Detector, Fact, newest_us
from trailweave.stream_processors.rules import Limits

#: A process that ended a day ago is asked for no more.
_KEPT_S: Final = 86_400.0
#: Heartbeats that may be late or lost before a producer counts as silent.
_BEATS: Final = 3
#: The names of facts: the newest heartbeat, and the sum of one lane.
_BEAT: Final = "beat"
_LANE: Final = "lane "


def facts_of_heartbeat(beat: Mapping[str, Any], at_us: int) -> Iterator[Fact]:
    """What a heartbeat says that the broker stored at `at_us`."""
    subject = f"{beat['producer_id']} {beat['producer_epoch']}"
    said = [beat["interval_s"], beat["final"], beat["host"]]
    yield Fact("producer_silent", beat["tenant"], subject, _BEAT, at_us, "", said)
    totals = [beat["recorded"], beat["spooled"], beat["failed"]]
    yield Fact("producer_lacking", beat["tenant"], subject, _BEAT, at_us, "", totals)


def facts_of_arrival(record: Mapping[str, Any], lane: int, offset: int) -> Iterator[Fact]:
    """What a record of the join says of who sent its events; `offset` is its place in the lane."""
    at_us = 1000 * record["last_recorded_at"]
    for one in record["producers"]:
        subject = f"{one['producer_id']} {one['epoch']}"
        name, trace = f"{_LANE}{lane}", record["trace_id"]
        said = [offset, one["events"]]
        yield Fact("producer_lacking", record["tenant"], subject, name, at_us, trace, said)


def _newer(old: list[Any] | None, new: list[Any]) -> list[Any]:
    return new if old is None or new[0] >= old[0] else old


def _summed(old: list[Any] | None, new: list[Any]) -> list[Any]:
    """A lane's records come in their order, some of them again: those count once."""
    if old is None or len(new[2]) > 2:
        return _newer(old, new)
    (known, events), (offset, more) = old[2], new[2]
    return old if offset <= known else [max(old[0], new[0]), new[1], [offset, events + more]]


def _silent(state: Mapping[str, list[Any]], limits: Limits, now_us: int) -> Answer:
    at_us, _, (_, final, host) = state[_BEAT]
    if final or now_us < at_us + int(_patience_s(state, limits) * 1_000_000):
        return None
    since = datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"no heartbeat since {since}, and no end was announced; host {host or 'not known'}"


def _patience_s(state: Mapping[str, list[Any]], limits: Limits) -> float:
    return max(_BEATS * float(state[_BEAT][2][0]), limits.producer_silent_s)


def _lacking(state: Mapping[str, list[Any]], limits: Limits, now_us: int) -> Answer:
    if _BEAT not in state:
        return None  # it may well send none
    recorded, spooled, failed = state[_BEAT][2]
    arrived = sum(one[2][1] for name, one in state.items() if name != _BEAT)
    if arrived >= recorded:
        return None
    if now_us < newest_us(state) + int(limits.producer_settle_s * 1_000_000):
        return False
    where = f"{spooled} were in its spool and {failed} had failed by its last heartbeat"
    return f"{recorded - arrived} of {recorded} recorded events are in no session; {where}"


DETECTORS: Final = (
    Detector(
        "producer_silent",
        "high",
        ("AU-5", "AU-12", "NIST CSF DE.CM-1"),
        "heartbeats until a producer announces its end",
        "look at the host and its process; `trailweave spool` reads what it may have left there",
        "A producer sent no heartbeat for three of its intervals, and for"
        " `limits.producer_silent_s`, and had not announced its end. Taken back when it is heard"
        " again.",
        _silent,
        merge=_newer,
        again_s=_patience_s,
        kept_s=lambda limits: _KEPT_S + limits.producer_silent_s,
        takes_back=True,
    ),
    Detector(
        "producer_lacking",
        "high",
        ("AU-5", "AU-10", "PCI DSS 10.7"),
        "as many events in sessions as a producer says that it has recorded",
        "look for the producer's spool and failed files; see `trailweave account`",
        "By its last heartbeat a producer had recorded more events than came to any session in"
        " `limits.producer_settle_s` after the last of them. Taken back when they come.",
        _lacking,
        merge=_summed,
        again_s=lambda _, limits: limits.producer_settle_s,
        kept_s=lambda limits: _KEPT_S + limits.producer_settle_s,
        takes_back=True,
    ),
)
