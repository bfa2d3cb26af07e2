"""Confluent Schema Registry: ids for what we write, schemas for the ids that we read.

Comes with the extra `registry`. Subjects are named as Confluent's TopicRecordNameStrategy names
them, so that other clients of the same registry find our schemas.
"""

import json
import logging
from typing import Any, Final, NoReturn

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import OAuthTokenError, SchemaRegistryError
from trailweave.schemas import events
from trailweave.schemas.errors import Fatal, Rejected, Retryable
from trailweave.schemas.standing import Standing, StandingRule, checked_schema

log = logging.getLogger(__name__)

_NOT_FOUND: Final = 404
_REFUSED: Final = (401, 403)
#: Incompatible with an earlier version in the subject, or no schema by the registry's rules.
_UNACCEPTED: Final = (409, 422)


def subject_of(kind: events.RecordType) -> str:
    """The subject of a type: its topic and full name."""
    return f"{kind.topic}-{events.NAMESPACE}.{kind.name}"


def register_all(client: SchemaRegistryClient) -> dict[str, int]:
    """Register every type of this version; type name -> schema id, for `codec.Encoder`.

    Registering again gives the same ids. Blocks on the network. Raises `Retryable` if the registry
    is away, `Fatal` if it refuses us or a schema.
    """
    return {
        kind.name: _asked(
            f"register {subject_of(kind)}",
            client.register_schema,
            subject_of(kind),
            Schema(json.dumps(kind.schema), "AVRO"),
        )
        for kind in events.all_types()
    }


class RegistrySchemas:
    """Writer schemas by Confluent schema id; see `standing.WriterStandings`.

    A registry gives an id before anything is written with it and never gives it twice, but it says
    nothing of when. So an id that somebody made up and that is given out later could be judged
    differently by two workers, one of which lags; `wait_ms` bounds by how much it must lag.
    """

    def __init__(self, client: SchemaRegistryClient, *, rule: StandingRule | None = None) -> None:
        self._client = client
        self._rule = rule or StandingRule()
        self._builtin = frozenset(kind.fingerprint for kind in events.all_types())
        self._found: dict[bytes, events.Json] = {}
        #: Ids of schemas that are none of ours: asked once, warned of once.
        self._ignored: set[bytes] = set()
        #: Wall clock of the last time that the registry didn't know an id.
        self._missed_at_ms: dict[bytes, int] = {}

    def schema_of(self, key: bytes) -> events.Json | None:
        """The schema behind a registry id (4 bytes), or None if the registry has none."""
        if key in self._found:
            return self._found[key]
        # Eight bytes are a fingerprint: of a producer that doesn't use the registry.
        if len(key) != 4 or key in self._ignored:
            return None
        schema_id = int.from_bytes(key, "big")
        found = _asked(f"read the schema {schema_id}", self._client.get_schema, schema_id)
        if found is None:
            return None
        try:
            if found.references or found.schema_type != "AVRO" or not found.schema_str:
                raise Rejected("bad_schema", "it is not one Avro schema without references")
            self._found[key] = checked_schema(found.schema_str)
        except Rejected as error:
            self._ignored.add(key)
            log.warning("ignored the schema with id %d: %s", schema_id, error.reason.detail)
            return None
        return self._found[key]

    def standing(self, key: bytes, recorded_at_ms: int, now_ms: int) -> Standing:
        """Whether the schema counts for an event; `now_ms` is wall clock."""
        if key in self._builtin:
            return "known"
        missed_at_ms = self._missed_at_ms.get(key)
        if missed_at_ms is not None and self._rule.settled(recorded_at_ms, missed_at_ms):
            return "unknown"
        if self.schema_of(key) is not None:
            return "known"
        self._missed_at_ms[key] = now_ms
        return self._rule.standing(None, recorded_at_ms, now_ms)


def _asked(what: str, call: Any, *arguments: Any) -> Any:
    """The registry's answer, None for not found, its errors translated."""
    try:
        return call(*arguments)
    except SchemaRegistryError as error:
        if error.http_status_code == _NOT_FOUND:
            return None
        _refuse(what, error)
    except OAuthTokenError:
        raise Retryable(f"couldn't {what}: no token for the Schema Registry") from None
    except Exception as error:
        # Transport errors of the HTTP library underneath, whichever it is.
        if not _is_transport_error(error):
            raise
        raise Retryable(f"couldn't {what}: {type(error).__name__}") from None


def _refuse(what: str, error: SchemaRegistryError) -> NoReturn:
    answer = f"the Schema Registry answered {error.http_status_code}, code {error.error_code}"
    if error.http_status_code in _REFUSED:
        raise Fatal(f"couldn't {what}: {answer}; check its credentials and rights") from None
    if error.http_status_code in _UNACCEPTED:
        raise Fatal(f"couldn't {what}: {answer}; check the subject's compatibility mode") from None
    raise Retryable(f"couldn't {what}: {answer}") from None


def _is_transport_error(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "OSError", "ConnectionError", "TimeoutError"})
