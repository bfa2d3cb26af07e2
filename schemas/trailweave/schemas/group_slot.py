"""A worker's static place in its consumer group, and who has it when the group refuses us. Edge.

A static member that Kafka refuses may have been replaced by another process with the same slot; or
its session has timed out, as in any longer outage: then its client, which joins again by itself and
forgets its old member id at once, is refused like a stranger. To join again in the first case would
fence the other process, and so on for ever; to end in the second would end every worker with every
outage. So both workers ask here first.
"""

import time
from collections.abc import Mapping
from concurrent.futures import TimeoutError as LateError
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import AdminClient
from trailweave.schemas.errors import Fatal, Retryable

#: A question to the broker that takes longer is given up, and asked again later.
REQUEST_TIMEOUT_S: Final = 10.0
#: librdkafka keeps no timeout when the group's coordinator was missing from the metadata for a
#: moment, as while a broker starts: it never answers then.
ANSWER_TIMEOUT_S: Final = REQUEST_TIMEOUT_S + 2.0

#: Settings that other clients do not know.
_ONLY_CONSUMERS: Final = ("group.", "fetch.", "queued.", "auto.offset", "isolation.", "max.poll.")


def connection_settings(kafka: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that an admin client or a producer shares with a consumer."""
    return {k: v for k, v in kafka.items() if not k.startswith(_ONLY_CONSUMERS)}


class GroupSlot:
    """What one worker knows of its slot, over all its clients. Not thread-safe."""

    def __init__(
        self, kafka: Mapping[str, Any], group: str, instance: str, session_timeout_s: float
    ) -> None:
        """`instance` is the `group.instance.id`."""
        # Its errors are raised; what it would log, the worker's consumer logs.
        self._settings = {"log_level": 0, **connection_settings(kafka)}
        self._admin = AdminClient(self._settings)
        self._group, self.instance = group, instance
        self._session_timeout_s = session_timeout_s
        #: Member ids that the group has given us.
        self._ours: set[str] = set()
        #: Since when somebody we don't know has the slot.
        self._other_since: float | None = None

    def note(self, consumer: Consumer) -> None:
        """Call after every poll: a client forgets what it was called when it is counted out."""
        if member_id := consumer.memberid():
            self._ours.add(member_id)

    def look(self, failed: str, consumer: Consumer) -> None:
        """Returns when nobody else has the slot: then join again, with a new client.

        Raises `Retryable` while that is not known, `Fatal` when another process has it. The client
        learns late what it is called after it has joined by itself, so a member that we don't know
        may be ourselves: such a one is gone when a session has passed.
        """
        self.note(consumer)
        try:
            other = self._other()
        except (KafkaException, LateError) as error:
            self._admin = AdminClient(self._settings)
            why = error.args[0].name() if isinstance(error, KafkaException) else "no answer"
            raise Retryable(f"{failed}: nobody says who has {self.instance} ({why})") from None
        if other is None:
            self._other_since = None
            return
        if self._other_since is None:
            self._other_since = time.monotonic()
        if time.monotonic() - self._other_since <= self._session_timeout_s + 1:
            raise Retryable(f"{failed}: looking who has slot {self.instance}")
        raise Fatal(
            f"{failed}: another process, at {other}, runs as {self.instance}; give every process a"
            " slot of its own"
        )

    def _other(self) -> str | None:
        """The host of whoever has our slot instead of us; None if nobody has it, or we do.

        Told by member ids: Kafka keeps the client id of the first member that had the slot.
        """
        asked = self._admin.describe_consumer_groups(
            [self._group], request_timeout=REQUEST_TIMEOUT_S
        )
        for member in asked[self._group].result(ANSWER_TIMEOUT_S).members:
            if member.group_instance_id == self.instance and member.member_id not in self._ours:
                return str(member.host)
        return None
