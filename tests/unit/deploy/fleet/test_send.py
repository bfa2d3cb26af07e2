"""Sending keeps order, rate and count."""

import time

from trailweave.deploy.fleet.fleet import Fleet
from trailweave.deploy.fleet.send import send_fleet

BASE_US = 1_790_000_000_000_000


def test_every_record_is_sent_once_in_order_and_progress_ends_at_the_count() -> None:
    records = list(Fleet(60, 1, BASE_US))
    sent: list[tuple[str, bytes, bytes]] = []
    progress: list[int] = []
    count = send_fleet(records, lambda *record: sent.append(record), on_progress=progress.append)

    assert sent == [(record.topic, record.key, record.value) for record in records]
    assert count == len(records) == progress[-1]
    assert progress == sorted(progress)


def test_a_rate_is_not_exceeded() -> None:
    records = list(Fleet(5, 1, BASE_US))[:60]
    started_s = time.monotonic()
    send_fleet(records, lambda *_: None, rate=400)

    assert time.monotonic() - started_s >= 59 / 400
