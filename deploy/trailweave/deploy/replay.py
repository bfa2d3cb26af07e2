"""Sends dead-lettered records again, those whose bytes are accepted by now.

Each record is tried once per call and never waited for: one that would be refused again is counted
under its reason and stays where it is. A record that is stored by now is not sent again.
"""

import base64
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from trailweave.deploy.sender import Sender
from trailweave.deploy.settings import Settings
from trailweave.schemas import codec, events
from trailweave.schemas.codec import Decoder
from trailweave.schemas.errors import Fatal, Rejected, TrailError
from trailweave.sinks.ask import ask

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

_PLACE: Final = re.compile(r"(?P<topic>.+)/(?P<partition>-?\d{1,9})@(?P<offset>\d{1,18})")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a refused record lay, written `topic/partition@offset`."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"


@dataclass(slots=True)
class Replayed:
    """What became of each record: looked_at = sent + stored + refused + not_from_kafka."""

    looked_at: int = 0
    sent: int = 0
    stored: int = 0
    not_from_kafka: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dry_run: bool = False

    def document(self) -> dict[str, Any]:
        """The counts for `--json`."""
        return {
            "dry_run": self.dry_run,
            "looked_at": self.looked_at,
            "sent": self.sent,
            "already_stored": self.stored,
            "not_from_kafka": self.not_from_kafka,
            "refused_again": sum(self.refused.values()),
            "refused_codes": dict(sorted(self.refused.items())),
        }


def read_place(text: str) -> Place:
    """The place that `topic/partition@offset` names; raises `Fatal` for any other text."""
    found = _PLACE.fullmatch(text)
    if found is None:
        raise Fatal(
            f"couldn't read the place {text!r}: write it as topic/partition@offset, as"
            " `trailweave dead-letters list` shows it"
        )
    return Place(found["topic"], int(found["partition"]), int(found["offset"]))


def read_letters(client: "Client", place: Place) -> list[dict[str, Any]]:
    """What was refused at a place, one per stage, key and value as bytes; raises `TrailError`."""
    rows = ask(
        client,
        "dead_letter",
        topic=place.topic,
        partition=place.partition,
        offset=place.offset,
    )
    if not rows:
        raise TrailError(
            f"couldn't find a dead letter of {place}; `trailweave dead-letters list` shows all"
        )
    for row in rows:
        row["key"], row["value"] = base64.b64decode(row["key"]), base64.b64decode(row["value"])
    return rows


def check(decoder: Decoder, topic: str, key: bytes, value: bytes) -> codec.Head:
    """The event's head, when join and load would take these bytes from `topic` now.

    Raises `Rejected`.
    """
    name, _ = decoder.decode(value)
    head = codec.head(value)
    if head.trace_id.encode() != key:
        raise Rejected("wrong_key", "the Kafka key is not the event's trace id")
    kind = events.event_types().get(name)
    if kind is None or kind.topic != topic:
        raise Rejected("kind_mismatch", f"a {name} does not belong on {topic}")
    return head


def replay(
    settings: Settings,
    client: "Client",
    places: Sequence[Place],
    *,
    dry_run: bool,
    told: Callable[[int], None],
) -> Replayed:
    """Look at each place once and send what is accepted now; raises `TrailError`."""
    from trailweave.schemas.schema_topic import SchemaTopic

    done = Replayed(dry_run=dry_run)
    schemas = SchemaTopic(settings.kafka_config())
    decoder = codec.event_checker(schemas)
    to_send: list[tuple[str, bytes, bytes]] = []
    for place in dict.fromkeys(places):
        done.looked_at += 1
        told(done.looked_at)
        if place.topic not in events.event_topics() or place.partition < 0:
            done.not_from_kafka += 1
            continue
        letter = read_letters(client, place)[0]
        try:
            head = check(decoder, place.topic, letter["key"], letter["value"])
        except Rejected as error:
            done.refused[error.reason.code] += 1
            continue
        if _is_stored(client, head):
            done.stored += 1
            continue
        done.sent += 1
        to_send.append((place.topic, letter["key"], letter["value"]))
    if to_send and not dry_run:
        with Sender(settings, "replay dead letters") as sender:
            for record in to_send:
                sender.send(*record)
    return done


def _is_stored(client: "Client", head: codec.Head) -> bool:
    row = ask(
        client,
        "event_stored",
        tenant=head.tenant,
        trace=head.trace_id,
        event_id=head.event_id,
    )[0]
    return bool(row["records"])
