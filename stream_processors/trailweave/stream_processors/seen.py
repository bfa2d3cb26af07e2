"""What was seen of each key, what was last said of it, and when to look again. Pure.

`watch` brings the facts and the time, and says when what was found is in Kafka.
"""

import heapq
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from trailweave.schemas.codec import Encoder
from trailweave.stream_processors.detectors import DETECTORS
from trailweave.stream_processors.detectors.detector import LOOK, Detector, Fact, finding
from trailweave.stream_processors.verdict import RulesConfig

#: How often the whole table is gone through for keys that came with a rebalance.
SCAN_INTERVAL_S: Final = 60.0
#: Events older than this say that the topics have not been read to their ends: what seems not to
#: have come may well be there. Nothing is looked for while such events come.
BEHIND_S: Final = 30.0
#: The same for so long after the start, in which the first events come.
START_S: Final = 10.0


@dataclass(slots=True)
class _Kept:
    """The table's value of one key."""

    facts: dict[str, list[Any]] = field(default_factory=dict)
    #: The summary of the finding that stands; empty if none does.
    said: str = ""
    #: When the key was last looked at, in microseconds.
    looked_us: int = 0

    @classmethod
    def of(cls, value: bytes | None) -> "_Kept":
        return cls() if value is None else cls(**json.loads(value))

    def value(self) -> bytes | None:
        """None, as a table and a changelog mean it, if there is nothing to keep."""
        if not self.facts:
            return None
        return json.dumps(
            {"facts": self.facts, "said": self.said, "looked_us": self.looked_us}
        ).encode()

    def forget(self) -> None:
        self.facts, self.said, self.looked_us = {}, "", 0


class Seen:
    """The table of what was seen of each key, what was last said of it, and when to look again."""

    def __init__(self, rules: RulesConfig, table: Any, now_s: float) -> None:
        """`table` is one of Faust's, or what has its `data` beside the methods of a mapping."""
        self._rules = rules
        self._table = table
        self._encoder = Encoder()
        #: (when, key); `_planned` says which entry of a key holds.
        self._looks: list[tuple[int, bytes]] = []
        self._planned: dict[bytes, int] = {}
        self._scan_at_s = 0.0
        self._not_before_s = now_s + START_S

    # --- facts ---

    def fold(
        self, facts: Iterable[tuple[bytes, Fact]], now_ms: int
    ) -> tuple[dict[bytes, bytes], dict[bytes, bytes | None]]:
        """What facts make of their keys, in their order: (findings, the table's new values).

        Findings that are to be said or taken back, by key, the last one of each. The table has
        its values only after `keep`.
        """
        folded: dict[bytes, tuple[Detector, _Kept]] = {}
        records: dict[bytes, dict[str, Any]] = {}
        for key, fact in facts:
            if key not in folded:
                if fact.detector not in DETECTORS:
                    continue  # of another version
                folded[key] = DETECTORS[fact.detector], _Kept.of(self._table.get(key))
            record = self._judged(*folded[key], fact, now_ms)
            if record is not None:
                records[key] = {**record, "rules_config_hash": self._rules.digest}
        for key, (detector, kept) in folded.items():
            self._plan(key, detector, kept)
        values = {key: kept.value() for key, (_, kept) in folded.items()}
        found = {key: self._encoder.encode("finding", one) for key, one in records.items()}
        return found, {key: one for key, one in values.items() if one != self._table.get(key)}

    def keep(self, changed: Mapping[bytes, bytes | None]) -> None:
        """What was folded goes to the table: it was said, and the changelog has it."""
        data = self._table.data
        for key, value in changed.items():
            if value is None:
                data.pop(key, None)
            else:
                data[key] = value

    def _judged(
        self, detector: Detector, kept: _Kept, fact: Fact, now_ms: int
    ) -> dict[str, Any] | None:
        limits = self._rules.limits
        if fact.name != LOOK:
            kept.facts = detector.fold(kept.facts, fact)
        elif not kept.facts or detector.is_over(kept.facts, limits, kept.looked_us, fact.at_us):
            kept.forget()
            return None
        else:
            kept.looked_us = fact.at_us
        answer = detector.judge(kept.facts, limits, fact.at_us)
        if answer:
            record = finding(detector, fact, kept.facts, answer, now_ms)
            if record["summary"] != kept.said:
                kept.said = record["summary"]
                return record
        elif answer is None and kept.said and detector.takes_back:
            kept.said = ""
            return finding(detector, fact, kept.facts, None, now_ms)
        return None

    # --- looks ---

    def reading(self, newest_s: float, now_s: float) -> None:
        """A batch came up to `newest_s`: if that is long ago, more is there to be read."""
        if newest_s < now_s - BEHIND_S:
            self._not_before_s = max(self._not_before_s, now_s + START_S)

    def due(self, now_s: float) -> list[Fact]:
        """A look for each key whose time has come."""
        if now_s < self._not_before_s:
            return []
        if now_s >= self._scan_at_s:
            self._scan_at_s = now_s + SCAN_INTERVAL_S
            for key, value in list(self._table.items()):
                detector = DETECTORS.get(_named(key).detector)
                if detector is not None and key not in self._planned:
                    self._plan(key, detector, _Kept.of(value))
        looks, now_us = [], int(now_s * 1_000_000)
        while self._looks and self._looks[0][0] <= now_us:
            at_us, key = heapq.heappop(self._looks)
            if self._planned.get(key) == at_us:
                del self._planned[key]
                looks.append(_named(key)._replace(at_us=now_us))
        return looks

    def _plan(self, key: bytes, detector: Detector, kept: _Kept) -> None:
        at_us = detector.look_us(kept.facts, self._rules.limits, kept.looked_us)
        if at_us is None:
            self._planned.pop(key, None)
        elif self._planned.get(key) != at_us:
            self._planned[key] = at_us
            heapq.heappush(self._looks, (at_us, key))


def key_of(fact: Fact) -> bytes:
    """The key of a fact's detector, tenant and subject."""
    return json.dumps([fact.detector, fact.tenant, fact.subject]).encode()


def _named(key: bytes) -> Fact:
    """A look at a key, at no time yet."""
    detector, tenant, subject = json.loads(key)
    return Fact(detector, tenant, subject, LOOK, 0, "", None)
