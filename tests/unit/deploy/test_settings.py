"""Where settings come from, which one wins, and what a mistake says."""

from pathlib import Path

import pytest
from trailweave.deploy.settings import (
    Settings,
    SettingsError,
    as_environment,
    read_settings,
    setting_names,
)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a trailweave.toml of its own."""
    monkeypatch.chdir(tmp_path)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "some.toml"
    path.write_text(text)
    return path


def test_without_any_source_the_defaults_hold() -> None:
    settings = read_settings(None, {}, {})

    assert settings == Settings()


def test_a_variable_beats_the_file_and_a_flag_beats_both(tmp_path: Path) -> None:
    file = written(tmp_path, "[join]\ngrace_s = 1\nidle_s = 1\nlinger_s = 1\n")
    environ = {"TRAILWEAVE_JOIN_GRACE_S": "2", "TRAILWEAVE_JOIN_IDLE_S": "2"}

    join = read_settings(file, environ, {"join.grace_s": "3"}).join

    assert (join.linger_s, join.idle_s, join.grace_s) == (1.0, 2.0, 3.0)


def test_the_addresses_of_a_running_up_are_the_weakest_source(tmp_path: Path) -> None:
    file = written(tmp_path, '[clickhouse]\ndsn = "http://of-the-file"\n')
    found = {"clickhouse.dsn": "http://found", "kafka.bootstrap.servers": "found:1"}

    settings = read_settings(file, {}, {}, found)

    assert settings.clickhouse_dsn() == "http://of-the-file"
    assert settings.kafka_config() == {"bootstrap.servers": "found:1"}


def test_any_librdkafka_setting_passes_through_however_toml_nests_it(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        '[kafka]\nbootstrap.servers = "k:9093"\n"security.protocol" = "SASL_SSL"\n'
        "enable.ssl.certificate.verification = true\nsocket.timeout.ms = 5000\n",
    )
    environ = {"TRAILWEAVE_KAFKA_SASL_PASSWORD": "pw"}

    assert read_settings(file, environ, {}).kafka_config() == {
        "bootstrap.servers": "k:9093",
        "security.protocol": "SASL_SSL",
        "enable.ssl.certificate.verification": "true",
        "socket.timeout.ms": "5000",
        "sasl.password": "pw",
    }


def test_an_unknown_key_is_an_error_that_names_the_nearest(tmp_path: Path) -> None:
    file = written(tmp_path, "[join]\ngrace_sec = 1\n")

    with pytest.raises(SettingsError, match=r"join\.grace_sec .*did you mean 'grace_s'"):
        read_settings(file, {}, {})


def test_an_unknown_section_is_an_error_that_names_the_nearest(tmp_path: Path) -> None:
    file = written(tmp_path, "[joni]\ngrace_s = 1\n")

    with pytest.raises(SettingsError, match="did you mean 'join'"):
        read_settings(file, {}, {})


def test_a_misspelt_variable_of_a_section_is_an_error() -> None:
    with pytest.raises(SettingsError, match="TRAILWEAVE_JOIN_GRACE"):
        read_settings(None, {"TRAILWEAVE_JOIN_GRACE": "1"}, {})


def test_variables_of_other_parts_are_left_alone() -> None:
    settings = read_settings(None, {"TRAILWEAVE_JARS": "/x", "TRAILWEAVE_DATA": "/y"}, {})

    assert settings == Settings()


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "-1", "true"])
def test_a_value_that_is_no_time_is_an_error(value: str) -> None:
    with pytest.raises(SettingsError, match=r"join\.grace_s"):
        read_settings(None, {}, {"join.grace_s": value})


def test_a_file_that_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_settings(tmp_path / "none.toml", {}, {})


def test_a_file_that_is_no_toml_says_where(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="line 1"):
        read_settings(written(tmp_path, "[join\n"), {}, {})


def test_no_kafka_says_how_to_name_one() -> None:
    with pytest.raises(SettingsError, match="TRAILWEAVE_KAFKA"):
        Settings().kafka_config()


def test_no_secret_is_shown() -> None:
    flags = {
        "kafka.sasl.password": "s3cret",
        "kafka.ssl.key.password": "s3cret",
        "kafka.sasl.username": "trailweave",
        "clickhouse.dsn": "https://me:s3cret@host:8443/db",
        "producer.key_secret": "s3cret",
    }
    shown = read_settings(None, {}, flags).shown()

    assert "s3cret" not in str(shown)
    assert shown["kafka"]["sasl.username"] == "trailweave"
    assert shown["clickhouse"]["dsn"] == "https://me:***@host:8443/db"


def test_an_error_about_a_secret_does_not_quote_it(tmp_path: Path) -> None:
    file = written(tmp_path, '[producer]\nkey_secret = ["s3cret"]\n')

    with pytest.raises(SettingsError) as caught:
        read_settings(file, {}, {})

    assert "s3cret" not in str(caught.value)


def test_flags_reach_a_child_process_as_variables() -> None:
    flags = {"join.grace_s": "7", "kafka.sasl.password": "pw", "metrics.port": "9000"}

    assert read_settings(None, as_environment(flags), {}) == read_settings(None, {}, flags)


def test_every_setting_can_be_a_variable() -> None:
    for name in setting_names():
        variable = f"TRAILWEAVE_{name}".upper().replace(".", "_")
        if not name.endswith("verify"):
            read_settings(None, {variable: "1"}, {})
