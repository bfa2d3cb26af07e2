"""Creates the topics of `topics.yaml`, and says how a cluster differs from it.

Never changes the number of partitions of a topic that exists: fewer loses records, and more moves
traces to other lanes while their sessions are open. That is said, and left to a person.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from trailweave.deploy.clients import admin, kafka_errors
from trailweave.deploy.settings import Settings
from trailweave.schemas.errors import Retryable
from trailweave.schemas.topics import Topic, load_topics

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

REQUEST_TIMEOUT_S: Final = 30.0
#: A created topic has its leaders within a second on one node, a few in a busy cluster.
LEADERS_TIMEOUT_S: Final = 30.0
LEADERS_POLL_S: Final = 0.05

Kind = Literal["missing", "partitions", "config"]


@dataclass(frozen=True, slots=True)
class Drift:
    """One way in which the cluster differs from `topics.yaml`."""

    topic: str
    kind: Kind
    name: str
    wanted: str
    actual: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done, and what is left for a person."""

    created: list[str]
    changed: list[Drift]
    left: list[Drift]


def wanted_topics(settings: Settings) -> tuple[Topic, ...]:
    """The topics that the settings ask for."""
    return load_topics(settings.topics.partitions or None)


def check_topics(settings: Settings) -> list[Drift]:
    """Every difference between the cluster and what is wanted."""
    with kafka_errors(settings, "look at the topics"):
        client = admin(settings)
        return _drifts(client, wanted_topics(settings), settings)


def apply_topics(settings: Settings) -> Applied:
    """Create what is missing, change configuration that differs, wait until all can be used."""
    topics = wanted_topics(settings)
    with kafka_errors(settings, "apply the topics"):
        client = admin(settings)
        drifts = _drifts(client, topics, settings)
        missing = {drift.topic for drift in drifts if drift.kind == "missing"}
        changed = [drift for drift in drifts if drift.kind == "config"]
        _create(client, [topic for topic in topics if topic.name in missing], settings)
        _configure(client, changed)
        _await_leaders(client, topics)
    left = [drift for drift in drifts if drift.kind == "partitions"]
    return Applied(sorted(missing), changed, left)


def topic_config(topic: Topic, settings: Settings) -> dict[str, str]:
    """The configuration of one topic in this cluster."""
    config = dict(topic.config)
    if settings.topics.replication_factor >= 3:
        # An acknowledged record then survives the loss of one broker, and one may be away.
        config["min.insync.replicas"] = "2"
    return config


def _drifts(client: "AdminClient", topics: Iterable[Topic], settings: Settings) -> list[Drift]:
    known = client.list_topics(timeout=REQUEST_TIMEOUT_S).topics
    there = [topic for topic in topics if topic.name in known]
    configs = _configs(client, [topic.name for topic in there])
    drifts = [
        Drift(topic.name, "missing", "topic", f"{topic.partitions} partitions", "none")
        for topic in topics
        if topic.name not in known
    ]
    for topic in there:
        count = len(known[topic.name].partitions)
        if count != topic.partitions:
            drifts.append(
                Drift(topic.name, "partitions", "partitions", str(topic.partitions), str(count))
            )
        drifts += [
            Drift(topic.name, "config", name, value, configs[topic.name].get(name, ""))
            for name, value in topic_config(topic, settings).items()
            if configs[topic.name].get(name) != value
        ]
    return drifts


def _configs(client: "AdminClient", names: Iterable[str]) -> dict[str, Mapping[str, str]]:
    from confluent_kafka.admin import (  # type: ignore[attr-defined]
        ConfigResource,
        ResourceType,
    )

    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    if not resources:
        return {}
    asked = client.describe_configs(resources, request_timeout=REQUEST_TIMEOUT_S)
    return {
        resource.name: {name: entry.value for name, entry in answer.result().items()}
        for resource, answer in asked.items()
    }


def _create(client: "AdminClient", topics: list[Topic], settings: Settings) -> None:
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

    if not topics:
        return
    new = [
        NewTopic(
            topic.name,
            num_partitions=topic.partitions,
            replication_factor=settings.topics.replication_factor,
            config=topic_config(topic, settings),
        )
        for topic in topics
    ]
    for made in client.create_topics(new, request_timeout=REQUEST_TIMEOUT_S).values():
        try:
            made.result()
        except KafkaException as error:
            # Another `apply` was quicker; both ask for the same.
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise


def _configure(client: "AdminClient", changed: Iterable[Drift]) -> None:
    from confluent_kafka.admin import (  # type: ignore[attr-defined]
        AlterConfigOpType,
        ConfigEntry,
        ConfigResource,
        ResourceType,
    )

    entries: dict[str, list[ConfigEntry]] = {}
    for drift in changed:
        entry = ConfigEntry(drift.name, drift.wanted, incremental_operation=AlterConfigOpType.SET)
        entries.setdefault(drift.topic, []).append(entry)
    resources = [
        ConfigResource(ResourceType.TOPIC, name, incremental_configs=part)
        for name, part in entries.items()
    ]
    if resources:
        asked = client.incremental_alter_configs(resources, request_timeout=REQUEST_TIMEOUT_S)
        for done in asked.values():
            done.result()


def _await_leaders(client: "AdminClient", topics: Iterable[Topic]) -> None:
    """A topic that exists but has no leader yet answers its first reader with an error."""
    names = {topic.name for topic in topics}
    deadline = time.monotonic() + LEADERS_TIMEOUT_S
    while True:
        known = client.list_topics(timeout=REQUEST_TIMEOUT_S).topics
        waiting = [
            name
            for name in names
            if name not in known
            or not known[name].partitions
            or any(part.leader < 0 for part in known[name].partitions.values())
        ]
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise Retryable(
                f"couldn't wait for {min(waiting)}: it has had no leader for"
                f" {LEADERS_TIMEOUT_S:.0f} s; look at the brokers and run `trailweave topics apply`"
                " again"
            )
        time.sleep(LEADERS_POLL_S)
