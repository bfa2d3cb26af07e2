"""Whether all that Kafka accepted stands in one record and in one row, and chains tell it rightly.

Knows nothing of join and load but what they must have stored.

*Lost*: somewhere too few; *doubled*: somewhere too many; *torn*: a chain that says other than the
raw events do, or that was closed before its time.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

from trailweave.schemas import events

from tests.crash.stored import Input, Output, Read, decode, leaf_of, root_of
from tests.integration.join_kafka import Place

_TOPICS: Final = events.event_topics()
SessionKey = tuple[str, str]


class Violation(NamedTuple):
    """One thing that must not be."""

    kind: Literal["lost", "doubled", "torn"]
    text: str


class Event(NamedTuple):
    """A decoded event and where it lies."""

    place: Place
    raw: Input
    name: str
    record: dict[str, Any]


@dataclass
class Checker:
    """One check of what was read. `grace_ms` and `idle_ms` are the join's closing times."""

    read: Read
    #: Where producers were told that their events lie.
    acknowledged: list[Place]
    grace_ms: int
    idle_ms: int

    def violations(self) -> list[Violation]:
        """Everything that is wrong, in no more words than it takes to look for it."""
        return [
            *self._accepted(),
            *self._taken(),
            *self._duplicates(),
            *self._letters(),
            *(violation for chain in self.closed for violation in self._chain(chain)),
            *self._findings(),
            *self._early(),
            *self._rows(),
        ]

    # --- what the records name ---

    @cached_property
    def closed(self) -> list[Output]:
        """Records that take events: neither open revisions nor those of `reassess`."""
        return [
            chain for chain in self.read.chains
            if chain.headers["w"] == b"join" and chain.headers["kind"] != b"open"
        ]  # fmt: skip

    @cached_property
    def _named(self) -> Counter[Place]:
        return Counter(place for chain in self.closed for place in places(chain))

    @cached_property
    def _dead(self) -> Counter[Place]:
        return Counter(
            place_of(x.record) for x in self.read.letters if x.record["topic"] in _TOPICS
        )

    def _accepted(self) -> Iterator[Violation]:
        there = set(self.read.inputs)
        told = set(self.acknowledged)
        yield from (
            Violation("lost", f"{x} was acknowledged, and is not in Kafka") for x in told - there
        )
        yield from (Violation("doubled", f"{x} was never acknowledged") for x in there - told)

    def _taken(self) -> Iterator[Violation]:
        taken = self._named + self._dead
        for place, times in taken.items():
            if times > 1:
                yield Violation("doubled", f"{place} stands in {times} records")
            if place not in self.read.inputs:
                yield Violation("doubled", f"{place} was never sent")

    def _duplicates(self) -> Iterator[Violation]:
        """What no record names must be a repeat of what its session names, and counted there."""
        named: dict[bytes, dict[bytes, SessionKey]] = defaultdict(dict)
        for chain in self.closed:
            for place in places(chain):
                if (raw := self.read.inputs.get(place)) is not None:
                    named[raw.key][raw.value] = session_of(chain)
        counted: Counter[SessionKey] = Counter()
        for chain in self.closed:
            counted[session_of(chain)] += chain.record["duplicates"]
        for place, raw in self.read.inputs.items():
            if place in self._named or place in self._dead:
                continue
            session = named[raw.key].get(raw.value)
            if session is None:
                yield Violation("lost", f"{place} stands in no record")
            else:
                counted[session] -= 1
        for session, left in counted.items():
            if left:
                kind: Literal["lost", "doubled"] = "doubled" if left > 0 else "lost"
                yield Violation(kind, f"{session} counts {left:+d} repeats too many")

    def _letters(self) -> Iterator[Violation]:
        counted: Counter[SessionKey] = Counter()
        for letter in self.read.letters:
            record = letter.record
            raw = self.read.inputs.get(place_of(record))
            if record["topic"] not in _TOPICS:
                yield Violation(
                    "lost", f"{place_of(record)} was dead-lettered by {record['stage']}"
                )
            elif raw is None or (record["key"], record["value"]) != (raw.key, raw.value):
                yield Violation("torn", f"the letter of {place_of(record)} has other bytes")
            if record["trace_id"] is not None:
                counted[record["tenant"], record["trace_id"]] += 1
        for chain in self.closed:
            counted[session_of(chain)] -= chain.record["dead_lettered"]
        for session, left in counted.items():
            if left:
                yield Violation("torn", f"{session} counts {-left:+d} dead letters too many")

    # --- one chain ---

    def _chain(self, chain: Output) -> Iterator[Violation]:
        found = self._events(chain)
        record, name = chain.record, f"the record {chain.place} of {session_of(chain)}"
        if len(found) != len(record["evidence"]):
            yield Violation("torn", f"{name} names what is not there")
            return
        for event, said in zip(found, record["evidence"], strict=True):
            if said["leaf"] != leaf_of(event.place, event.raw):
                yield Violation("torn", f"{name} has another leaf for {event.place}")
            if said["event_id"] != event.record["event_id"]:
                yield Violation("torn", f"{name} has another id for {event.place}")
            if (event.record["tenant"], event.record["trace_id"]) != session_of(chain):
                yield Violation("torn", f"{name} has {event.place}, which is of another session")
        record = {**record, "evidence_ranges": _in_order(record["evidence_ranges"])}
        for field, expected in _recounted(found).items():
            if record[field] != expected:
                yield Violation("torn", f"{name} has another {field}")
        if int(chain.headers["n"]) != record["part"]:
            yield Violation("torn", f"{name} has another transaction number in its headers")

    def _events(self, chain: Output) -> list[Event]:
        found = []
        for place in places(chain):
            raw = self.read.inputs.get(place)
            if raw is not None:
                found.append(Event(place, raw, *decode(raw.value)))
        return found

    def _findings(self) -> Iterator[Violation]:
        # Open revisions name theirs as well.
        named = Counter(
            (*session_of(chain), finding["finding_id"])
            for chain in self.read.chains
            for finding in chain.record["findings"]
        )
        written = Counter((*session_of(x), x.record["finding_id"]) for x in self.read.findings)
        yield from (Violation("lost", f"finding {x} is not written") for x in named - written)
        yield from (Violation("doubled", f"finding {x} is not named") for x in written - named)

    def _early(self) -> Iterator[Violation]:
        """A later record of a session that has an event which the one before had to wait for.

        Broker times rise within a partition, and the lane's clock is the least of all partitions:
        what was recorded at the deadline or before it had been read when the clock passed it.
        """
        parts: dict[SessionKey, list[Output]] = defaultdict(list)
        for chain in self.closed:
            parts[session_of(chain)].append(chain)
        for session, records in parts.items():
            records.sort(key=lambda chain: chain.place)
            for number, chain in enumerate(records[:-1]):
                deadline = self._deadline(chain)
                for later in records[number + 1 :]:
                    for event in self._events(later):
                        if event.raw.recorded_ms <= deadline:
                            yield Violation("torn", f"{session} was closed before {event.place}")

    def _deadline(self, chain: Output) -> int:
        """The earliest that the session may have had; -1 if it was closed because it was whole."""
        if chain.record["close_reason"] == "counts":
            return -1
        ends = [
            event.raw.recorded_ms for event in self._events(chain)
            if event.name == "session_ended" and event.record["root"]
        ]  # fmt: skip
        if ends:
            return min(ends) + self.grace_ms
        return int(chain.record["last_recorded_at"]) + self.idle_ms

    # --- rows ---

    def _rows(self) -> Iterator[Violation]:
        for table, wanted in self._wanted().items():
            stored = Counter(self.read.tables[table])
            expected = Counter(wanted)
            for row in expected - stored:
                yield Violation("lost", f"{table} lacks the row {row[:4]}")
            for row in stored - expected:
                yield Violation("doubled", f"{table} has the row {row[:4]} too often")

    def _wanted(self) -> dict[str, list[tuple[Any, ...]]]:
        inputs, read = self.read.inputs, self.read
        return {
            "events": [
                (*place, 0, _sha256(raw.value))
                for place, raw in inputs.items() if place not in self._dead
            ],
            "chains": [
                (*x.place, 0, *session_of(x), x.record["events"], x.record["duplicates"],
                 x.record["root"].hex().upper())
                for x in read.chains
            ],
            "handles": [
                (*x.place, number, handle["kind"], handle["hash"], handle["event_id"])
                for x in read.chains for number, handle in enumerate(x.record["handles"])
            ],
            "findings": [(*x.place, 0, x.record["finding_id"]) for x in read.findings],
            "dead_letters": [(*x.place, 0, _sha256(x.record["value"])) for x in read.letters],
        }  # fmt: skip


def _recounted(found: list[Event]) -> dict[str, Any]:
    """What a chain record must say of its events."""

    def order(event: Event) -> tuple[Any, ...]:
        record, (topic, _, offset) = event.record, event.place
        sequence = -1 if record["trace_seq"] is None else record["trace_seq"]
        who = (record["producer_id"], record["producer_epoch"], sequence, record["event_id"])
        return (*who, record["occurred_at"], _TOPICS.index(topic), offset)

    leaves = [leaf_of(event.place, event.raw) for event in sorted(found, key=order)]
    ranges: dict[tuple[str, int], list[int]] = defaultdict(list)
    for event in found:
        ranges[event.place[:2]].append(event.place[2])
    return {
        "events": len(found),
        "counts": dict(Counter(event.name for event in found)),
        "root": root_of(leaves),
        "evidence_ranges": _in_order(
            [
                {"topic": t, "partition": p, "first": min(at), "last": max(at), "events": len(at)}
                for (t, p), at in ranges.items()
            ]
        ),
    }


def _in_order(ranges: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(ranges, key=lambda part: (part["topic"], part["partition"]))


def places(chain: Output) -> Iterable[Place]:
    return [place_of(evidence) for evidence in chain.record["evidence"]]


def place_of(record: dict[str, Any]) -> Place:
    return record["topic"], record["partition"], record["offset"]


def session_of(output: Output) -> SessionKey:
    return output.record["tenant"], output.record["trace_id"]


def _sha256(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest().upper()
