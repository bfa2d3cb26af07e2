"""Files to events: what goes where, and what goes to the dead letters."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trailweave.producers import ingest as module
from trailweave.producers.ingest import Report, dry_run, ingest
from trailweave.schemas.codec import Decoder
from trailweave.schemas.errors import Rejected
from trailweave.schemas.events import DEAD_LETTERS_TOPIC

ContextOf = Callable[..., Any]
Sent = tuple[str, bytes, bytes]

SECRET = "ghp_" + "a" * 36


def decision(number: int, **more: Any) -> dict[str, Any]:
    return {"decision_id": f"d{number}", "result": True, **more}


def run(
    paths: list[Path], context: Any, name: str = "opa", **more: Any
) -> tuple[Report, list[Sent]]:
    sent: list[Sent] = []
    report = ingest(paths, name, context, lambda *each: sent.append(each), **more)
    return report, sent


def letters(sent: list[Sent]) -> list[tuple[bytes, dict[str, Any]]]:
    decoder = Decoder()
    return [(k, decoder.decode(v)[1]) for topic, k, v in sent if topic == DEAD_LETTERS_TOPIC]


def test_a_malformed_record_goes_to_the_dead_letters_with_its_position(
    tmp_path: Path, context_of: ContextOf
) -> None:
    path = tmp_path / "log.jsonl"
    broken = b'{"decision_id": "d1", "token": "' + SECRET.encode() + b'",'
    path.write_bytes(
        json.dumps(decision(0)).encode() + b"\n" + broken + b"\n" + json.dumps(decision(2)).encode()
    )
    report, sent = run([path], context_of("opa"), now_ms=lambda: 7)
    ((key, letter),) = letters(sent)

    assert report.events == {"policy_decided": 2}
    assert (report.records, report.translated, report.malformed) == (3, 2, 1)
    assert str(report.problems[0]).startswith("log.jsonl, line 2 (record 1): not JSON")
    assert key == b"log.jsonl|-1|1"
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("log.jsonl", -1, 1)
    assert (letter["stage"], letter["code"]) == ("ingest:opa", "malformed")
    assert (letter["recorded_at"], letter["tenant"]) == (7, "acme")
    assert letter["reason"].startswith("line 2: not JSON")
    assert letter["value"].startswith(b'{"decision_id": "d1", "token": "[redacted:')
    assert SECRET.encode() not in b"".join(value for _, _, value in sent)


def test_a_broken_span_among_others_is_a_dead_letter_that_can_be_read_again(
    tmp_path: Path, context_of: ContextOf
) -> None:
    chat = {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}}
    good = {"traceId": "ab" * 16, "spanId": "cd" * 8, "attributes": [chat]}
    spans = [good, {**good, "traceId": "nope"}, {**good, "spanId": "ef" * 8}]
    path = tmp_path / "traces.json"
    path.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}))
    report, sent = run([path], context_of("otlp"), "otlp")
    ((_, letter),) = letters(sent)

    assert report.events == {"model_responded": 2}
    assert letter["offset"] == 1
    assert json.loads(letter["value"])["resourceSpans"][0]["scopeSpans"][0]["spans"] == [spans[1]]


def test_an_event_over_the_size_limit_is_a_dead_letter(
    tmp_path: Path, context_of: ContextOf
) -> None:
    path = tmp_path / "log.jsonl"
    large = decision(0, result={"allow": True, "reason": "x" * 1_100_000})
    path.write_text(json.dumps(large) + "\n" + json.dumps(decision(1)))
    report, sent = run([path], context_of("opa"))
    ((_, letter),) = letters(sent)

    assert (report.unsendable, report.events["policy_decided"]) == (1, 1)
    assert letter["code"] == "too_large"
    assert len(letter["value"]) == module.DEAD_LETTER_VALUE_MAX


def test_gzip_is_known_by_its_first_bytes_whatever_the_name(
    tmp_path: Path, context_of: ContextOf
) -> None:
    path = tmp_path / "log"
    path.write_bytes(gzip.compress(json.dumps([decision(0), decision(1)]).encode()))
    report, _ = run([path], context_of("opa"))

    assert report.events == {"policy_decided": 2}


def test_a_gzip_stream_that_breaks_off_keeps_what_came_before(
    tmp_path: Path, context_of: ContextOf
) -> None:
    path = tmp_path / "log.gz"
    lines = "\n".join(json.dumps(decision(i, note=str(i * 7919))) for i in range(1_500))
    path.write_bytes(gzip.compress(lines.encode())[:-1_000])
    report, _ = run([path], context_of("opa"))

    assert report.events["policy_decided"] > 100
    assert report.malformed == 1
    assert "gzip stream is broken" in report.problems[0].reason


def test_a_missing_file_stops_the_run_before_anything_is_sent(
    tmp_path: Path, context_of: ContextOf
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(decision(0)))
    sent: list[Sent] = []

    with pytest.raises(Rejected, match=r"couldn't read .*absent"):
        ingest(
            [path, tmp_path / "absent"], "opa", context_of("opa"), lambda *each: sent.append(each)
        )
    assert sent == []


def test_an_unknown_format_names_the_known_ones(context_of: ContextOf) -> None:
    with pytest.raises(Rejected, match="there are: mcp, opa, otlp, vault"):
        ingest([], "syslog", context_of("opa"), lambda *_: None)


@pytest.mark.parametrize("tenant", ["", "x" * 64])
def test_a_tenant_that_no_event_can_carry_is_refused(context_of: ContextOf, tenant: str) -> None:
    with pytest.raises(Rejected, match="invalid_tenant"):
        type(context_of("opa"))(tenant, "opa", context_of("opa").reporter)


def test_rotated_vault_logs_are_one_log(
    tmp_path: Path, vectors: Path, context_of: ContextOf
) -> None:
    sample = vectors / "vault" / "constructed-openbao-lease-lifecycle.jsonl"
    lines = sample.read_bytes().splitlines(keepends=True)
    first, second = tmp_path / "a.log", tmp_path / "b.log"
    first.write_bytes(b"".join(lines[:5]))
    second.write_bytes(lines[5])
    _, apart = run([first, second], context_of("vault"), "vault")
    _, whole = run([sample], context_of("vault"), "vault")

    assert apart == whole


def test_a_dry_run_gives_the_same_events_as_json(tmp_path: Path, context_of: ContextOf) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(decision(0)) + "\nnope\n")
    event, broken = json.loads(json.dumps(list(dry_run([path], "opa", context_of("opa")))))
    _, sent = run([path], context_of("opa"))

    assert event["event_type"] == "policy_decided"
    assert event["event_id"].encode() in sent[0][2]
    assert broken["malformed"].startswith("log.jsonl, line 2 (record 1): not JSON")


def test_progress_is_told_while_a_long_file_is_read(
    tmp_path: Path, context_of: ContextOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROGRESS_RECORDS", 2)
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(json.dumps(decision(i)) for i in range(5)))
    seen: list[int] = []
    run([path], context_of("opa"), on_progress=lambda report: seen.append(report.records))

    assert seen == [2, 4, 5]
