"""What a detector is, and what is kept of each of its keys.

A detector judges all facts of a key; in which order they came plays no part. What is true only
once something has *not* come for a while is judged by a look: a fact without a name, whose time is
the watch's clock, that comes through the same topic as all others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from trailweave.schemas import ids
from trailweave.stream_processors.rules import Limits
from trailweave.stream_processors.rules.rule import Severity

#: Changes whenever a detector's answer may change.
VERSION: Final = "watch-2"
#: Facts of one key: the newest are kept. More than any limit that a detector counts to.
FACTS_MAX: Final = 500
#: Traces named in a finding.
TRACES_MAX: Final = 5
#: The name of a fact that is none: the key is only to be looked at, at its time.
LOOK: Final = ""

#: name within the key -> [when, in microseconds; trace; what it says]
State = dict[str, list[Any]]
#: One sentence for a finding, none if there is none; or nobody can say yet.
Answer = str | Literal[False] | None


class Fact(NamedTuple):
    """One thing that a record says to one detector."""

    detector: str
    tenant: str
    #: What it is about: the finding's subject.
    subject: str
    #: Its name among the facts of that subject.
    name: str
    at_us: int
    trace_id: str
    says: Any


#: The facts of one subject, the limits, and the time of the newest fact or look -> the answer:
#: a sentence if they are a finding, None if not, False while that can't be told.
Judge = Callable[[Mapping[str, list[Any]], Limits, int], Answer]


def _replaced(_: list[Any] | None, new: list[Any]) -> list[Any]:
    return new


@dataclass(frozen=True, slots=True)
class Detector:
    """One detector with its metadata, as a rule has it."""

    name: str
    severity: Severity
    controls: tuple[str, ...]
    expected: str
    next_step: str
    doc: str
    judge: Judge
    #: What becomes of a fact when one of its name is known.
    merge: Callable[[list[Any] | None, list[Any]], list[Any]] = _replaced
    #: Seconds after the newest fact at which a key is looked at once more; None: never.
    again_s: Callable[[Mapping[str, list[Any]], Limits], float] | None = None
    #: Seconds after the newest fact at which a key is forgotten; None: never. Above `again_s`.
    #: A key that was looked at late is kept for the time between the two all the same.
    kept_s: Callable[[Limits], float] | None = None
    #: Whether a finding is taken back when its facts are one no more.
    takes_back: bool = False

    def fold(self, state: State, fact: Fact) -> State:
        """The facts of a key with one more that is no look; above `FACTS_MAX` the oldest leave."""
        made = self.merge(state.get(fact.name), [fact.at_us, fact.trace_id, fact.says])
        found = {**state, fact.name: made}
        if len(found) > FACTS_MAX:
            oldest = min(found, key=lambda name: (found[name][0], name))
            del found[oldest]
        return found

    def look_us(self, state: State, limits: Limits, looked_us: int) -> int | None:
        """When a key is to be looked at that was last looked at then; None: not before more comes.

        In microseconds, as all times here. It may be past, for facts may come late.
        """
        again, over = self._times(state, limits, looked_us)
        return again if again is not None and looked_us < again else over

    def is_over(self, state: State, limits: Limits, looked_us: int, now_us: int) -> bool:
        """Whether a key may be forgotten that was last looked at then: not before it was judged."""
        again, over = self._times(state, limits, looked_us)
        return over is not None and now_us >= over and (again is None or looked_us >= again)

    def _times(self, state: State, limits: Limits, looked_us: int) -> tuple[int | None, int | None]:
        if not state:
            return None, None
        again = self._after(state, self.again_s and self.again_s(state, limits))
        over = self._after(state, self.kept_s and self.kept_s(limits))
        if again is not None and over is not None and looked_us >= again:
            # What was judged late, as after an outage, can be taken back for as long.
            over = max(over, looked_us + over - again)
        return again, over

    def _after(self, state: State, seconds: float | None) -> int | None:
        if seconds is None:
            return None
        return newest_us(state) + int(seconds * 1_000_000)


def newest_us(state: Mapping[str, list[Any]]) -> int:
    """The time of the newest fact; there must be one."""
    return max(int(one[0]) for one in state.values())


def finding(
    detector: Detector, fact: Fact, state: State, summary: str | None, now_ms: int
) -> dict[str, Any]:
    """The finding record (schema `finding`) of a fact's key; without a summary it is taken back.

    Its id is made of tenant, detector and subject: found again, it is the same finding.
    """
    newest = sorted(state.values(), key=lambda one: (one[0], one[1]), reverse=True)
    traces = list(dict.fromkeys(trace for _, trace, _ in newest if trace))[:TRACES_MAX]
    if summary is None:
        said = "no longer so: what was missing has come"
    else:
        said = f"{summary}; latest in {', '.join(traces)}" if traces else summary
    return {
        "finding_id": ids.derived_id(fact.tenant, "", fact.detector, fact.subject),
        "trace_id": "",
        "tenant": fact.tenant,
        "rule": fact.detector,
        "state": "retracted" if summary is None else "open",
        "severity": detector.severity,
        "subject": fact.subject,
        "summary": said,
        "expected": detector.expected,
        "next_step": detector.next_step,
        "controls": list(detector.controls),
        "evidence": [],
        "chain_state": "closed",
        "agent_id": None,
        "identity": None,
        "sponsor": None,
        "detected_at": now_ms,
        "rules_version": VERSION,
        "rules_config_hash": "",
    }
