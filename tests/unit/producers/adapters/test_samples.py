"""Every sample file as `trailweave ingest` reads it: what comes out is in expected_samples.json.

The whole-pipeline test uses the same list: `events` by type, `traces` that hold them, reasons for
what is passed over, and how many records are malformed (tables of cases that are no input).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trailweave.producers.ingest import Report, ingest
from trailweave.producers.transport import default_encoder
from trailweave.schemas.codec import Decoder, head
from trailweave.schemas.events import DEAD_LETTERS_TOPIC
from trailweave.schemas.validity import validity

ContextOf = Callable[..., Any]
Sent = tuple[str, bytes, bytes]

EXPECTED = json.loads(Path(__file__).with_name("expected_samples.json").read_text("utf-8"))


def ingested(paths: list[Path], name: str, context: Any) -> tuple[Report, list[Sent]]:
    sent: list[Sent] = []
    report = ingest(
        paths,
        name,
        context,
        lambda topic, key, value: sent.append((topic, key, value)),
        encoder=default_encoder(),
        now_ms=lambda: 1_795_204_800_000,
    )
    return report, sent


@pytest.mark.parametrize("sample", EXPECTED, ids=lambda each: each["file"])
def test_a_sample_comes_through_as_expected(
    sample: dict[str, Any], vectors: Path, context_of: ContextOf
) -> None:
    name = sample["format"]
    report, sent = ingested([vectors / sample["file"]], name, context_of(name))
    traces = {key for topic, key, _ in sent if topic != DEAD_LETTERS_TOPIC}

    assert {
        "file": sample["file"],
        "format": name,
        "records": report.records,
        "events": dict(sorted(report.events.items())),
        "traces": len(traces),
        "correlation": dict(sorted(report.correlation.items())),
        "skipped": dict(sorted(report.skipped.items())),
        "malformed": report.malformed,
    } == sample


@pytest.mark.parametrize("name", ["otlp", "opa", "vault", "mcp"])
def test_reading_all_samples_twice_gives_the_same_bytes(
    name: str, vectors: Path, context_of: ContextOf
) -> None:
    paths = [vectors / each["file"] for each in EXPECTED if each["format"] == name]
    _, once = ingested(paths, name, context_of(name))
    _, again = ingested(paths, name, context_of(name))

    assert once == again


@pytest.mark.parametrize("name", ["otlp", "opa", "vault", "mcp"])
def test_every_sent_event_is_one_that_join_and_load_accept(
    name: str, vectors: Path, context_of: ContextOf
) -> None:
    paths = [vectors / each["file"] for each in EXPECTED if each["format"] == name]
    _, sent = ingested(paths, name, context_of(name))
    decoder = Decoder()
    events = [each for each in sent if each[0] != DEAD_LETTERS_TOPIC]

    for topic, key, value in events:
        assert validity(topic, key, value, decoder)[1].tenant == "acme"
    by_id: dict[str, bytes] = {}
    for _, _, value in events:
        assert by_id.setdefault(head(value).event_id, value) == value


def test_every_record_is_translated_passed_over_or_malformed(
    vectors: Path, context_of: ContextOf
) -> None:
    for name in ("otlp", "opa", "vault", "mcp"):
        paths = [vectors / each["file"] for each in EXPECTED if each["format"] == name]
        report, _ = ingested(paths, name, context_of(name))

        assert report.files == len(paths)
        parts = report.translated + report.skipped.total() + report.malformed
        assert report.records == parts
