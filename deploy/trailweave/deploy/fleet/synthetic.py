"""Events for measuring: many small complete sessions, made by patching encoded templates.

Every trace is the same plain session under its own ids and times, clean under the rules. An event
takes a few microseconds to make, so that a measurement is not one of this.
"""

import random
from collections.abc import Iterator
from typing import Final, NamedTuple

from trailweave.deploy.fleet.arrival import Sent
from trailweave.deploy.fleet.cast import CREATE_TICKET, Json, company
from trailweave.deploy.fleet.script import Script
from trailweave.deploy.fleet.story import Story, encoder, records
from trailweave.deploy.fleet.terms import Setting
from trailweave.schemas.codec import EVENT_ID_BYTES, SINGLE_OBJECT, TRACE_ID_BYTES
from trailweave.schemas.events import event_types
from trailweave.schemas.varint import write_varint

#: One call with its lease: the least that reaches all five event topics.
EVENTS_PER_TRACE_MIN: Final = 12
#: Events of one further call.
_EVENTS_PER_CALL: Final = 6
#: So many traces are open at a time.
_WAVE: Final = 256
#: By the events' clock. The times in fields other than occurred_at stay those of the template, so
#: it is little: no lease may seem to expire, however many traces there are.
_WAVE_EVERY_US: Final = 1_000
#: A longer session would outlive its lease; and the numbers fit in the event ids.
EVENTS_PER_TRACE_MAX: Final = 1_000
#: Framing, and the length of event_id.
_HEAD: Final = len(SINGLE_OBJECT) + 8 + 1
_TRACE_ID: Final = "7" * 32
#: Left out, so that an event is of the usual 500 bytes.
_BULKY: Final = frozenset(
    (
        "agent_owner",
        "arguments",
        "content",
        "content_hash",
        "conversation_id",
        "definition_hash",
        "downstream_request_id",
        "handles",
        "input_hash",
        "issued_trace_id",
        "issuer",
        "lease_id",
        "request_id",
        "result_hash",
        "response_id",
        "runtime",
        "server_address",
        "task_id",
        "workflow_id",
    )
)


class _Template(NamedTuple):
    """The bytes around what differs: event_id, trace_id and occurred_at."""

    topic: str
    #: Framing and the length of event_id.
    before: bytes
    #: From the end of trace_id to occurred_at, and what follows that.
    middle: bytes
    after: bytes
    occurred_us: int


def synthetic_events(
    traces: int, base_time_us: int, events_per_trace: int = 12, seed: int = 1
) -> Iterator[Sent]:
    """`traces` complete sessions of `events_per_trace` events, some hundreds of them interleaved.

    Raises ValueError below `EVENTS_PER_TRACE_MIN` and above `EVENTS_PER_TRACE_MAX`.
    """
    parts = _session(events_per_trace, base_time_us)
    templates = [_template(*part) for part in parts]
    pick = random.Random(seed)  # noqa: S311 - reproducible, no secret
    for first in range(0, traces, _WAVE):
        wave = [f"{pick.getrandbits(128) or 1:032x}" for _ in range(min(_WAVE, traces - first))]
        keys = [trace_id.encode() for trace_id in wave]
        tails = [b"-%b-%b" % (b"8" + key[17:20], key[20:]) for key in keys]
        for number, (topic, before, middle, after, us) in enumerate(templates):
            at_us = us + first // _WAVE * _WAVE_EVERY_US
            time = f"{at_us // 1000:012x}"
            head = before + f"{time[:8]}-{time[8:]}-7{number:03x}".encode()
            rest = middle + write_varint(at_us) + after
            for key, tail in zip(keys, tails, strict=True):
                yield Sent(at_us, topic, key, b"%b%b@%b%b" % (head, tail, key, rest), "event")


def _session(events_per_trace: int, base_time_us: int) -> Iterator[tuple[str, Json]]:
    """The records of one clean session: (event type, record)."""
    more = events_per_trace - EVENTS_PER_TRACE_MIN
    if more < 0 or events_per_trace > EVENTS_PER_TRACE_MAX:
        raise ValueError(f"couldn't tell a session in {events_per_trace} events")
    pick = random.Random(0)  # noqa: S311 - reproducible, no secret
    story = Story("synthetic", company("acme", base_time_us), _TRACE_ID, base_time_us, pick)
    sponsor = story.company.people[0]
    agent = Script(story, story.company.agents["executor"], sponsor, Setting())
    agent.starts("file tickets", CREATE_TICKET)
    agent.prompted("File the tickets.")
    for _ in range(more % _EVENTS_PER_CALL):
        agent.retrieved("documents://incidents", "incident-4")
    lease = agent.borrows(CREATE_TICKET.scope)
    for number in range(1 + more // _EVENTS_PER_CALL):
        agent.does("Next.", CREATE_TICKET, f"tickets/{number}", lease, number=number)
    agent.returns(lease)
    agent.ends("filed")
    for step, record in records(story):
        yield step.name, _slim(record)


def _slim(record: Json) -> Json:
    slim = {name: value for name, value in record.items() if name not in _BULKY}
    for name in ("actor", "reporter", "sponsor"):
        slim[name] = slim[name] | {"evidence": None, "issuer": None}
    return slim


def _template(name: str, record: Json) -> _Template:
    value = encoder().encode(name, record)
    mark = write_varint(record["occurred_at"])
    after_ids = _HEAD + EVENT_ID_BYTES + 1 + TRACE_ID_BYTES
    # The first one: occurred_at stands before every field that could hold the same time.
    at = value.index(mark, after_ids)
    return _Template(
        event_types()[name].topic,
        value[:_HEAD],
        value[after_ids:at],
        value[at + len(mark) :],
        record["occurred_at"],
    )
