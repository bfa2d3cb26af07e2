"""`trailweave account`: per stage, in = out + duplicates + dead-lettered + held.

The figures belong to one moment although everything runs on: the join's committed offsets and
transaction numbers are taken first, and only what lies below them is counted afterwards. A stage
whose output is not loaded yet can't be judged; that is said, and is no "adds up".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from trailweave.deploy.clients import admin, kafka_errors
from trailweave.deploy.offsets import (
    Bounds,
    Committed,
    Place,
    bounds,
    committed,
    count_records,
    topic_ids,
)
from trailweave.deploy.settings import Settings
from trailweave.schemas import events
from trailweave.sinks.ask import ask, ask_one

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

#: Topic -> table, of what the load worker stores beside the events.
TABLES: Final = {
    events.SESSIONS_TOPIC: "chains",
    events.FINDINGS_TOPIC: "findings",
    events.HEARTBEATS_TOPIC: "heartbeats",
    events.DEAD_LETTERS_TOPIC: "dead_letters",
}


@dataclass(slots=True)
class Line:
    """One sum of one stage. It adds up when `difference` is 0 and nothing is noted against it."""

    stage: str
    of: str
    records_in: int
    records_out: int
    duplicates: int = 0
    dead_lettered: int = 0
    held: int = 0
    #: Why the sum can't be right or can't be said; empty when all is well.
    wrong: list[str] = field(default_factory=list)

    @property
    def difference(self) -> int:
        """What went in and is nowhere; negative: what came out and never went in."""
        out = self.records_out + self.duplicates + self.dead_lettered + self.held
        return self.records_in - out

    @property
    def adds_up(self) -> bool:
        """Whether the sum is right."""
        return self.difference == 0 and not self.wrong

    def document(self) -> dict[str, Any]:
        """The line for `--json`."""
        return {
            "stage": self.stage,
            "of": self.of,
            "in": self.records_in,
            "out": self.records_out,
            "duplicates": self.duplicates,
            "dead_lettered": self.dead_lettered,
            "held": self.held,
            "difference": self.difference,
            "adds_up": self.adds_up,
            "wrong": self.wrong,
        }


@dataclass(frozen=True, slots=True)
class Moment:
    """Where everything stood when the account was taken."""

    ids: Mapping[str, tuple[UUID, int]]
    joined: Mapping[Place, Committed]
    loaded: Mapping[Place, Committed]
    bounds: Mapping[Place, Bounds]
    #: Records, not offsets, that load has yet to store.
    unloaded: Mapping[Place, int]

    def lanes(self) -> range:
        """The lanes: partitions of the event topics."""
        return range(max((n for t, (_, n) in self.ids.items() if t in _EVENTS), default=0))

    def behind(self, topic: str) -> int:
        """How many records of a topic are not loaded."""
        return sum(count for place, count in self.unloaded.items() if place[0] == topic)


_EVENTS: Final = events.event_topics()


def take_account(
    settings: Settings, client: "Client", told: Callable[[int], None] | None = None
) -> list[Line]:
    """Every sum of every stage, producers first."""
    with kafka_errors(settings, "take the account"):
        moment = take_moment(settings)
        loaded = {
            place: _loaded_partition(client, moment, place)
            for place in sorted(moment.bounds)
            if place[0] in _EVENTS
        }
        gaps = _gaps(loaded, moment, settings)
        for place, gap in gaps.items():
            loaded[place].records_in -= gap
        chunked = _in_chunks(moment, settings)
        joined = [
            _joined(client, moment, lane, gaps, chunked.get(lane, 0)) for lane in moment.lanes()
        ]
        for (_, partition), line in loaded.items():
            _hold_refused(line, joined[partition])
        rest = _loaded_rest(client, moment, settings, told)
        return [_produced(client, moment), *joined, *loaded.values(), *rest]


def take_moment(settings: Settings) -> Moment:
    """The committed offsets before the ends: what lies below them is counted afterwards."""
    kafka = admin(settings)
    ids = topic_ids(kafka, (*_EVENTS, *TABLES))
    places = [(topic, part) for topic, (_, count) in ids.items() for part in range(count)]
    joined = committed(settings, settings.join.group, places)
    loaded = committed(settings, settings.load.group, places)
    known = bounds(kafka, places)
    return Moment(ids, joined, loaded, known, _unloaded(known, loaded, settings))


def _unloaded(
    known: Mapping[Place, Bounds], loaded: Mapping[Place, Committed], settings: Settings
) -> dict[Place, int]:
    """Records behind load's position; transaction markers, which end a log, are none."""
    left = {
        place: Bounds(max(bound.start, loaded[place].offset if place in loaded else 0), bound.end)
        for place, bound in known.items()
    }
    ranges = {p: b for p, b in left.items() if p[0] in TABLES and b.start < b.end}
    counts = count_records(settings, ranges) if ranges else {}
    return {
        place: counts.get(place, 0) if place[0] in TABLES else max(0, bound.end - bound.start)
        for place, bound in left.items()
    }


def _produced(client: "Client", moment: Moment) -> Line:
    """Producers' own totals, and whether Kafka has at least what they saw acknowledged."""
    rows = ask(client, "account_producers")
    recorded = sum(row["recorded"] for row in rows)
    delivered = sum(row["delivered"] for row in rows)
    held = sum(row["buffered"] + row["spooled"] for row in rows)
    failed = sum(row["failed"] for row in rows)
    line = Line("producers", f"{len(rows)} starts", recorded, delivered, 0, failed, held)
    in_kafka = sum(b.end for place, b in moment.bounds.items() if place[0] in _EVENTS)
    if in_kafka < delivered:
        line.wrong.append(f"Kafka holds {in_kafka} records, producers had {delivered} acknowledged")
    return line


def _in_chunks(moment: Moment, settings: Settings) -> dict[int, int]:
    """Events that each lane's last transaction left in chunks of open sessions."""
    from trailweave.stream_processors import lane_reader
    from trailweave.stream_processors.lanes import Metadata

    numbers: dict[int, int] = {}
    for (_, lane), mark in moment.joined.items():
        note = Metadata.parse(mark.metadata)
        if note is not None:
            numbers[lane] = note.number
    if not numbers:
        return {}
    reader = lane_reader.reading_consumer(settings.kafka_config())
    try:
        return {
            lane: lane_reader.events_in_chunks(reader, events.OPEN_SESSIONS_TOPIC, lane, number)
            for lane, number in numbers.items()
        }
    finally:
        reader.close()


def _joined(
    client: "Client", moment: Moment, lane: int, gaps: Mapping[Place, int], chunked: int
) -> Line:
    from trailweave.stream_processors.lanes import Metadata

    marks = {
        topic: moment.joined[topic, lane] for topic in _EVENTS if (topic, lane) in moment.joined
    }
    offsets = sum(mark.offset for mark in marks.values())
    no_records = sum(gap for (_, partition), gap in gaps.items() if partition == lane)
    line = Line("join", f"lane {lane}", offsets - no_records, 0)
    if not marks:
        waiting = sum(
            bound.end for place, bound in moment.bounds.items()
            if place[0] in _EVENTS and place[1] == lane
        )  # fmt: skip
        if waiting:
            line.wrong.append("the join has never committed; start `trailweave join`")
        return line
    notes = [Metadata.parse(mark.metadata) for mark in marks.values()]
    numbers = {note.number for note in notes if note is not None}
    if len(marks) < len(_EVENTS) or None in notes or len(numbers) != 1:
        line.wrong.append("the committed offsets are not those of one transaction of the join")
        return line
    # Counts below this lane's transaction, so that what the join does meanwhile changes nothing.
    chains = ask_one(
        client,
        "account_chains",
        topic_id=moment.ids[events.SESSIONS_TOPIC][0],
        partition=lane,
        part=numbers.pop(),
    )
    line.records_out = chains["distinct_events"]
    line.duplicates = chains["repeated"]
    alone = sum(
        _refused(client, topic, lane, mark.offset, "join")["alone"] for topic, mark in marks.items()
    )
    line.dead_lettered = chains["refused"] + alone
    reach = chunked + sum(
        mark.offset - note.low for mark, note in zip(marks.values(), notes, strict=True) if note
    )
    _hold(line, reach, moment)
    return line


def _hold(line: Line, reach: int, moment: Moment) -> None:
    """What is in no chain is held open, if the committed offsets say that so much can be."""
    rest = line.difference
    unloaded = moment.behind(events.SESSIONS_TOPIC) + moment.behind(events.DEAD_LETTERS_TOPIC)
    if 0 <= rest <= reach:
        line.held = rest
    elif rest > 0 and unloaded:
        line.wrong.append(f"load is {unloaded} records behind on the join's output; ask again")
    elif rest > 0:
        line.wrong.append(f"{rest} records are in no chain, and at most {reach} can be open")
    else:
        line.wrong.append(f"{-rest} records are in more than one chain")


def _refused(client: "Client", topic: str, partition: int, end: int, stage: str) -> dict[str, Any]:
    return ask_one(
        client, "account_refused",
        topic=topic, partition=partition, stage=stage, start=0, end=end,
    )  # fmt: skip


def _loaded_partition(client: "Client", moment: Moment, place: Place) -> Line:
    topic, partition = place
    low = moment.bounds[place].start
    end = moment.loaded.get(place, Committed(low, "")).offset
    topic_id = moment.ids[topic][0]
    span = {"topic_id": topic_id, "partition": partition, "start": low, "end": end}
    rows = ask_one(client, "account_rows", table="events", **span)
    refused = ask_one(client, "account_refused_unloaded", topic=topic, **span)
    line = Line("load", f"{topic}/{partition}", end - low, rows["records"], 0, refused["records"])
    _say_residue(line, rows)
    return line


def _hold_refused(line: Line, lane: Line) -> None:
    """Load leaves bad events to the join, which reports one when its session closes."""
    if 0 < line.difference <= lane.held:
        line.held = line.difference


def _say_residue(line: Line, rows: Mapping[str, Any]) -> None:
    if rows["row_count"] != rows["places"]:
        extra = rows["row_count"] - rows["places"]
        line.wrong.append(f"{extra} rows are stored twice (reads collapse them)")


def _loaded_rest(
    client: "Client", moment: Moment, settings: Settings, told: Callable[[int], None] | None
) -> list[Line]:
    """Tables of transactional topics: their offsets have gaps, so the records are read to count."""
    ranges = {
        place: Bounds(bound.start, moment.loaded.get(place, Committed(bound.start, "")).offset)
        for place, bound in sorted(moment.bounds.items())
        if place[0] in TABLES
    }
    counts = count_records(settings, ranges, told)
    lines = []
    for topic, table in TABLES.items():
        line = Line("load", topic, 0, 0)
        for place, range_ in ranges.items():
            if place[0] == topic:
                rows = _rows(client, moment, table, place, range_)
                line.records_in += counts[place]
                line.records_out += rows["records"]
                line.dead_lettered += _refused(client, *place, range_.end, "load")["records"]
                _say_residue(line, rows)
        lines.append(line)
    return lines


def _rows(
    client: "Client", moment: Moment, table: str, place: Place, range_: Bounds
) -> dict[str, Any]:
    span = {
        "topic_id": moment.ids[place[0]][0],
        "partition": place[1],
        "start": range_.start,
        "end": range_.end,
    }
    if table == "dead_letters":
        return ask_one(client, "account_letters", **span)
    return ask_one(client, "account_rows", table=table, **span)


def _gaps(loaded: Mapping[Place, Line], moment: Moment, settings: Settings) -> dict[Place, int]:
    """Offsets that hold no record, where a sum fails: a transactional producer leaves such gaps."""
    suspects = {
        place: Bounds(moment.bounds[place].start, moment.loaded[place].offset)
        for place, line in loaded.items()
        if line.difference > 0 and place in moment.loaded
    }
    counts = count_records(settings, suspects) if suspects else {}
    return {place: range_.end - range_.start - counts[place] for place, range_ in suspects.items()}


def summed(lines: list[Line]) -> list[Line]:
    """Fewer lines for a person: partitions and lanes that add up are one line, others stay."""
    merged: dict[tuple[str, str], Line] = {}
    for line in lines:
        of = "lanes" if line.stage == "join" else line.of.partition("/")[0]
        key = (line.stage, of if line.adds_up else line.of)
        into = merged.setdefault(key, Line(line.stage, key[1], 0, 0))
        into.records_in += line.records_in
        into.records_out += line.records_out
        into.duplicates += line.duplicates
        into.dead_lettered += line.dead_lettered
        into.held += line.held
        into.wrong += line.wrong
    return list(merged.values())
