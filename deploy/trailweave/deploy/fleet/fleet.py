"""The simulated fleet: sessions of several companies, reproducible by seed, with an answer key.

Pure: no Kafka and no clock. Iterating a `Fleet` gives its records in the order of their arrival;
`labels` and `totals` grow meanwhile and are whole at the end. Memory holds the labels and the
sessions open at one moment of the fleet's time.

It sends hours of the fleet's time within seconds, which is why `demo` shortens grace and idle time:
a session that lacks an event, or its end, is judged only after them.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

from trailweave.deploy.fleet.anomalies import ANOMALIES, Planted
from trailweave.deploy.fleet.arrival import Outgoing, Sent, arrivals, interleaved
from trailweave.deploy.fleet.cast import DEFAULT_TENANTS, Company, company
from trailweave.deploy.fleet.corrupt import CORRUPTIONS
from trailweave.deploy.fleet.labels import Label
from trailweave.deploy.fleet.stories import STORY_US_MAX, tell
from trailweave.deploy.fleet.story import Recorded, Story, encoder, new_event_id, records
from trailweave.schemas.codec import Encoder
from trailweave.schemas.events import event_types

#: By the fleet's clock a session starts this often: some hundreds are open at a time.
_START_EVERY_US: Final = 1_000_000
#: One corrupt record in so many sessions, and every kind of them once in any fleet.
_SESSIONS_PER_CORRUPT: Final = 500
#: An anomaly is tried on so many stories until one has a place for it; most fit every other one.
_TRIES_MAX: Final = 1_000


@dataclass(slots=True)
class Totals:
    """What a fleet has sent: `events_distinct` = stored + `dead_letters`."""

    sessions: int = 0
    #: Distinct records, corrupt ones included; what was sent again and what was lost is not.
    events_distinct: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    anomalies: Counter[str] = field(default_factory=Counter)

    @property
    def records(self) -> int:
        """All that went to Kafka."""
        return self.events_distinct + self.duplicates

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the sum; `dataclasses.asdict` makes a counter of pairs of a counter."""
        counts = {name: getattr(self, name) for name in self.__slots__}
        return counts | {"anomalies": dict(self.anomalies), "records": self.records}


class Fleet:
    """`sessions` sessions, of which the fraction `anomalies` holds one anomaly each.

    Nothing happens later than `base_time_us`. The same arguments give the same bytes. With no
    anomalies there are no corrupt records either; duplicates and late arrivals there are always.
    `writer` encodes what is no corrupt record: with another framing, for one.
    """

    def __init__(
        self,
        sessions: int,
        seed: int,
        base_time_us: int,
        anomalies: float = 0.05,
        tenants: Mapping[str, float] = DEFAULT_TENANTS,
        writer: Encoder | None = None,
    ) -> None:
        if sessions < 0 or not 0 <= anomalies <= 1:
            raise ValueError(f"couldn't plan {sessions} sessions with a share of {anomalies}")
        self.sessions: Final = sessions
        self.seed: Final = seed
        self.base_time_us: Final = base_time_us
        self.anomalies: Final = anomalies
        self.labels: list[Label] = []
        self.totals = Totals()
        self._companies = [company(name, base_time_us) for name in tenants]
        self._shares = list(tenants.values())
        self._topics = {name: kind.topic for name, kind in event_types().items()}
        self._encoder = writer or encoder()

    def __iter__(self) -> Iterator[Sent]:
        self.labels = []
        self.totals = Totals()
        return interleaved(self._traces())

    def _traces(self) -> Iterator[tuple[int, list[Sent]]]:
        """Every trace with its start, by start."""
        corrupt = len(CORRUPTIONS) + self.sessions // _SESSIONS_PER_CORRUPT
        strays = Fraction(corrupt if self.anomalies else 0, self.sessions or 1)
        # Of the decimal as written: a binary 0.29 of 100 sessions would be 28.
        share = Fraction(str(self.anomalies))
        for number in range(self.sessions):
            pick = random.Random(f"{self.seed}:{number}")  # noqa: S311 - reproducible, no secret
            start_us = self._start_us(number) + pick.randrange(_START_EVERY_US)
            owner = pick.choices(self._companies, self._shares)[0]
            kind = next(iter(_due(share, number, list(ANOMALIES))), None)
            story, planted = _planned(owner, pick, start_us, kind)
            recorded = list(records(story))
            sent = self._send(story, recorded)
            self._label(story, planted, kind, sent)
            yield start_us, sent
            for code in _due(strays, number, list(CORRUPTIONS)):
                yield start_us, [self._stray(code, recorded[0], pick)]

    def _start_us(self, number: int) -> int:
        before_end = self.sessions - number
        return self.base_time_us - STORY_US_MAX - before_end * _START_EVERY_US

    def _send(self, story: Story, recorded: list[Recorded]) -> list[Sent]:
        outgoing = []
        for step, record in recorded:
            value = self._encoder.encode(step.name, record)
            producer = step.producer
            outgoing.append(
                Outgoing(
                    producer.role,
                    producer.producer_id,
                    record["occurred_at"],
                    self._topics[step.name],
                    value,
                )
            )
        assert outgoing[-1].occurred_us <= self.base_time_us, f"{story.name} is too long"
        return arrivals(story.trace_id.encode(), outgoing, story.pick)

    def _label(self, story: Story, planted: Planted, kind: str | None, sent: list[Sent]) -> None:
        events = sum(record.kind == "event" for record in sent)
        duplicates = len(sent) - events
        self.labels.append(
            Label(
                story.trace_id,
                story.company.name,
                story.name,
                kind,
                planted.findings,
                planted.completeness,
                events,
                duplicates,
            )
        )
        self.totals.sessions += 1
        self.totals.events_distinct += events
        self.totals.duplicates += duplicates
        if kind:
            self.totals.anomalies[kind] += 1

    def _stray(self, code: str, like: Recorded, pick: random.Random) -> Sent:
        """A corrupt record, made from an event that gets a trace of its own."""
        trace_id = f"{pick.getrandbits(128) or 1:032x}"
        record = like.record | {
            "trace_id": trace_id,
            "event_id": new_event_id(like.record["occurred_at"], pick),
        }
        # Of one framing always: it is spoiled by bytes.
        value = encoder().encode(like.step.name, record)
        key, value = CORRUPTIONS[code](trace_id.encode(), value, pick)
        tenant = record["tenant"]
        self.labels.append(Label(trace_id, tenant, "stray", code, (), None, 0, 0, (code,)))
        self.totals.events_distinct += 1
        self.totals.dead_letters += 1
        topic = self._topics[like.step.name]
        return Sent(record["occurred_at"], topic, key, value, "corrupt")


def _planned(
    owner: Company, pick: random.Random, start_us: int, anomaly: str | None
) -> tuple[Story, Planted]:
    """A story, told until one has a place for the anomaly."""
    for _ in range(_TRIES_MAX):
        story = tell(owner, pick, start_us)
        planted = ANOMALIES[anomaly](story) if anomaly else Planted(())
        if planted:
            return story, planted
    raise AssertionError(f"no story has a place for {anomaly}")


def _due(share: Fraction, number: int, names: list[str]) -> list[str]:
    """The names whose turn it is at session `number`, where each session earns `share` of a turn.

    Turns are spread evenly and names take them in order, so that every name is there early.
    """
    turns = range(int(number * share), int((number + 1) * share))
    return [names[turn % len(names)] for turn in turns]
