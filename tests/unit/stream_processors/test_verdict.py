"""The verdict: completeness, findings with ids that repeat, limits, and the rules file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from trailweave.schemas.codec import Decoder
from trailweave.schemas.errors import Fatal
from trailweave.stream_processors import verdict
from trailweave.stream_processors.chain import Chain
from trailweave.stream_processors.ranges import CONFLICTS_MAX, GAPS_MAX
from trailweave.stream_processors.rules import RULES, Limits
from trailweave.stream_processors.rules.rule import Hit, rule
from trailweave.stream_processors.rules.ruleset import RuleSet
from trailweave.stream_processors.verdict import (
    FINDINGS_PER_RULE_MAX,
    Circumstances,
    RulesConfig,
    chain_record,
    finding_record,
    judge,
    unjudged,
)

from tests.unit.stream_processors.builders import (
    ENCODER,
    START_US,
    TRACE,
    Made,
    Trace,
    as_stored,
    chain,
)

CONFIG = RulesConfig()
#: Rules that ask for settings which nobody has made.
UNSET = {"unapproved_model", "agent_cred_elsewhere"}
ALL_SOURCES = ["agent", "gateway", "policy", "vault", "downstream"]
AT = Circumstances("closed", "counts", part=7, judged_at_ms=99, dead_lettered=0)


def judged(*made: Made) -> verdict.Verdict:
    return judge(chain(*made), CONFIG)


# --- completeness ---


def test_a_session_with_all_announced_events_is_complete() -> None:
    found = judged(*Trace().whole(2))

    assert (found.completeness, found.missing) == ("complete", [])


def test_a_session_that_lacks_an_event_is_incomplete_and_says_what() -> None:
    made = Trace().whole()
    del made[2]
    found = judged(*made)

    assert found.completeness == "incomplete"
    assert [m["what"] for m in found.missing] == ["sequence", "count"]
    assert found.missing[0]["detail"] == "sequence 2 to 2 never arrived"


def test_a_conflict_makes_a_session_incomplete() -> None:
    trace = Trace()
    made = trace.whole()
    other = Trace().event("session_started", entrypoint="cli")
    found = judged(*made, other)

    assert (found.completeness, [m["what"] for m in found.missing]) == ("incomplete", ["conflict"])


def test_two_events_with_one_sequence_make_a_session_incomplete() -> None:
    trace = Trace()
    made = trace.whole()
    trace.sequences.clear()
    other = trace.event("session_started")
    found = judged(*made, other)

    assert (found.completeness, found.missing) == (
        "incomplete",
        [
            {
                "what": "conflict",
                "subject": "agent-1",
                "detail": "two different events have the sequence 0",
            }
        ],
    )


def test_what_is_missing_beyond_the_listed_gaps_is_counted() -> None:
    found = judged(
        *(Trace(number=n).event("prompt_submitted", trace_seq=2 * n) for n in range(300))
    )

    assert found.missing[-1]["detail"] == f"{299 - GAPS_MAX} more sequence numbers never arrived"


def test_a_conflict_beyond_the_listed_ones_is_counted() -> None:
    trace = Trace()
    made = [trace.event("prompt_submitted", trace_seq=n // 2) for n in range(400)]

    assert [m["detail"] for m in judged(*made).missing[-2:]] == [
        f"two different events have the sequence {CONFLICTS_MAX - 1}",
        f"so have {200 - CONFLICTS_MAX} more sequence numbers",
    ]


def without_end(t: Trace) -> list[Made]:
    return [t.event("session_started")]


def with_unsequenced(t: Trace) -> list[Made]:
    more = t.event("tool_executed", call_id="c", trace_seq=None)
    return [t.event("session_started"), more, t.ended({"agent-1": 3})]


def with_unannounced(t: Trace) -> list[Made]:
    more = t.event("tool_executed", call_id="c", producer_id="stranger")
    return [t.event("session_started"), more, t.ended({"agent-1": 2})]


def without_start(t: Trace) -> list[Made]:
    return [t.event("prompt_submitted"), t.ended({"agent-1": 2})]


@pytest.mark.parametrize("events", [without_end, with_unsequenced, with_unannounced, without_start])
def test_what_cannot_be_shown_to_be_whole_is_unprovable(events: object) -> None:
    assert judged(*events(Trace())).completeness == "unprovable"  # type: ignore[operator]


# --- findings ---


def test_rules_whose_sources_nobody_promised_are_not_evaluable() -> None:
    found = judged(Trace().event("session_started"))

    assert set(found.not_evaluable) == {r.name for r in RULES if r.needs} | UNSET


def test_a_session_may_promise_the_sources_itself() -> None:
    made = Trace().event("session_started", expected_sources=ALL_SOURCES)

    assert set(judged(made).not_evaluable) == UNSET


def test_a_rule_is_not_asked_of_a_chain_that_has_nothing_of_what_it_is_about() -> None:
    asked: list[str] = []

    @rule("low", about=("tool_executed",), controls=(), expected="", next_step="")
    def curious(found: Chain) -> Iterator[Hit]:
        """Wants to see executions."""
        asked.append(found.trace_id)
        return iter(())

    trace = Trace()
    judge(chain(trace.event("session_started")), CONFIG, RuleSet([curious]))
    assert asked == []
    judge(chain(trace.event("tool_executed", call_id="c")), CONFIG, RuleSet([curious]))
    assert asked == [trace.trace_id]


def test_a_rule_that_is_off_is_neither_asked_nor_missed() -> None:
    off = frozenset({"exec_without_decision", "seq_gap"})
    found = judge(chain(Trace().event("session_started", trace_seq=1)), RulesConfig(off=off))

    assert not off & {f.rule.name for f in found.findings}
    assert not off & set(found.not_evaluable)


def test_finding_ids_repeat_and_differ_by_tenant() -> None:
    ids = [
        [
            f.finding_id
            for f in judged(Trace(tenant=t).event("session_started", trace_seq=1)).findings
        ]
        for t in ("a", "a", "b")
    ]

    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 1


def test_two_hits_on_one_subject_are_one_finding() -> None:
    trace = Trace()
    uses = [trace.event("credential_used", expires_at=1) for _ in range(3)]

    assert [f.rule.name for f in judged(*uses).findings] == ["cred_after_expiry"]


def test_findings_of_one_rule_are_limited() -> None:
    @rule("low", controls=(), expected="", next_step="")
    def noisy(_: Chain) -> Iterator[Hit]:
        """Fires without end."""
        number = 0
        while True:
            yield Hit(str(number), "again")
            number += 1

    found = judge(chain(Trace().event("session_started")), CONFIG, RuleSet([noisy]))

    assert len(found.findings) == FINDINGS_PER_RULE_MAX


def test_a_fragment_is_not_judged() -> None:
    found = unjudged(chain(Trace().event("tool_executed", call_id="c", trace_seq=4)))

    assert (found.findings, found.not_evaluable, found.completeness) == ([], [], "unprovable")
    assert found.ranges[0].gaps == ((0, 3),)


# --- the records ---


def test_a_chain_record_and_its_findings_can_be_stored() -> None:
    trace = Trace()
    whole = chain(*trace.whole(), trace.event("tool_executed", call_id="ghost"))
    config = RulesConfig(expected_sources=frozenset(ALL_SOURCES))
    found = judge(whole, config)
    name, record = Decoder().decode(ENCODER.encode("chain", chain_record(whole, found, AT, config)))

    assert (name, record["trace_id"], record["events"], record["part"]) == ("chain", TRACE, 7, 7)
    assert record["highest_severity"] == "critical"
    assert [f["finding_id"] for f in record["findings"]] == [f.finding_id for f in found.findings]
    for finding in found.findings:
        _, stored = Decoder().decode(
            ENCODER.encode("finding", finding_record(finding, whole, AT, config))
        )
        assert stored["evidence"], stored["rule"]


def test_a_long_chain_lists_ranges_and_root_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "EVIDENCE_MAX", 5)
    trace = Trace()
    made = [trace.event("prompt_submitted") for _ in range(6)]
    short, long = chain(*made[:5]), chain(*made)
    records = [as_stored(chain_record(c, judge(c, CONFIG), AT, CONFIG)) for c in (short, long)]

    assert [len(r["evidence"]) for r in records] == [5, 0]
    assert records[1]["evidence_ranges"] == [
        {"topic": "trailweave.prompts", "partition": 0, "first": 0, "last": 5, "events": 6}
    ]
    assert len(records[1]["root"]) == 32


def test_the_worst_findings_come_first() -> None:
    trace = Trace()
    made = [
        trace.event("session_started", expected_sources=ALL_SOURCES, trace_seq=1),
        trace.event("model_responded", proposed=[{"call_id": "never", "tool": "x"}]),
        trace.event("tool_executed", call_id="ghost"),
    ]
    severities = [f.rule.severity for f in judged(*made).findings]

    assert severities == sorted(severities, key=verdict.SEVERITIES.index, reverse=True)
    assert len(set(severities)) > 1


def test_events_without_a_time_say_nothing_about_when_a_session_ran() -> None:
    trace = Trace()
    made = [trace.event("credential_used", occurred_at=0), trace.event("credential_used", 5)]
    no_time = chain(trace.event("session_started", occurred_at=0), trace.ended(occurred_at=0))
    record, none = (chain_record(c, judge(c, CONFIG), AT, CONFIG) for c in (chain(*made), no_time))

    assert record["started_at"] == record["pairs"][0]["first_at"] == START_US + 5_000_000
    assert (none["started_at"], none["ended_at"]) == (None, None)


def test_sums_that_no_long_can_hold_do_not_stop_the_record() -> None:
    trace = Trace()
    huge = 2**63 - 1
    made = [trace.event("model_responded", input_tokens=huge, output_tokens=huge) for _ in range(2)]
    whole = chain(*made)

    assert ENCODER.encode("chain", chain_record(whole, judge(whole, CONFIG), AT, CONFIG))


# --- rules.toml ---


def config_of(folder: Path, text: str) -> RulesConfig:
    path = folder / "rules.toml"
    path.write_text(text)
    return RulesConfig.load(path)


def test_a_rules_file_is_read_and_its_hash_kept(tmp_path: Path) -> None:
    found = config_of(tmp_path, 'expected_sources = ["policy"]\noff = ["seq_gap"]\n')

    assert (found.expected_sources, found.off) == (frozenset({"policy"}), frozenset({"seq_gap"}))
    assert found.digest.startswith("sha256:")
    assert found.digest != CONFIG.digest


def test_an_empty_rules_file_says_what_none_says(tmp_path: Path) -> None:
    assert config_of(tmp_path, "") == CONFIG


def test_a_rules_file_says_what_rules_compare_with(tmp_path: Path) -> None:
    text = '[limits]\nmodels = ["gpt-*"]\ncost_usd = 5\nbundles = { agents = "r2" }\n'
    found = config_of(tmp_path, text).limits

    assert found == Limits(models=("gpt-*",), cost_usd=5, bundles={"agents": "r2"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("off = [", "couldn't read"),
        ('off = ["no_such_rule"]', "no_such_rule"),
        ("of = []", "unknown names: .'of'"),
        ('expected_sources = ["polcy"]', "polcy"),
        ('expected_sources = "policy"', "expected_sources must be a list"),
        ("off = 5", "off must be a list"),
        ("off = [5]", "off must be a list"),
        ("limits = 5", "limits must be a table"),
        ("[limits]\ntrys = 3", "limits has no trys; there are .*tries"),
        ("[limits]\ntries = -1", "limits.tries must be a number from 0 on"),
        ("[limits]\ntries = 2.5", "limits.tries must be a number"),
        ("[limits]\ntries = true", "limits.tries must be a number"),
        ('[limits]\nmodels = "gpt-4o"', "limits.models must be a list of texts"),
        ("[limits]\nbundles = { agents = 3 }", "limits.bundles must be a table of texts"),
        ('[limits]\nnetworks = ["10.0.0.1/8"]', "limits.networks: 10.0.0.1/8 has host bits"),
    ],
)
def test_a_mistake_in_the_rules_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(Fatal, match=words):
        config_of(tmp_path, text)


def test_a_rules_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"none\.toml"):
        RulesConfig.load(tmp_path / "none.toml")
