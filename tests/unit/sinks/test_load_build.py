"""Records to inserts: what gets a row, what is refused, where a range has to stop."""

from dataclasses import dataclass, field

import pytest
from trailweave.schemas import codec, events
from trailweave.schemas.compiled import Json
from trailweave.schemas.examples import example
from trailweave.schemas.standing import Standing
from trailweave.sinks.load_build import DAY_MS, Builder, Record, Source, period_of

ENCODER = codec.Encoder()
BUILDER = Builder()
OURS = {kind.fingerprint for kind in events.all_types()}
TOOLS = Source("trailweave.tools", "00000000-0000-4000-8000-000000000001", 0)


@dataclass
class Published:
    """Schemas as some other version published them."""

    schemas: dict[bytes, Json] = field(default_factory=dict)
    answer: Standing = "known"

    def schema_of(self, key: bytes) -> Json | None:
        return self.schemas.get(key)

    def standing(self, key: bytes, recorded_at_ms: int, now_ms: int) -> Standing:
        return self.answer if key not in OURS and recorded_at_ms <= now_ms else "known"


def tool_requested(offset: int, value: bytes | None = None, key: bytes | None = None) -> Record:
    record = example("tool_requested")
    encoded = ENCODER.encode("tool_requested", record) if value is None else value
    return Record(offset, 1, key or record["trace_id"].encode(), encoded)


def older_event() -> tuple[bytes, Json]:
    """An event as a version without `attributes` wrote it, and its schema."""
    kind = events.event_types()["tool_requested"]
    fields = [f for f in kind.schema["fields"] if f["name"] != "prev_hash"]
    older = events.record_type("tool_requested", kind.topic, {**kind.schema, "fields": fields})
    record = ENCODER.encode("tool_requested", example("tool_requested"))
    # The field is the last one, and null: one byte.
    return codec.SINGLE_OBJECT + older.fingerprint + record[10:-1], older.schema


GOOD = ENCODER.encode("tool_requested", example("tool_requested"))


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        ("truncated", tool_requested(1, GOOD[:-3])),
        ("trailing_bytes", tool_requested(1, GOOD + GOOD[10:])),
        ("not_framed", tool_requested(1, b"hello")),
        ("wrong_key", tool_requested(1, None, b"0" * 32)),
        ("no_value", Record(1, 1, b"k", None)),
        ("unknown_schema", tool_requested(1, GOOD[:2] + b"12345678" + GOOD[10:])),
        ("wrong_topic", tool_requested(1, ENCODER.encode("finding", example("finding")))),
    ],
)
def test_what_is_no_event_gets_no_row_and_is_counted(code: str, bad: Record) -> None:
    built = BUILDER.build(TOOLS, [tool_requested(0), bad, tool_requested(2)])

    assert [reason.code for _, reason in built.rejected] == [code]
    assert [insert.places for insert in built.inserts] == [[(0, 0), (2, 0)]]


def test_another_versions_records_are_a_part_of_their_own() -> None:
    value, schema = older_event()
    published = Published({value[2:10]: schema})

    built = Builder(published).build(TOOLS, [tool_requested(0), tool_requested(1, value)])

    assert [insert.places for insert in built.inserts] == [[(0, 0)], [(1, 0)]]
    assert not built.rejected


def test_our_schema_under_a_registrys_id_is_the_same_part() -> None:
    schema = events.event_types()["tool_requested"].schema
    value = codec.CONFLUENT + b"\0\0\0\7" + GOOD[10:]
    published = Published({b"\0\0\0\7": schema})

    built = Builder(published).build(TOOLS, [tool_requested(0), tool_requested(1, value)])

    assert [insert.places for insert in built.inserts] == [[(0, 0), (1, 0)]]


def test_a_range_stops_before_a_schema_that_may_still_come() -> None:
    value, _ = older_event()
    waiting = Published(answer="wait")

    built = Builder(waiting).build(TOOLS, [tool_requested(0), tool_requested(1, value)])

    assert built.waits_at == 1
    assert [insert.places for insert in built.inserts] == [[(0, 0)]]


def test_a_schema_published_too_late_does_not_count() -> None:
    value, schema = older_event()
    late = Published({value[2:10]: schema}, answer="unknown")

    built = Builder(late).build(TOOLS, [tool_requested(0, value)])

    assert [reason.code for _, reason in built.rejected] == ["unknown_schema"]


def test_only_the_asked_for_rows_come_out() -> None:
    built = BUILDER.build(TOOLS, [tool_requested(n) for n in range(4)])
    (insert,) = built.inserts

    assert list(insert.only({(1, 0), (3, 0)})) == [insert.rows[1], insert.rows[3]]


def test_rows_of_two_days_are_two_parts_of_events() -> None:
    records = [tool_requested(n)._replace(recorded_at=n * DAY_MS // 2) for n in range(4)]

    inserts = BUILDER.build(TOOLS, records).inserts

    assert [insert.places for insert in inserts] == [[(0, 0), (1, 0)], [(2, 0), (3, 0)]]
    assert len({insert.part for insert in inserts}) == 2


@pytest.mark.parametrize(("table", "periods"), [("events", 3), ("chains", 2), ("handles", 2)])
def test_a_row_goes_to_the_partition_that_its_table_makes_of_its_time(
    table: str, periods: int
) -> None:
    end_of_january = 1_769_903_999_999
    times = (end_of_january - DAY_MS, end_of_january, end_of_january + 1)

    assert len({period_of(table, at) for at in times}) == periods


def test_rows_are_the_same_whenever_they_are_built() -> None:
    records = [tool_requested(n) for n in range(4)]

    first, second = BUILDER.build(TOOLS, records), Builder().build(TOOLS, records)

    assert first.inserts == second.inserts
