"""`trailweave reassess`: late fragments, other rules, and nothing said twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trailweave.schemas import events
from trailweave.schemas.ids import new_trace_id
from trailweave.sinks.ask import TRACES_MAX
from trailweave.stream_processors.rules import RULES_VERSION
from trailweave.stream_processors.verdict import RulesConfig

from tests.integration.join_kafka import Feed
from tests.integration.pipeline import DEADLINE_S, Pipeline, engines
from tests.integration.test_cli import wait_until
from tests.unit.stream_processors.builders import Made, Trace

GRACE_S, IDLE_S = 0.3, 1.5


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with (
        engines(tmp_path_factory.mktemp("reassess")) as made,
        made.working(GRACE_S, IDLE_S),
    ):
        yield made


@pytest.fixture
def feed(pipeline: Pipeline) -> Feed:
    return Feed(pipeline.kafka.address)


def send(feed: Feed, *made: Made) -> None:
    feed.send(*made)
    feed.flush()


def chains(pipeline: Pipeline, trace: Trace) -> list[dict[str, Any]]:
    return pipeline.rows(
        "SELECT w, kind, events, completeness, part FROM chains"
        " WHERE trace_id = {trace:String} AND kind != 'open' ORDER BY offset",
        trace=trace.trace_id,
    )


def latest(pipeline: Pipeline, trace: Trace) -> dict[str, Any]:
    (row,) = pipeline.rows(
        "SELECT w, kind, events, completeness, rules_version, rules_config_hash,"
        " reassessment_pending FROM chains_latest WHERE trace_id = {trace:String}",
        trace=trace.trace_id,
    )
    return row


def states(pipeline: Pipeline, trace: Trace) -> dict[str, str]:
    found = pipeline.asked(
        "findings", trace=trace.trace_id, tenant="", rule="", agent="", state="", severity_rank=1,
        since="2000-01-01 00:00:00", until="2100-01-01 00:00:00", limit=100,
    )  # fmt: skip
    return {row["rule"]: row["state"] for row in found}


def arrived(pipeline: Pipeline, trace: Trace, parts: int) -> None:
    """Every part of the session is stored, every event of it, and every finding that a part names:
    each comes by a topic of its own.
    """

    def stored() -> bool:
        here = chains(pipeline, trace)
        (missing,) = pipeline.rows(
            "SELECT count() AS findings FROM"
            " (SELECT arrayJoin(findings).finding_id AS id FROM chains"
            " WHERE trace_id = {trace:String}) WHERE id NOT IN"
            " (SELECT finding_id FROM findings WHERE trace_id = {trace:String})",
            trace=trace.trace_id,
        )
        (row,) = pipeline.rows(
            "SELECT count() AS rows FROM events WHERE trace_id = {trace:String}",
            trace=trace.trace_id,
        )
        taken = sum(part["events"] for part in here if part["w"] == "join")
        return len(here) == parts and row["rows"] == taken and not missing["findings"]

    wait_until(stored, DEADLINE_S)


def reassess(pipeline: Pipeline, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = pipeline.run("reassess", "--until", "2100-01-01", "--json", *arguments)
    assert done.stdout, done.exception
    assert done.exit_code == code, done.stdout
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def session_with_a_late_decision(pipeline: Pipeline, feed: Feed) -> Trace:
    """A call ran without a decision, as it seemed; the decision came late."""
    trace = Trace(new_trace_id())
    start = trace.event("session_started", expected_sources=["policy"])
    late = trace.event("policy_decided", 1.5, call_id="c", effect="allow")
    run = trace.event("tool_executed", 3, call_id="c", tool="shell")
    send(feed, start, run, trace.ended())
    arrived(pipeline, trace, 1)
    assert states(pipeline, trace)["exec_without_decision"] == "open"
    send(feed, late)
    arrived(pipeline, trace, 2)
    return trace


def test_a_late_fragment_is_merged_and_what_it_explains_is_taken_back(
    pipeline: Pipeline, feed: Feed
) -> None:
    trace = session_with_a_late_decision(pipeline, feed)
    before = latest(pipeline, trace)
    counted = reassess(pipeline, "--pending", "--trace", trace.trace_id, "--dry-run")
    done = reassess(pipeline, "--pending", "--trace", trace.trace_id)
    after, again = latest(pipeline, trace), reassess(pipeline, "--trace", trace.trace_id)

    assert (before["w"], before["events"], before["reassessment_pending"]) == ("join", 3, 1)
    assert (counted["revised"], counted["findings_retracted"]) == (1, 2)
    assert (done["revised"], done["rules"]) == (1, {"exec_without_decision": -1, "seq_gap": -1})
    assert (after["w"], after["events"], after["reassessment_pending"]) == ("reassess", 4, 0)
    assert states(pipeline, trace)["exec_without_decision"] == "retracted"
    assert (again["looked_at"], again["up_to_date"], again["revised"]) == (1, 1, 0)
    assert "exec_without_decision" not in pipeline.run("sessions", "show", trace.trace_id).stdout


def test_a_part_that_comes_after_a_reassessment_is_taken_in_by_the_next(
    pipeline: Pipeline, feed: Feed
) -> None:
    trace = session_with_a_late_decision(pipeline, feed)
    reassess(pipeline, "--trace", trace.trace_id)
    send(feed, trace.event("prompt_submitted"))
    arrived(pipeline, trace, 4)
    pending = latest(pipeline, trace)["reassessment_pending"]
    done = reassess(pipeline, "--pending", "--trace", trace.trace_id)

    assert (pending, done["revised"]) == (1, 1)
    assert latest(pipeline, trace)["events"] == 5


def test_other_rules_make_a_revision_where_their_answer_changes(
    pipeline: Pipeline, feed: Feed, tmp_path: Path
) -> None:
    trace, other = Trace(new_trace_id()), Trace(new_trace_id())
    send(feed, trace.event("model_responded", model="llama-next"), trace.event("session_started"))
    send(feed, trace.ended(), *other.whole())
    for one in (trace, other):
        arrived(pipeline, one, 1)
    rules = tmp_path / "rules.toml"
    rules.write_text('[limits]\nmodels = ["gpt*"]\n')
    wanted = ("--rules", str(rules), "--rule", "unapproved_model")
    done = [
        reassess(pipeline, *wanted, "--trace", one.trace_id)["revised"] for one in (trace, other)
    ]
    all_of_them = reassess(pipeline, "--rules", str(rules), "--trace", other.trace_id)

    assert done == [1, 0]
    assert states(pipeline, trace)["unapproved_model"] == "open"
    assert latest(pipeline, trace)["rules_version"] == RULES_VERSION
    assert (all_of_them["revised"], all_of_them["findings_opened"]) == (1, 0)
    assert latest(pipeline, other)["rules_config_hash"] == RulesConfig.load(rules).digest


def test_more_sessions_than_one_question_can_name_are_all_judged(
    pipeline: Pipeline, feed: Feed, tmp_path: Path
) -> None:
    traces = [Trace(new_trace_id(), tenant="many") for _ in range(2 * TRACES_MAX + 1)]
    made = [event for trace in traces for event in trace.whole(0)]
    send(feed, *made)
    sql = (
        "SELECT (SELECT count() FROM chains WHERE tenant = 'many') AS chains,"
        " (SELECT count() FROM events WHERE tenant = 'many') AS events"
    )
    all_of_it = {"chains": len(traces), "events": len(made)}
    wait_until(lambda: pipeline.rows(sql) == [all_of_it], DEADLINE_S)
    rules = tmp_path / "rules.toml"
    rules.write_text("[limits]\ntries = 7\n")
    wanted = ("--rules", str(rules), "--tenant", "many")
    done = [reassess(pipeline, *wanted) for _ in range(2)]

    assert [one["revised"] for one in done] == [len(traces), 0]
    assert done[1]["up_to_date"] == len(traces)


def test_an_unknown_rule_is_an_error(pipeline: Pipeline) -> None:
    done = pipeline.run("reassess", "--rule", "no_such_rule")

    assert done.exit_code == 2
    assert "no rule is called 'no_such_rule'" in done.output


def test_the_account_and_a_restarted_join_take_no_notice(pipeline: Pipeline, feed: Feed) -> None:
    session_with_a_late_decision(pipeline, feed)
    reassess(pipeline)
    pipeline.kill("join")
    pipeline.start("join")
    trace = Trace(new_trace_id())
    send(feed, *trace.whole())
    arrived(pipeline, trace, 1)
    records = pipeline.rows("SELECT uniqExact(topic, partition, offset) AS records FROM events")
    done = pipeline.run("account", "--json")
    stages = json.loads(done.stdout)["stages"]

    assert done.exit_code == 0, done.stdout
    assert sum(x["in"] for x in stages if x["stage"] == "join") == records[0]["records"]
    assert events.SESSIONS_TOPIC in {stage["of"] for stage in stages}
