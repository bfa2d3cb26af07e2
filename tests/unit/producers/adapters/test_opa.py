"""OPA decision logs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trailweave.producers.adapters import opa
from trailweave.schemas.errors import Rejected

Reading = Callable[..., list[dict[str, Any]]]
ContextOf = Callable[..., Any]
DECISION = {"decision_id": "d1", "labels": {}, "timestamp": "2026-11-20T20:00:00Z"}


@pytest.mark.parametrize(
    ("result", "rule", "effect"),
    [
        (True, "", "allow"),
        (False, "", "deny"),
        ("true", "", "allow"),
        ("Denied", "", "deny"),
        ("step_up", "", "step_up"),
        ({"allow": True}, "", "allow"),
        ({"allow": False, "reasons": ["x"]}, "", "deny"),
        ({"allow": True, "deny": ["not here"]}, "", "deny"),
        ({"allow": True, "deny": []}, "", "allow"),
        ({"effect": "modify"}, "", "modify"),
        ({"result": True}, "", "allow"),
        (True, "deny", "deny"),
        (["no"], "violation", "deny"),
        (False, "deny", "unknown"),
        ([], "deny", "unknown"),
        (["admin"], "", "unknown"),
        ({"roles": []}, "", "unknown"),
        (1, "", "unknown"),
        (None, "", "unknown"),
        ("maybe", "", "unknown"),
    ],
)
def test_a_result_of_any_type_says_one_effect_or_unknown(
    result: object, rule: str, effect: str
) -> None:
    assert opa.effect_of(result, rule) == effect


def test_a_traced_upload_gives_decisions_in_their_traces(vectors: Path, reading: Reading) -> None:
    rows = json.loads((vectors / "opa" / "constructed-traced-upload.json").read_text("utf-8"))
    allowed, denied, failed = reading("opa", *rows)

    assert (allowed["effect"], denied["effect"], failed["effect"]) == ("allow", "deny", "unknown")
    assert allowed["trace_id"] == denied["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert allowed["span_id"] == "00f067aa0ba902b7"
    assert [each["call_id"] for each in (allowed, denied)] == ["call_A1", "toolu_B1"]
    assert allowed["policy_id"] == denied["policy_id"] == "agents/tools/allow"
    assert allowed["bundles"] == {"agents": "rev-17"}
    assert allowed["reason"] == "role:claims-reader"
    assert allowed["actor"]["subject"] == "spiffe://example.org/agent/claims"
    assert allowed["occurred_at"] == 1_795_204_800_100_000
    assert failed["error"].startswith("eval_conflict_error")
    assert failed["correlation"]["how"] == "uncorrelated"


def test_a_result_that_is_a_word_and_a_deprecated_revision_are_read(
    vectors: Path, reading: Reading
) -> None:
    (word,) = reading("opa", (vectors / "opa" / "docs-upload-array.json").read_bytes())
    path = vectors / "opa" / "transcribed-encoder-test-events.jsonl"
    old, smallest = reading("opa", path.read_bytes())

    assert word["effect"] == "allow"
    assert (old["effect"], old["bundles"]) == ("deny", {"default": "a"})
    assert (smallest["effect"], smallest["occurred_at"]) == ("unknown", 0)
    assert smallest["reason"] == "the decision is undefined: no rule gave a result"


def test_erased_fields_are_redactions_and_their_hash_is_null(
    vectors: Path, reading: Reading
) -> None:
    (found,) = reading("opa", (vectors / "opa" / "docs-erased-event.json").read_bytes())

    assert found["redactions"] == [
        {"field": "/input/password", "kind": "erased", "count": 1, "hmac": None},
        {"field": "/input/ssn", "kind": "erased", "count": 1, "hmac": None},
    ]
    assert found["input_hash"] is None


def test_every_mask_case_reports_what_was_masked(vectors: Path, reading: Reading) -> None:
    lines = (vectors / "opa" / "mask-cases.jsonl").read_text("utf-8").splitlines()
    masked = [json.loads(line)["masked_event"] for line in lines if line]
    found = reading("opa", *[{**DECISION, **event} for event in masked])

    assert len(found) == 8
    assert [[r["field"] for r in each["redactions"]] for each in found] == [
        [*m.get("erased", []), *m.get("masked", [])] for m in masked
    ]


def test_every_form_of_a_path_names_its_rule(vectors: Path) -> None:
    lines = (vectors / "opa" / "path-forms.jsonl").read_text("utf-8").splitlines()

    assert [opa.policy_id(json.loads(line)) for line in lines if line] == [
        "data",
        "data",
        "foo",
        "foo",
        "foo/bar",
        "a.b.c",
        "foo/a.b.c/bar",
        "a = data.foo",
    ]


def test_a_decision_without_a_trace_is_tied_by_its_call_id(reading: Reading) -> None:
    one, other = reading(
        "opa",
        {**DECISION, "input": {"call_id": "call_A1"}, "result": True},
        {**DECISION, "decision_id": "d2", "input": {"tool_use_id": "call_A1"}, "result": False},
    )

    assert one["correlation"]["how"] == "handle"
    assert one["trace_id"] == other["trace_id"]


def test_the_header_of_the_logged_request_gives_the_trace(reading: Reading) -> None:
    headers = {"Traceparent": ["00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"]}
    (found,) = reading("opa", {**DECISION, "request_context": {"http": {"headers": headers}}})

    assert found["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert (found["parent_span_id"], found["parent_remote"]) == ("00f067aa0ba902b7", True)


def test_an_engine_that_gave_up_has_timed_out(reading: Reading) -> None:
    (found,) = reading("opa", {**DECISION, "error": {"code": "eval_cancel_error"}})

    assert found["timed_out"] is True


def test_other_lines_of_the_console_log_are_passed_over(context_of: ContextOf) -> None:
    line = {"level": "info", "msg": "Received request.", "req_id": 1}

    assert opa.events_of(line, context_of("opa")).skipped == (
        "a console line of OPA that is no decision",
    )


@pytest.mark.parametrize("record", [[], "x", None, {}, {"result": True}, {"decision_id": 1}])
def test_what_is_no_decision_is_malformed(record: object, context_of: ContextOf) -> None:
    with pytest.raises(Rejected, match="malformed"):
        opa.events_of(record, context_of("opa"))


def test_a_secret_in_a_reason_is_taken_out(reading: Reading) -> None:
    result = {"allow": False, "reason": "token ghp_" + "a" * 36 + " is not known"}
    (found,) = reading("opa", {**DECISION, "result": result})

    assert found["reason"] == "token [redacted:github_token] is not known"
    assert [each["field"] for each in found["redactions"]] == ["reason"]
