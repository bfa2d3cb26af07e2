"""Synthetic events are whole sessions, whatever their number."""

import math
from collections import defaultdict
from typing import Any

import pytest
from trailweave.deploy.fleet.synthetic import EVENTS_PER_TRACE_MAX, synthetic_events
from trailweave.schemas.codec import Decoder, event_checker
from trailweave.schemas.events import event_topics
from trailweave.schemas.validity import validity

BASE_US = 1_790_123_456_789_012
DECODER = Decoder()


def decoded(traces: int, size: int) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    found = defaultdict(list)
    for sent in synthetic_events(traces, BASE_US, size):
        found[sent.key.decode()].append(DECODER.decode(sent.value))
    return dict(found)


@pytest.mark.parametrize("size", [12, 13, 17, 18, 40])
def test_every_trace_is_a_whole_session_of_the_asked_size(size: int) -> None:
    traces = decoded(5, size)

    assert len(traces) == 5
    for trace_id, events in traces.items():
        name, end = events[-1]
        counts: dict[str, int] = defaultdict(int)
        for _, record in events:
            assert record["trace_id"] == trace_id
            assert record["trace_seq"] == counts[record["producer_id"]]
            counts[record["producer_id"]] += 1
        assert (events[0][0], name, len(events)) == ("session_started", "session_ended", size)
        assert end["expected_exhaustive"]
        assert end["expected"] == counts


def test_events_are_valid_and_reach_every_topic_at_about_500_bytes() -> None:
    checker = event_checker()
    sent = list(synthetic_events(300, BASE_US))
    for record in sent:
        validity(record.topic, record.key, record.value, checker)

    assert {record.topic for record in sent} == set(event_topics())
    assert 450 < sum(len(record.value) for record in sent) / len(sent) < 600


def test_no_two_events_have_the_same_id() -> None:
    ids = [r["event_id"] for events in decoded(300, 12).values() for _, r in events]

    assert len(set(ids)) == len(ids) == 3600
    assert {event_id[14] + event_id[19] for event_id in ids} == {"78"}


def test_the_lease_outlives_the_longest_session() -> None:
    (events,) = decoded(1, EVENTS_PER_TRACE_MAX).values()
    expiry = next(r["expires_at"] for name, r in events if name == "credential_issued")
    used = [r["occurred_at"] for name, r in events if name == "credential_used"]

    assert max(used) < expiry


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others() -> None:
    first, again, other = (
        [record.value for record in synthetic_events(3, BASE_US, seed=seed)] for seed in (1, 1, 2)
    )

    assert first == again
    assert not set(first) & set(other)


@pytest.mark.parametrize("size", [11, EVENTS_PER_TRACE_MAX + 1, -math.inf])
def test_a_size_that_holds_no_session_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="couldn't tell a session"):
        next(synthetic_events(1, BASE_US, size))
