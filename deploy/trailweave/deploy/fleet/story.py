"""A story as planned: who reports what and when, before anything has a sequence or is bytes.

`script` writes stories, `anomalies` alters them, `records` turns one into what its producers send.
Times are microseconds from the story's start, in a step's fields too, until `records` adds it.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Final, NamedTuple

from trailweave.deploy.fleet.cast import Company, Json, Producer
from trailweave.schemas.codec import Encoder

#: Fields of a step that hold a time.
TIME_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "tool_executed": ("started_at",),
    "approval_requested": ("expires_at",),
    "approval_decided": ("valid_until", "requested_at"),
    "credential_issued": ("issued_at", "expires_at"),
    "credential_used": ("issued_at", "expires_at"),
    "credential_renewed": ("issued_at", "expires_at"),
    "credential_rotated": ("issued_at", "expires_at"),
    "credential_revoked": ("issued_at", "expires_at"),
}


def new_event_id(at_us: int, pick: random.Random) -> str:
    """A UUIDv7 whose random bits come from the seed."""
    text = f"{at_us // 1000:012x}7{pick.getrandbits(12):03x}{pick.getrandbits(62) | 1 << 63:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@dataclass(slots=True, eq=False)
class Step:
    """One event that a producer reports."""

    name: str
    producer: Producer
    #: Shared by all steps that one agent of the story takes.
    envelope: Json
    at_us: int
    fields: Json
    event_id: str
    #: Recorded and counted by its producer, but never sent.
    lost: bool = False

    @property
    def call_id(self) -> str | None:
        """The tool call that it is about."""
        found: str | None = self.fields.get("call_id")
        return found


@dataclass(slots=True, eq=False)
class Story:
    """Everything that happens under one trace."""

    name: str
    company: Company
    trace_id: str
    start_us: int
    pick: random.Random
    steps: list[Step] = field(default_factory=list)
    #: The clock while the story is being written.
    now_us: int = 0

    def add(self, name: str, producer: Producer, envelope: Json, fields: Json) -> Step:
        """A step that happens now."""
        return self.insert(self.now_us, name, producer, envelope, fields)

    def insert(
        self, at_us: int, name: str, producer: Producer, envelope: Json, fields: Json
    ) -> Step:
        """A step that happens at another time."""
        event_id = new_event_id(self.start_us + at_us, self.pick)
        step = Step(name, producer, envelope, at_us, fields, event_id)
        self.steps.append(step)
        return step

    def about(self, call_id: str, *names: str) -> list[Step]:
        """The steps about one call, of these types or of any."""
        return [
            step
            for step in self.steps
            if step.call_id == call_id and (not names or step.name in names)
        ]

    def named(self, name: str) -> list[Step]:
        """The steps of one type."""
        return [step for step in self.steps if step.name == name]

    def drop(self, unwanted: Callable[[Step], bool]) -> None:
        """Let steps never have happened: nobody counts them."""
        self.steps = [step for step in self.steps if not unwanted(step)]

    def delay(self, from_us: int, by_us: int) -> None:
        """Let everything from one moment on happen later."""
        for step in self.steps:
            if step.at_us >= from_us:
                step.at_us += by_us
            for name in TIME_FIELDS.get(step.name, ()):
                at = step.fields.get(name)
                if at is not None and at >= from_us:
                    step.fields[name] = at + by_us


@cache
def encoder() -> Encoder:
    """The one encoder of the process: making it compiles every schema, a tenth of a second."""
    return Encoder()


class Recorded(NamedTuple):
    """A step as its producer recorded it."""

    step: Step
    record: Json


def records(story: Story) -> Iterator[Recorded]:
    """What the producers send, in the order of its happening.

    Sequences are dense per producer and the root's end expects every producer's count; steps that
    are lost have their number and are counted, and are left out.
    """
    steps = sorted(story.steps, key=lambda step: step.at_us)
    expected = dict(Counter(step.producer.producer_id for step in steps))
    sequences: Counter[str] = Counter()
    for step in steps:
        producer_id = step.producer.producer_id
        sequence = sequences[producer_id]
        sequences[producer_id] = sequence + 1
        if not step.lost:
            record = _record(story, step, sequence)
            if record.get("expected_exhaustive"):
                record["expected"] = expected
            yield Recorded(step, record)


def _record(story: Story, step: Step, sequence: int) -> Json:
    record = {
        **step.envelope,
        **step.producer.fields,
        **step.fields,
        "event_id": step.event_id,
        "trace_id": story.trace_id,
        "event_type": step.name,
        "trace_seq": sequence,
        "occurred_at": story.start_us + step.at_us,
    }
    for name in TIME_FIELDS.get(step.name, ()):
        if record.get(name) is not None:
            record[name] += story.start_us
    return record
