"""The definitions of `tables.sql` and `roles.sql`: statements filled in, columns as data.

Pure. `clickhouse` creates and checks what this reads; `rows` learns from it what to insert.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from string import Template
from typing import Final, Literal

from trailweave.schemas.errors import Fatal

#: Deduplication entries per table. It must exceed (inserts per second into the table, all workers)
#: x (time partitions per insert) x (session timeout + insert timeout) x 10 = 10 x 2 x 65 x 10.
DEDUP_WINDOW: Final = 20_000
#: Replicated tables also forget entries by age.
DEDUP_WINDOW_S: Final = 604_800
#: A part below it is one file of all columns; above it each column has files of its own. `events`
#: has 78: making, syncing and deleting hundreds of files per part was a third of an insert's cost.
WIDE_PART_BYTES_MIN: Final = 256 * 1024 * 1024

TABLES: Final = ("events", "chains", "findings", "handles", "heartbeats", "dead_letters")
VIEWS: Final = ("events_distinct", "chains_latest", "findings_latest", "dead_letters_distinct")


@dataclass(frozen=True, slots=True)
class Profile:
    """How long rows stay, and on what kind of engine.

    `content_days` is how long `record` (prompts, arguments, results) stays; the other columns stay
    `keep_days`. With `hot_days`, older parts move to the volume `cold` of `storage_policy`.
    """

    keep_days: int
    content_days: int
    hot_days: int | None = None
    storage_policy: str | None = None
    #: `local`: this server only. `replicated`: Replicated engines at the server's default path.
    engine: Literal["local", "replicated"] = "local"
    #: Creates everything ON CLUSTER, where there is one.
    cluster: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.content_days <= self.keep_days:
            raise Fatal(
                f"couldn't use a retention of {self.keep_days} days with content for"
                f" {self.content_days}: content can't stay longer than its row"
            )


#: AI Act, articles 19 and 26(6): at least six months. PCI DSS 10.5.1: twelve months, three of them
#: at hand. One day is added to each, so that the first and the last day are whole.
PROFILES: Final = {
    "ai_act": Profile(keep_days=185, content_days=31),
    "pci": Profile(keep_days=366, content_days=93, hot_days=93),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column as `tables.sql` has it."""

    name: str
    type: str
    #: The expression behind DEFAULT, or "".
    default: str


def statements(profile: Profile) -> list[str]:
    """Every CREATE statement for the profile, in order."""
    text = Template(_text()).substitute(_placeholders(profile))
    return [part for part in map(_without_comments, text.split(";\n")) if part]


def role_statements() -> list[str]:
    """Every CREATE ROLE and GRANT of `roles.sql`, for servers: the embedded engine has no roles."""
    text = Template(_text("roles.sql")).substitute(
        columns_without_content=", ".join(_stored("events", without=("record",))),
        letter_columns_without_content=", ".join(_stored("dead_letters", without=("key", "value"))),
    )
    return [part for part in map(_without_comments, text.split(";\n")) if part]


def _stored(table: str, without: tuple[str, ...]) -> list[str]:
    names = [column.name for column in columns(table) if "." not in column.name]
    return [name for name in names if name not in without]


@cache
def columns(table: str) -> tuple[Column, ...]:
    """The stored columns of a table, then the ephemeral ones that its defaults name."""
    match = re.search(rf"EXISTS {table} \S+\n\((.*?)\n\)\nENGINE", _text(), re.DOTALL)
    if match is None:
        raise Fatal(f"couldn't find the table {table} in tables.sql")
    # Texts of comments may hold commas and brackets.
    body = re.sub(r"COMMENT '(?:[^']|'')*'", "", _without_comments(match[1]))
    parts = [part.replace("${ephemeral}", "").strip() for part in split_arguments(body)]
    stored = [_column(part) for part in parts if part.split()[0] not in ("INDEX", "PROJECTION")]
    passing = [
        Column(path, _passing(column.type), "")
        for column in stored
        for path in paths(column.default)
    ]
    return (*stored, *passing)


def _passing(kind: str) -> str:
    """The type that a value is read as on its way into a column.

    The Avro reader puts values into a dictionary one by one, a cast does so a block at a time: a
    third of the time of reading.
    """
    return "String" if kind == "LowCardinality(String)" else kind


@cache
def partition_by(table: str) -> Literal["day", "month"]:
    """How the rows of a table are split into partitions, by broker time in UTC."""
    match = re.search(rf"EXISTS {table} .*?PARTITION BY (\w+)", _text(), re.DOTALL)
    if match is None or match[1] not in ("toDate", "toYYYYMM"):
        raise Fatal(f"couldn't find how tables.sql partitions {table}")
    return "day" if match[1] == "toDate" else "month"


def split_arguments(text: str) -> list[str]:
    """The parts between commas that stand in no brackets, each stripped."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()]


def _column(text: str) -> Column:
    name, rest = text.split(None, 1)
    kind = re.split(r"\s+(?:DEFAULT|CODEC|TTL)\b", rest + " ")[0]
    default = re.search(r"DEFAULT (.*)", rest, re.DOTALL)
    return Column(name, " ".join(kind.split()), " ".join(default[1].split()) if default else "")


def paths(default: str) -> list[str]:
    """The paths that a default names."""
    return re.findall(r"`([^`]+)`", default)


def _placeholders(profile: Profile) -> dict[str, str]:
    replicated = profile.engine == "replicated"
    settings = {
        "ttl_only_drop_parts": "1",
        "min_bytes_for_wide_part": str(WIDE_PART_BYTES_MIN),
        "non_replicated_deduplication_window": str(DEDUP_WINDOW),
        "replicated_deduplication_window": str(DEDUP_WINDOW),
        "replicated_deduplication_window_seconds": str(DEDUP_WINDOW_S),
        # An acknowledged insert survives a power cut, not only the end of the process.
        "fsync_after_insert": "1",
        "fsync_part_directory": "1",
        "deduplicate_merge_projection_mode": "'rebuild'",
    }
    if profile.storage_policy:
        settings["storage_policy"] = f"'{profile.storage_policy}'"
    move = ""
    if profile.hot_days and profile.storage_policy:
        move = f", toDate(recorded_at) + INTERVAL {profile.hot_days} DAY TO VOLUME 'cold'"
    ephemeral = [f"    `{c.name}` {c.type} EPHEMERAL," for c in columns("events") if "." in c.name]
    return {
        "on_cluster": f"ON CLUSTER `{profile.cluster}`" if profile.cluster else "",
        "replacing": "ReplicatedReplacingMergeTree" if replicated else "ReplacingMergeTree",
        "keep_days": str(profile.keep_days),
        "content_days": str(profile.content_days),
        "move": move,
        "letter_move": move.replace("recorded_at", "letter_recorded_at"),
        "settings": ", ".join(f"{name} = {value}" for name, value in settings.items()),
        "ephemeral": "\n".join(ephemeral),
    }


@cache
def _text(file: str = "tables.sql") -> str:
    return resources.files(__package__).joinpath(file).read_text("utf-8")


def _without_comments(text: str) -> str:
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return "\n".join(lines).strip()
