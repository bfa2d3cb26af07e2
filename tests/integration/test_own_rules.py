"""The user's own rules: asked like ours, and contained whatever they do."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from trailweave.schemas.errors import Fatal
from trailweave.schemas.ids import new_trace_id
from trailweave.stream_processors import own_rules
from trailweave.stream_processors.chain import Chain
from trailweave.stream_processors.own_rules import OwnRules
from trailweave.stream_processors.verdict import OwnConfig, RulesConfig, judge

from tests.integration.test_cli import wait_until
from tests.processes import lives
from tests.unit.stream_processors.builders import Trace, chain

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The users' modules lie beside the tests."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def configured(module: str, deadline_s: float = 20.0) -> RulesConfig:
    return RulesConfig(own=OwnConfig(module, deadline_s))


def asked(config: RulesConfig) -> OwnRules:
    assert config.own is not None
    return OwnRules(config.own, config)


@pytest.fixture
def bad() -> Iterator[OwnRules]:
    with closing(asked(configured("tests.own.bad", 1.0))) as rules:
        yield rules


def session(environment: str = "production", *sources: str) -> Chain:
    trace = Trace(new_trace_id())
    return chain(
        trace.event("session_started", environment=environment, expected_sources=list(sources)),
        trace.event("tool_requested", call_id="c1", tool="transfer"),
        trace.event("tool_requested", call_id="c2", tool="lookup"),
    )


def found(rules: OwnRules, one: Chain) -> list[tuple[str, str]]:
    return [(rule.name, hit.summary) for rule, hits in rules(one).found for hit in hits]


def test_own_rules_are_asked_as_ours_are() -> None:
    config, one = configured("tests.own.good"), session()
    with closing(asked(config)) as rules:
        verdict = judge(one, config, own=rules)
    (finding,) = [one for one in verdict.findings if one.rule.name == "transfer_tool"]

    assert finding.rule.severity == "medium"
    assert finding.rule.controls == ("ACME-7",)
    assert finding.hit.subject == "c1"
    assert finding.hit.events == (one.of("tool_requested")[0],)
    assert "needs_a_vault" in verdict.not_evaluable


def test_what_the_session_promises_and_the_limits_reach_them() -> None:
    one = session("production", "vault")
    with closing(asked(configured("tests.own.good"))) as rules:
        summaries = found(rules, one)

    assert ("needs_a_vault", f"a vault is there for {one.trace_id} and 10") in summaries


def test_a_rule_that_raises_is_not_evaluable_and_the_others_are(
    bad: OwnRules, caplog: pytest.LogCaptureFixture
) -> None:
    verdict = bad(session("raise"))

    assert [(rule.name, len(hits)) for rule, hits in verdict.found] == [("beside_it", 1)]
    assert verdict.not_evaluable == ["misbehaves"]
    assert "ValueError in bad.py:" in caplog.text
    assert "secret-in-the-text" not in caplog.text


@pytest.mark.parametrize("how", ["endless", "slow", "exit"])
def test_what_ends_or_hangs_costs_its_chain_its_own_rules_and_no_other(
    bad: OwnRules, how: str
) -> None:
    before = found(bad, session())
    process = bad._process
    lost = bad(session(how))

    assert before == [("beside_it", "beside it")]
    assert (lost.found, lost.not_evaluable) == ([], ["beside_it", "misbehaves"])
    assert process is not None
    assert not lives(process.pid)
    assert found(bad, session()) == before


def test_what_takes_too_much_memory_is_stopped_there(bad: OwnRules) -> None:
    verdict = bad(session("huge memory"))

    assert verdict.not_evaluable == ["misbehaves"]
    assert [rule.name for rule, _ in verdict.found] == ["beside_it"]


def test_what_finds_too_much_is_cut(bad: OwnRules) -> None:
    verdict = bad(session("huge answer"))

    assert {rule.name: len(hits) for rule, hits in verdict.found} == {
        "misbehaves": 100,
        "beside_it": 1,
    }
    assert max(len(hit.summary) for _, hits in verdict.found for hit in hits) == 4_000


def test_after_some_failures_the_rules_are_left_alone_for_a_while(
    bad: OwnRules, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(own_rules.FAILURES_MAX):
        bad(session("exit"))
    with caplog.at_level(logging.ERROR):
        later = bad(session())

    assert bad._process is None
    assert (later.found, later.not_evaluable) == ([], ["beside_it", "misbehaves"])


@pytest.mark.parametrize(("module", "why"), [
    ("tests.own.none", "ModuleNotFoundError"),
    ("json", "json has no RULES: a list of functions decorated with rule(...)"),
])  # fmt: skip
def test_a_module_that_can_not_be_used_is_named_and_costs_nothing_more(
    module: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(asked(configured(module))) as rules:
        verdicts = [rules(session()) for _ in range(2)]

    assert [verdict.not_evaluable for verdict in verdicts] == [[module]] * 2
    assert f"lost the process of the own rules in {module}: {why}" in caplog.text
    assert "asked again in 60 s" in caplog.text


def test_the_process_ends_with_its_owner_even_in_an_endless_rule() -> None:
    program = (
        "from tests.integration.test_own_rules import asked, configured, session\n"
        "rules = asked(configured('tests.own.bad', 60.0))\n"
        "rules(session())\n"
        "print(rules._process.pid, flush=True)\n"
        "rules(session('endless'))\n"
    )
    arguments = [sys.executable, "-c", program]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        owner.kill()

    wait_until(lambda: not lives(child))


@pytest.mark.parametrize("text", [
    "[own]\n", '[own]\nmodule = ""\n', '[own]\nmodule = "m"\ndeadline_s = 0\n',
    '[own]\nmodule = "m"\nmemory_mb = 1.5\n', '[own]\nmodule = "m"\nothers = 1\n',
])  # fmt: skip
def test_wrong_settings_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(text, "utf-8")

    with pytest.raises(Fatal, match=r"rules\.toml: own"):
        RulesConfig.load(path)
