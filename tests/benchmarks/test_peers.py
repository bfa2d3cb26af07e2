"""The checks by which a benchmark's figure counts refuse what is wrong."""

from pathlib import Path

import pytest

from tests.benchmarks.peers import Field, WrongError, check_joined
from tests.benchmarks.programs.told import Told
from tests.benchmarks.report import chart, table

FRAME = b"." * 11
IDS = {b"a": {b"%036d" % n for n in range(3)}, b"b": {b"%036d" % n for n in range(3, 6)}}


def joined(carry: str, ids: set[bytes]) -> bytes:
    told = Told("", [], "", 3, carry, 1, Path())
    return b"".join(told.piece(FRAME + one + b" and more") for one in sorted(ids))


def field(carry: str) -> Field:
    return Field("", 0, IDS, 3, carry, 1)


@pytest.mark.parametrize("carry", ["bytes", "ids"])
def test_whole_traces_pass(carry: str) -> None:
    check_joined([(key, joined(carry, ids)) for key, ids in IDS.items()], field(carry))


@pytest.mark.parametrize("carry", ["bytes", "ids"])
def test_a_missing_event_is_seen(carry: str) -> None:
    records = [(key, joined(carry, set(sorted(ids)[1:]))) for key, ids in IDS.items()]

    with pytest.raises(WrongError, match="lacks events"):
        check_joined(records, field(carry))


def test_a_trace_that_is_there_twice_is_seen() -> None:
    records = [(key, joined("bytes", ids)) for key, ids in IDS.items()]

    with pytest.raises(WrongError, match="twice"):
        check_joined([*records, records[0]], field("bytes"))


def test_a_missing_trace_is_seen() -> None:
    with pytest.raises(WrongError, match="1 traces are missing"):
        check_joined([(b"a", joined("bytes", IDS[b"a"]))], field("bytes"))


def test_what_does_not_count_stands_in_the_table_with_its_reason_and_not_in_the_chart() -> None:
    figures = {"cpu_us": 10.0, "broker_cpu_us": 2.0, "peak_mb": 100.0}
    ran = figures | {"name": "Trailweave", "events_per_s": 1000.0, "why_not": ""}
    not_run = figures | {"name": "Other", "events_per_s": 0.0, "why_not": "not run: no JDK"}
    result = {"events": 12, "rounds": 3, "consume_per_s": 10_000.0, "peers": [ran, not_run]}
    busy = {"load_before": 0.5, "load_after": 1.0, "machine": "two cores"}

    lines = table("peers", result | busy)

    assert "| Trailweave | 1,000 | 0.100 | 10.0 | 2.0 | 100 |" in lines
    assert "| Other | not run: no JDK |  |  |  |  |" in lines
    assert "Other" not in chart(result)
