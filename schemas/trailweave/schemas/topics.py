"""The topics as data: read from `topics.yaml`, ready for Kafka's admin client.

Pure but for reading the file beside it. PyYAML comes with the extra `server` and is imported when
the topics are asked for: producers need names only, and those are constants in `events`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from trailweave.schemas.errors import Fatal

_DAY_MS: Final = 24 * 3_600_000

#: More lanes than this are a typing mistake: a worker's transaction names every one of them.
PARTITIONS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic: what it is for, and what a cluster must be told to hold it rightly."""

    name: str
    description: str
    #: Types of its records by name; empty where the values are not Avro records.
    schemas: tuple[str, ...]
    #: What a record's key is, for people who write producers.
    key: str
    #: librdkafka's `partitioner`, or `explicit`: the writer names the partition.
    partitioner: str
    partitions: int
    #: Whether partition i is a part of lane i, so that the count is shared with the other lanes.
    in_lanes: bool
    #: Topic configuration as the admin client takes it.
    config: Mapping[str, str]
    writers: tuple[str, ...]
    readers: tuple[str, ...]

    @property
    def compacted(self) -> bool:
        """Whether Kafka keeps the last value per key instead of a time span."""
        return self.config["cleanup.policy"] == "compact"

    @property
    def message_bytes_max(self) -> int:
        """What a producer's `message.max.bytes` must allow to fill this topic."""
        return int(self.config["max.message.bytes"])


def load_topics(partitions: int | None = None) -> tuple[Topic, ...]:
    """Every topic, in the order of the file; `partitions` is the number of lanes (None: default).

    Raises `Fatal` for a number of lanes that no cluster can have.
    """
    import yaml

    text = resources.files(__package__).joinpath("topics.yaml").read_text("utf-8")
    data = yaml.safe_load(text)
    lanes = data["lanes"] if partitions is None else partitions
    if not 1 <= lanes <= PARTITIONS_MAX:
        raise Fatal(f"couldn't plan {lanes} lanes: choose 1 to {PARTITIONS_MAX} partitions")
    return tuple(_topic(entry, lanes) for entry in data["topics"])


def _topic(entry: dict[str, Any], lanes: int) -> Topic:
    in_lanes = entry["partitions"] == "lanes"
    return Topic(
        name=entry["name"],
        description=entry["description"],
        schemas=tuple(entry["schemas"]),
        key=entry["key"],
        partitioner=entry["partitioner"],
        partitions=lanes if in_lanes else int(entry["partitions"]),
        in_lanes=in_lanes,
        config=_config(entry),
        writers=tuple(entry["writers"]),
        readers=tuple(entry["readers"]),
    )


def _config(entry: dict[str, Any]) -> dict[str, str]:
    config: dict[str, str] = {
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(entry["message_bytes_max"]),
    }
    compaction = entry.get("compaction")
    if compaction is None:
        days = entry["retention_days"]
        retention_ms = -1 if days == "forever" else days * _DAY_MS
        return config | {
            "cleanup.policy": "delete",
            "retention.ms": str(retention_ms),
            # By time only: a broker's default by size would drop what nobody has read yet.
            "retention.bytes": "-1",
            "segment.ms": str(_DAY_MS),
        }
    config |= {
        "cleanup.policy": "compact",
        "delete.retention.ms": str(compaction["delete_retention_hours"] * 3_600_000),
        "segment.ms": str(compaction["segment_minutes"] * 60_000),
        "segment.bytes": str(compaction["segment_bytes"]),
        "min.cleanable.dirty.ratio": str(compaction["min_dirty_ratio"]),
    }
    if "lag_max_hours" in compaction:
        config["max.compaction.lag.ms"] = str(compaction["lag_max_hours"] * 3_600_000)
    if "lag_min_days" in compaction:
        config["min.compaction.lag.ms"] = str(compaction["lag_min_days"] * _DAY_MS)
    return config
