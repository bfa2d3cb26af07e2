"""What committed offsets and record headers say about a lane, and when they are refused."""

from __future__ import annotations

import pytest
from trailweave.schemas.errors import Fatal
from trailweave.stream_processors.recovery import (
    Checkpoint,
    check_log_starts,
    checkpoint,
    cuts_of,
    session_headers,
)

TOPICS = ("prompts", "tools")
POINT = Checkpoint(number=4, positions=(10, 20), lows=(7, 20), sessions_from=2)


def headers(
    kind: str, session: bytes, cut: tuple[int, ...], writer: bytes = b"join"
) -> dict[str, bytes]:
    return {**dict(session_headers(kind, 1, session, cut)), "w": writer}


def test_a_checkpoint_is_what_the_offsets_of_one_transaction_say() -> None:
    assert checkpoint(0, [("prompts", 10, "v1;4;7;2"), ("tools", 20, "v1;4;20;2")]) == POINT


def test_a_lane_without_any_offset_never_committed() -> None:
    assert checkpoint(0, [("prompts", -1001, None), ("tools", -1001, None)]) is None


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        (("tools", -1001, None), "tools is missing"),
        (("tools", 20, None), "tools is missing"),
        (("tools", 20, ""), "not written by the join"),
        (("tools", 20, "by hand"), "not written by the join"),
        (("tools", 20, "v1;3;20;2"), r"different transactions \(\[3, 4\]\)"),
    ],
)
def test_offsets_that_are_not_of_one_transaction_stop_the_worker(
    tools: tuple[str, int, str | None], words: str
) -> None:
    with pytest.raises(Fatal, match=words):
        checkpoint(0, [("prompts", 10, "v1;4;7;2"), tools])


def test_a_log_that_begins_at_the_low_is_whole() -> None:
    check_log_starts(0, TOPICS, POINT, (7, 20))


def test_a_log_that_begins_above_the_low_stops_the_worker() -> None:
    with pytest.raises(Fatal, match="prompts begins at offset 8, but events from 7 on"):
        check_log_starts(0, TOPICS, POINT, (8, 20))


def test_a_cut_is_the_largest_per_topic_over_the_records_of_a_session() -> None:
    records = [
        headers("chain", b"a", (3, 9)),
        headers("fragment", b"a", (5, 2)),
        headers("fragment", b"b", (1, 1)),
    ]

    assert cuts_of(records) == {b"a": [5, 9], b"b": [1, 1]}


def test_open_revisions_and_what_reassess_wrote_take_nothing() -> None:
    records = [
        headers("open", b"a", (3, 9)),
        headers("chain", b"a", (5, 2), writer=b"reassess"),
        {"kind": b"chain"},
        {},
    ]

    assert cuts_of(records) == {}
