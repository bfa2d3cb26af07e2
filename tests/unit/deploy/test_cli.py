"""The command line: usage, errors, exit codes, what stands on which stream."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from click.testing import CliRunner
from trailweave.deploy import cli
from trailweave.deploy.commands.root import COMMANDS, root


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but those of the test."""
    monkeypatch.chdir(tmp_path)
    for name in ("TRAILWEAVE_KAFKA", "TRAILWEAVE_CLICKHOUSE", "TRAILWEAVE_DATA"):
        monkeypatch.delenv(name, raising=False)


class Ended(NamedTuple):
    """How a command ended in this process; those as a shell starts them are integration tests."""

    returncode: object
    stdout: str
    stderr: str


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    def run_here(*arguments: str) -> Ended:
        monkeypatch.setattr("sys.argv", ["trailweave", *arguments])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ended(ended.value.code, *capsys.readouterr())

    return run_here


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command that does something."""
    found: list[tuple[str, ...]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = (*path, name)
        found += leaves(command, inner) if isinstance(command, click.Group) else [inner]
    return found


def test_the_overview_names_every_command() -> None:
    shown = CliRunner().invoke(root, ["--help"]).output

    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("path", leaves(root), ids=" ".join)
def test_every_command_has_help_and_json(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(root, [*path, "--help"])

    assert shown.exit_code == 0
    assert "--json" in shown.output


def test_a_mistake_in_use_exits_2(run_here: Callable[..., Ended]) -> None:
    done = run_here("sessions", "shwo")

    assert (done.returncode, done.stdout) == (2, "")
    assert "No such command" in done.stderr


def test_settings_are_shown_with_secrets_masked() -> None:
    flags = ["--set", "kafka.sasl.password=s3cret", "--clickhouse", "http://u:s3cret@h"]
    done = CliRunner().invoke(root, ["settings", "show", "--json", *flags])

    assert json.loads(done.stdout)["clickhouse"]["dsn"] == "http://u:***@h"
    assert "s3cret" not in done.output


def test_a_running_up_is_found_through_its_data_directory(tmp_path: Path) -> None:
    (tmp_path / "trailweave-up.json").write_text('{"kafka": "k:1", "clickhouse": "http://c:2"}')
    found = CliRunner().invoke(root, ["settings", "show", "--json", "--data", str(tmp_path)])
    named = CliRunner().invoke(
        root,
        ["settings", "show", "--json", "--data", str(tmp_path)],
        env={"TRAILWEAVE_KAFKA": "other:9"},
    )

    assert json.loads(found.stdout)["kafka"]["bootstrap.servers"] == "k:1"
    assert json.loads(named.stdout)["kafka"]["bootstrap.servers"] == "other:9"


def test_search_without_anything_to_look_for_is_a_mistake() -> None:
    assert CliRunner().invoke(root, ["sessions", "search"]).exit_code == 2


def test_a_time_that_is_none_is_a_mistake() -> None:
    done = CliRunner().invoke(root, ["sessions", "list", "--since", "yesterday-ish"])

    assert done.exit_code == 2
    assert "90m" in done.output


def test_every_rule_is_explained() -> None:
    listed = json.loads(CliRunner().invoke(root, ["findings", "explain", "--json"]).stdout)

    for rule in listed:
        shown = CliRunner().invoke(root, ["findings", "explain", rule["name"]])
        assert shown.exit_code == 0
        assert rule["next_step"] in shown.output


def test_an_unknown_finding_names_the_nearest() -> None:
    done = CliRunner().invoke(root, ["findings", "explain", "denied_but_executd"])

    assert done.exit_code == 2
    assert "did you mean denied_but_executed?" in done.output


def test_schemas_are_exported(tmp_path: Path) -> None:
    done = CliRunner().invoke(root, ["schemas", "export", str(tmp_path / "out"), "--json"])

    assert len(json.loads(done.stdout)["files"]) == len(list((tmp_path / "out").iterdir()))


def test_up_refuses_a_part_that_does_not_exist() -> None:
    assert CliRunner().invoke(root, ["up", "--only", "kafka,zookeeper"]).exit_code == 2


def test_demo_refuses_a_folder_that_holds_something(
    tmp_path: Path, run_here: Callable[..., Ended]
) -> None:
    (tmp_path / "mine").touch()
    done = run_here("demo", "--data", str(tmp_path))

    assert done.returncode == 1
    assert "not empty" in done.stderr
