"""The settings of every command: `trailweave.toml`, then `TRAILWEAVE_…` variables, then flags.

Later ones win, value by value. An unknown key is an error, not a silent default: a misspelt
`grace_s` must not close sessions at another time than its writer believes.
"""

import dataclasses
import difflib
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from trailweave.deploy.masking import masked, masked_values
from trailweave.schemas.errors import Fatal

CONFIG_FILE: Final = "trailweave.toml"
DATA_DIR: Final = "trailweave-data"
ENV_PREFIX: Final = "TRAILWEAVE_"
BOOTSTRAP: Final = "bootstrap.servers"

#: The worker itself, folding and committing, keeps no more of them busy.
CLOSERS_MAX: Final = 4

#: Variables that name one setting by a shorter name.
SHORT_VARIABLES: Final = {
    "TRAILWEAVE_KAFKA": ("kafka", BOOTSTRAP),
    "TRAILWEAVE_CLICKHOUSE": ("clickhouse", "dsn"),
}
_KAFKA_VARIABLES: Final = f"{ENV_PREFIX}KAFKA_"


def _cores() -> int:
    """Those that this process may use, where the system says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class SettingsError(Fatal):
    """A setting that is unknown, missing, or has a value it can't have."""


@dataclass(frozen=True, slots=True)
class ClickHouse:
    """Where ClickHouse is, and how to trust it."""

    dsn: str = ""
    ca_cert: Path | None = None
    client_cert: Path | None = None
    client_cert_key: Path | None = None
    server_host_name: str | None = None
    verify: bool = True
    connect_timeout_s: float = 10.0
    query_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Join:
    """The join worker: who it is in its group, and when a session closes."""

    group: str = "trailweave-join"
    #: Stable per process and its own: names the static member and the transactional id.
    slot: int = 0
    #: After the root session's end: late events of other producers are mostly here by then.
    grace_s: float = 30.0
    #: Without an event and without an end.
    idle_s: float = 900.0
    approval_hold_max_s: float = 86_400.0
    #: What a session has held for longer is kept in chunks: a restart replays about so much input.
    promote_s: float = 60.0
    #: So often at the most a session is looked at before its close.
    look_every_s: float = 2.0
    #: Of events that open sessions hold in memory; above it the largest are left to their chunks.
    held_bytes_max: int = 536_870_912
    batch_events_max: int = 30_000
    linger_s: float = 0.25
    session_timeout_s: float = 10.0
    #: Child processes that share the closing of sessions; 0: none.
    closers: int = field(default_factory=lambda: min(CLOSERS_MAX, _cores() - 1))


@dataclass(frozen=True, slots=True)
class Load:
    """The load worker: who it is in its group, and how large its inserts are."""

    group: str = "trailweave-load"
    #: Stable per process and its own: names the static member.
    slot: int = 0
    #: Off where the worker's ClickHouse user may not create tables.
    create_tables: bool = True
    #: Changed for an intended reload only: ClickHouse then takes rows again that it has seen.
    epoch: int = 0
    batch_rows_max: int = 50_000
    batch_bytes_max: int = 33_554_432
    inserts_at_once: int = 2
    inserts_per_s_max: float = 10.0
    linger_min_s: float = 0.5
    linger_max_s: float = 2.5
    insert_timeout_s: float = 20.0
    session_timeout_s: float = 45.0


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules' own configuration: allow-lists, limits, expected sources."""

    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Watch:
    """The detectors over many sessions."""

    #: Consumer group; also begins the names of its own topics.
    group: str = "trailweave-watch"
    #: A module of Faust agents of the user's own; empty: none.
    module: str = ""


@dataclass(frozen=True, slots=True)
class Topics:
    """How topics are made where `topics.yaml` leaves it to the cluster."""

    #: Number of lanes; 0: as `topics.yaml` says.
    partitions: int = 0
    #: From 3 on, topics get `min.insync.replicas=2`.
    replication_factor: int = 1


@dataclass(frozen=True, slots=True)
class Schemas:
    """Events of another version: how long their schema may come after them."""

    #: The same for join and load: their answers about one event must agree.
    unknown_wait_s: float = 60.0
    #: URL of a Confluent Schema Registry; empty: schemas come and go by `trailweave.schemas`.
    registry: str = ""


@dataclass(frozen=True, slots=True)
class Tables:
    """How long rows stay in ClickHouse, and on what kind of engine."""

    #: `ai_act` or `pci`; a value below replaces the profile's.
    profile: str = "ai_act"
    keep_days: int | None = None
    content_days: int | None = None
    hot_days: int | None = None
    storage_policy: str | None = None
    #: `local` or `replicated`.
    engine: str = "local"
    cluster: str | None = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """The Prometheus endpoint of a worker; port 0 means none."""

    host: str = "127.0.0.1"
    port: int = 0


@dataclass(frozen=True, slots=True)
class Producer:
    """What the commands that send events say of themselves, and the key of keyed hashes."""

    tenant: str = "default"
    environment: str = "production"
    key_id: str = ""
    key_secret: str = ""
    spool: Path | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. `kafka` goes to librdkafka as it is."""

    kafka: Mapping[str, str] = field(default_factory=dict)
    clickhouse: ClickHouse = field(default_factory=ClickHouse)
    join: Join = field(default_factory=Join)
    load: Load = field(default_factory=Load)
    rules: Rules = field(default_factory=Rules)
    watch: Watch = field(default_factory=Watch)
    topics: Topics = field(default_factory=Topics)
    schemas: Schemas = field(default_factory=Schemas)
    tables: Tables = field(default_factory=Tables)
    metrics: Metrics = field(default_factory=Metrics)
    producer: Producer = field(default_factory=Producer)

    def kafka_config(self) -> dict[str, str]:
        """The `[kafka]` table for a client; raises `SettingsError` when no server is named."""
        if not self.kafka.get(BOOTSTRAP):
            raise SettingsError(
                "couldn't tell where Kafka is: start `trailweave up`, or set TRAILWEAVE_KAFKA"
                " to the bootstrap servers"
            )
        return dict(self.kafka)

    def clickhouse_dsn(self) -> str:
        """The DSN; raises `SettingsError` when there is none."""
        if not self.clickhouse.dsn:
            raise SettingsError(
                "couldn't tell where ClickHouse is: start `trailweave up`, or set"
                " TRAILWEAVE_CLICKHOUSE to a DSN such as http://host:8123/default"
            )
        return self.clickhouse.dsn

    def shown(self) -> dict[str, dict[str, Any]]:
        """Every value by section, secrets masked."""
        sections: dict[str, dict[str, Any]] = {"kafka": masked_values(self.kafka)}
        for name in _SECTIONS:
            sections[name] = masked_values(dataclasses.asdict(getattr(self, name)))
        return sections


_SECTIONS: Final[dict[str, type]] = {
    "clickhouse": ClickHouse,
    "join": Join,
    "load": Load,
    "rules": Rules,
    "watch": Watch,
    "topics": Topics,
    "schemas": Schemas,
    "tables": Tables,
    "metrics": Metrics,
    "producer": Producer,
}

#: Values by section and key, as read and not yet checked.
_Raw = dict[str, dict[str, Any]]


def read_settings(
    config: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, str],
    found: Mapping[str, str] | None = None,
) -> Settings:
    """The settings from all their sources.

    `config` None means `./trailweave.toml` if there is one. `flags` and `found` are
    `section.key` -> text; `found`, the addresses of a running `trailweave up`, is the weakest.
    Raises `SettingsError`.
    """
    raw: _Raw = {"kafka": {}, **{name: {} for name in _SECTIONS}}
    _put_dotted(raw, found or {}, "trailweave-up.json")
    _put_file(raw, config)
    _put_environment(raw, environ)
    _put_dotted(raw, flags, "a flag")
    return _build(raw)


def as_environment(values: Mapping[str, str]) -> dict[str, str]:
    """`section.key` -> text as variables: so a child process gets them, and `ps` doesn't show them.

    Raises `SettingsError` for a librdkafka name that no variable can stand for.
    """
    made = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        if section == "kafka" and "_" in key:
            raise SettingsError(f"couldn't pass on {name}: set it in trailweave.toml instead")
        made[f"{ENV_PREFIX}{section}_{key}".upper().replace(".", "_")] = value
    return made


def setting_names() -> list[str]:
    """Every `section.key` that can be set, the open `[kafka]` table apart."""
    return [f"{name}.{key.name}" for name, kind in _SECTIONS.items() for key in _keys(kind)]


def _keys(kind: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)


def _put_file(raw: _Raw, config: Path | None) -> None:
    path = config or Path(CONFIG_FILE)
    if config is None and not path.exists():
        return
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(
            f"couldn't read {path}: {error.strerror}; name another file with --config"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"couldn't read {path}: {error}; correct the file") from None
    for section, values in document.items():
        if not isinstance(values, dict):
            raise SettingsError(
                f"couldn't use {section!r} of {path}: settings stand in a section, such as [join]"
            )
        for key, value in _flat(values).items() if section == "kafka" else values.items():
            _put(raw, section, key, value, str(path))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`sasl.username = "x"` is a nested table in TOML, and one librdkafka setting."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _put_environment(raw: _Raw, environ: Mapping[str, str]) -> None:
    for name, value in sorted(environ.items()):
        if name in SHORT_VARIABLES:
            section, key = SHORT_VARIABLES[name]
            raw[section][key] = value
        elif name.startswith(_KAFKA_VARIABLES):
            # librdkafka's names have dots only, so the way back is unique.
            raw["kafka"][name.removeprefix(_KAFKA_VARIABLES).lower().replace("_", ".")] = value
        elif name.startswith(ENV_PREFIX):
            section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("_")
            # Other variables of this prefix belong to other parts: TRAILWEAVE_JARS, the Recorder's.
            if section in _SECTIONS:
                _put(raw, section, key, value, name)


def _put_dotted(raw: _Raw, values: Mapping[str, str], source: str) -> None:
    for name, value in values.items():
        section, dot, key = name.partition(".")
        if not dot:
            raise SettingsError(
                f"couldn't use the setting {name!r} of {source}: write it as SECTION.KEY,"
                " such as join.grace_s"
            )
        _put(raw, section, key, value, source)


def _put(raw: _Raw, section: str, key: str, value: Any, source: str) -> None:
    if section not in raw:
        raise SettingsError(_unknown(f"section [{section}]", source, section, list(raw)))
    if section != "kafka" and key not in {known.name for known in _keys(_SECTIONS[section])}:
        known = [name.name for name in _keys(_SECTIONS[section])]
        raise SettingsError(_unknown(f"setting {section}.{key}", source, key, known))
    raw[section][key] = value


def _unknown(what: str, source: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"couldn't use the {what} of {source}: there is none; {hint}"


def _build(raw: _Raw) -> Settings:
    kafka = {key: _librdkafka_text(value) for key, value in raw["kafka"].items()}
    return Settings(
        kafka=kafka,
        **{name: _section(kind, name, raw[name]) for name, kind in _SECTIONS.items()},
    )


def _librdkafka_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_Kind = TypeVar("_Kind")


def _section(kind: type[_Kind], section: str, raw: Mapping[str, Any]) -> _Kind:
    hints = typing.get_type_hints(kind)
    return kind(**{key: _value(f"{section}.{key}", hints[key], raw[key]) for key in raw})


def _value(name: str, hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType):
        if value in ("", None):
            return None
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    try:
        made = _MAKE[hint](value)
    except (TypeError, ValueError):
        shown = masked(str(next(iter(masked_values({name: value}).values()))))
        raise SettingsError(
            f"couldn't use {shown!r} for {name}: it must be {_WORDS[hint]}"
        ) from None
    if isinstance(made, int | float) and made < 0:
        raise SettingsError(f"couldn't use {made} for {name}: it must not be negative")
    return made


def _bool(value: Any) -> bool:
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if str(value).lower() not in known:
        raise ValueError(value)
    return known[str(value).lower()]


def _float(value: Any) -> float:
    made = float(value)
    if isinstance(value, bool) or not math.isfinite(made):
        raise ValueError(value)
    return made


def _int(value: Any) -> int:
    if isinstance(value, bool | float):
        raise TypeError(value)
    return int(value)


def _text(value: Any) -> str:
    if isinstance(value, list | dict):
        raise TypeError(value)
    return str(value)


def _path(value: Any) -> Path:
    return Path(_text(value)).expanduser()


_MAKE: Final[dict[Any, Any]] = {
    bool: _bool, int: _int, float: _float, str: _text, Path: _path
}  # fmt: skip
_WORDS: Final[dict[Any, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}
