"""The commands on real engines: a demo is kept, `up` runs on its data, questions are asked."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trailweave.deploy.fleet.labels import Label, read_labels

SESSIONS = 60
READY_TIMEOUT_S = 90.0
POLL_S = 0.1


def run(*arguments: str, data: Path | None = None) -> subprocess.CompletedProcess[str]:
    """One command, as a shell starts it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TRAILWEAVE_")}
    where = [] if data is None else ["--data", str(data)]
    return subprocess.run(
        [sys.executable, "-m", "trailweave.deploy.cli", *arguments, *where],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={**clean, "TRAILWEAVE_JARS": os.environ["TRAILWEAVE_JARS"]}
        if "TRAILWEAVE_JARS" in os.environ
        else clean,
    )


def asked(data: Path, *arguments: str) -> Any:
    """The JSON document of a command."""
    done = run(*arguments, "--json", data=data)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(POLL_S)


def started(data: Path, log: Path) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """`trailweave up` and the line that it prints when it is ready."""
    with log.open("w") as errors:
        up = subprocess.Popen(
            [sys.executable, "-m", "trailweave.deploy.cli", "up", "--json", "--data", str(data),
             "--config", str(data / "trailweave.toml")],
            stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    assert up.stdout is not None
    line = up.stdout.readline()
    up.stdout.close()
    assert line, log.read_text()
    return up, json.loads(line)


def processes(data: Path) -> list[str]:
    """Command lines of this machine that name the data directory or its workers' environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environ = (folder / "environ").read_bytes().decode("utf-8", "replace")
            except OSError:
                continue
            if str(data) in line or ("trailweave.deploy.cli" in line and str(data) in environ):
                found.append(f"{folder.name} {line}")
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A kept demo and its report."""
    data = tmp_path_factory.mktemp("demo") / "data"
    report = asked(data, "demo", "--sessions", str(SESSIONS), "--anomalies", "0.3")
    return data, report


@pytest.fixture(scope="module")
def up(demo: tuple[Path, dict[str, Any]]) -> Iterator[Path]:
    """`trailweave up` on the demo's data."""
    data, _ = demo
    process, _ = started(data, data / "up.log")
    yield data
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    assert (code, processes(data)) == (0, [])


@pytest.fixture
def labels(demo: tuple[Path, dict[str, Any]]) -> list[Label]:
    return list(read_labels(demo[0] / "labels.jsonl"))


def test_a_demo_catches_exactly_what_was_planted(demo: tuple[Path, dict[str, Any]]) -> None:
    report = demo[1]

    assert report["exact"], report
    assert report["findings"] == report["planted"] != {}
    assert report["events_sent"] == report["events_stored"] + report["dead_letters"]
    assert report["sessions"] == SESSIONS


def test_the_verdicts_score_exactly_against_the_labels(up: Path, tmp_path: Path) -> None:
    found = asked(up, "score", str(up / "labels.jsonl"))
    other = tmp_path / "labels.jsonl"
    lines = (up / "labels.jsonl").read_text().splitlines(keepends=True)
    other.write_text("".join(line.replace("self_approval", "ghost_action") for line in lines))
    done = run("score", str(other), data=up)

    assert (found["exact"], found["precision"], found["recall"]) == (True, 1.0, 1.0)
    assert found["rules"]["self_approval"]["planted"] > 0
    assert done.returncode == 1
    assert "lacks ghost_action" in done.stdout
    assert "has self_approval" in done.stdout


def test_an_identity_is_reported_with_what_it_may_and_what_it_did(up: Path) -> None:
    agent = "spiffe://acme.example/ns/agents/sa/procurement-agent"
    found = asked(up, "report", "identity", agent)
    printed = run("report", "identity", agent, data=up).stdout
    scopes = {row["scope"]: row for row in found["scopes"]}

    assert found["sessions"] >= found["as_actor"] > 0
    assert {row["tool"] for row in found["tools"]} >= {"erp.approve_invoice"}
    assert scopes["erp:invoices:approve"]["granted"] >= scopes["erp:invoices:approve"]["exercised"]
    assert found["credentials"][0]["uses"] > 0
    assert not found["cut_off"]
    assert "## Scopes" in printed
    assert "| erp:invoices:approve |" in printed


def test_an_identity_that_nobody_has_seen_is_said(up: Path) -> None:
    done = run("report", "identity", "nobody", data=up)

    assert done.returncode == 1
    assert "no session of that time names it" in done.stderr


def test_a_control_is_reported_with_its_rules_and_open_findings(
    up: Path, labels: list[Label]
) -> None:
    found = asked(up, "report", "control", "AC-5")
    planted = sum(f.rule == "self_approval" for label in labels for f in label.findings)
    (rule,) = found["rules"]

    assert (rule["rule"], rule["evaluated"]) == ("self_approval", SESSIONS)
    assert rule["sessions_with_findings"] == len(found["open_findings"]) == planted > 0
    assert "no rule serves it" in run("report", "control", "AC-99", data=up).stderr


def test_a_workflow_is_shown_with_who_acts_for_whom(up: Path, labels: list[Label]) -> None:
    label = next(x for x in labels if x.story == "delegated_research" and x.anomaly is None)
    name = asked(up, "sessions", "show", label.trace_id)["chain"]["workflow_id"]
    mine = ("--tenant", label.tenant)
    listed = {row["workflow_id"]: row for row in asked(up, "workflows", "list", *mine)}
    found = asked(up, "workflows", "show", name, *mine)
    printed = run("workflows", "show", name, *mine, data=up)

    assert listed[name]["sessions"] == len(found["sessions"])
    assert {one["for_whom"].rpartition("/")[2] for one in found["handovers"]} == {
        "planner-agent",
        "researcher-agent",
    }
    assert found["holds"] == (printed.returncode == 0)
    assert label.trace_id in {one["trace_id"] for one in found["sessions"]}
    assert "acts for" in printed.stdout
    assert "no session names it" in run("workflows", "show", "none", data=up).stderr


def test_what_is_no_labels_file_is_said(up: Path) -> None:
    done = run("score", str(up / "trailweave.toml"), data=up)

    assert done.returncode == 2
    assert "is no labels file" in done.stderr


def test_the_account_adds_up(up: Path) -> None:
    done = asked(up, "account")

    assert done["adds_up"], done
    assert {line["stage"] for line in done["stages"]} == {"producers", "join", "load"}


def test_the_status_knows_no_lag_and_no_open_session(up: Path) -> None:
    found = asked(up, "status")

    assert {row["lag"] for row in found["lags"]} == {0}
    assert found["open_sessions"] == 0
    assert found["dead_letters"] == 4


def test_all_sessions_are_listed(up: Path, labels: list[Label]) -> None:
    listed = asked(up, "sessions", "list", "--state", "closed", "--limit", "1000")

    assert {row["trace_id"] for row in listed} == {
        label.trace_id for label in labels if label.completeness is not None
    }


@pytest.mark.parametrize("column", ["agents", "identities", "sponsors", "credentials", "tools"])
def test_a_search_finds_exactly_the_sessions_that_have_the_value(up: Path, column: str) -> None:
    listed = asked(up, "sessions", "list", "--limit", "1000")
    value = next(row[column][0] for row in listed if row[column])
    flag = {"identities": "identity", "sponsors": "identity"}.get(column, column.rstrip("s"))
    found = asked(up, "sessions", "search", f"--{flag}", value, "--limit", "1000")
    places = ("identities", "sponsors") if flag == "identity" else (column,)
    expected = {r["trace_id"] for r in listed if any(value in r[place] for place in places)}

    assert {row["trace_id"] for row in found} == expected


def test_a_search_by_time_and_tenant(up: Path, labels: list[Label]) -> None:
    tenants = {label.tenant for label in labels}
    found = {
        tenant: asked(up, "sessions", "search", "--tenant", tenant, "--since", "1d")
        for tenant in tenants
    }

    assert all({row["tenant"] for row in rows} == {tenant} for tenant, rows in found.items())
    assert asked(up, "sessions", "search", "--tenant", "acme", "--until", "1d") == []


def test_a_complete_session_is_shown_whole_with_exit_0(up: Path, labels: list[Label]) -> None:
    label = next(label for label in labels if label.completeness == "complete")
    done = run("sessions", "show", label.trace_id, data=up)

    assert done.returncode == 0
    assert label.trace_id in done.stdout
    assert "session started" in done.stdout


def test_an_incomplete_session_shows_its_gap_and_exits_1(up: Path, labels: list[Label]) -> None:
    label = next(label for label in labels if label.completeness == "incomplete")
    done = run("sessions", "show", label.trace_id, data=up)

    assert done.returncode == 1
    assert "gap in the sequence" in done.stdout


def test_a_missing_decision_is_a_ghost_with_its_evidence(up: Path, labels: list[Label]) -> None:
    label = next(label for label in labels if label.anomaly == "exec_without_decision")
    shown = asked(up, "sessions", "show", label.trace_id)

    assert "policy decision: missing" in json.dumps(shown["tree"])
    assert shown["findings"][0]["evidence"][0]["event_id"]
    assert shown["events"] == label.events


def test_an_unknown_trace_says_so(up: Path) -> None:
    done = run("sessions", "show", "f" * 32, data=up)

    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing is stored of it" in done.stderr


def test_findings_are_listed_by_rule(up: Path, labels: list[Label]) -> None:
    planted = {f.subject for label in labels for f in label.findings if f.rule == "ghost_action"}
    listed = asked(up, "findings", "list", "--rule", "ghost_action")

    assert {row["subject"] for row in listed} == planted


def test_dead_letters_are_shown_with_their_bytes_and_refused_again(up: Path) -> None:
    listed = asked(up, "dead-letters", "list")
    shown = asked(up, "dead-letters", "show", listed[0]["place"])
    replayed = run("dead-letters", "replay", "--all", "--dry-run", "--json", data=up)

    assert len(listed) == 4
    assert shown["letters"][0]["value"]
    assert replayed.returncode == 1
    assert json.loads(replayed.stdout)["refused_again"] == 4


def test_topics_and_tables_are_as_wanted(up: Path) -> None:
    assert asked(up, "topics", "check") == []
    assert asked(up, "tables", "check") == {"differences": []}


def test_a_changed_topic_is_drift_and_apply_mends_it(up: Path) -> None:
    from confluent_kafka.admin import (  # type: ignore[attr-defined]
        AdminClient,
        AlterConfigOpType,
        ConfigEntry,
        ConfigResource,
        ResourceType,
    )

    address = json.loads((up / "trailweave-up.json").read_text())["kafka"]
    entry = ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET)
    topic = ConfigResource(ResourceType.TOPIC, "trailweave.seals", incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": address})
    for done in admin.incremental_alter_configs([topic]).values():
        done.result()
    drift = run("topics", "check", "--json", data=up)
    applied = asked(up, "topics", "apply")
    again = run("topics", "apply", "--partitions", "7", "--json", data=up)

    assert drift.returncode == 1
    assert [row["name"] for row in json.loads(drift.stdout)] == ["retention.ms"]
    assert len(applied["changed"]) == 1
    assert again.returncode == 1
    assert json.loads(again.stdout)["left"]


def test_a_second_up_on_the_same_data_is_refused(up: Path) -> None:
    done = run("up", data=up)

    assert done.returncode == 1
    assert "couldn't use" in done.stderr


def test_a_killed_worker_is_started_again_and_nothing_is_lost(up: Path) -> None:
    before = asked(up, "account")
    lines = [line for line in processes(up) if line.endswith("trailweave.deploy.cli join ")]
    workers = [int(line.split()[0]) for line in lines if "guard.py" not in line]
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    sent = asked(up, "simulate", "--sessions", "10", "--seed", "9", "--anomalies", "0")
    wait_until(lambda: _sums(up) == _sums_of(before) + sent["records"], 60)

    assert len(workers) == 1
    assert "join ended by itself" in (up / "up.log").read_text()


def _sums(data: Path) -> int:
    done = asked(data, "account")
    return _sums_of(done) if done["adds_up"] else -1


def _sums_of(account: dict[str, Any]) -> int:
    return sum(line["in"] - line["held"] for line in account["stages"] if line["stage"] == "join")


def test_children_end_when_up_is_killed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "trailweave.toml").write_text("")
    process, _ = started(data, data / "up.log")
    process.kill()
    process.wait()

    wait_until(lambda: processes(data) == [], 60)
