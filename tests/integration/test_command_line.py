"""The command line as a shell starts it: what it says when there is nothing to talk to."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but those of the test."""
    monkeypatch.chdir(tmp_path)
    for name in ("TRAILWEAVE_KAFKA", "TRAILWEAVE_CLICKHOUSE", "TRAILWEAVE_DATA"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trailweave.deploy.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_overview_imports_no_client() -> None:
    code = (
        "import sys; from trailweave.deploy.commands.root import root;"
        "root.main(['--help'], standalone_mode=False);"
        "print(*{'confluent_kafka', 'clickhouse_connect', 'rich', 'yaml'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert shown.splitlines()[-1] == ""


def test_a_missing_address_exits_1_with_one_sentence_that_says_what_to_do() -> None:
    done = run("sessions", "list", "--json")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "TRAILWEAVE_CLICKHOUSE" in done.stderr


def test_a_clickhouse_that_is_away_is_said_without_its_password() -> None:
    done = run("findings", "list", "--clickhouse", "http://me:s3cret@127.0.0.1:1/")

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Connection refused" in done.stderr
    assert "s3cret" not in done.stderr


def test_a_missing_extra_names_the_extra_to_install() -> None:
    code = (
        "import sys; sys.modules['click'] = None; sys.argv = ['trailweave', 'status'];"
        "from trailweave.deploy.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert 'pip install "trailweave[server]"' in done.stderr
