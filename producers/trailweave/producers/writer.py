"""From an event method's keyword arguments to one encoded event of a trace.

The envelope is a dict per session, copied for each event; contents are captured, every other text
is searched for secrets, and the trace numbers and sends the result.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from trailweave.producers.capture import Captor, CapturePolicy
from trailweave.producers.fields import ALLOWED
from trailweave.producers.redact import may_hold_secret
from trailweave.producers.trace import Trace
from trailweave.producers.transport import Transport
from trailweave.schemas.codec import Encoder
from trailweave.schemas.errors import Rejected
from trailweave.schemas.hashing import keyed_text_hash
from trailweave.schemas.ids import new_event_id

#: What joins or proves records, and holds no text: redacting it would break that. And contents,
#: which were searched when they were captured.
_NEVER_SEARCHED: Final = frozenset(
    "handles proposed correlation actor reporter arguments result content task expected".split()  # noqa: SIM905 - a list of words
)
_HASHED: Final = "hmac:"


@dataclass(frozen=True, slots=True)
class Outlet:
    """Where a recorder's events go, and how they are captured."""

    transport: Transport
    encoder: Encoder
    policy: CapturePolicy

    def hashed(self, what: str, raw: str) -> str:
        """The keyed hash of an id that must never be stored; a hash stays as it is.

        Raises `Rejected` (`no_key`) without the tenant's key.
        """
        if raw.startswith(_HASHED):
            return raw
        if self.policy.key is None:
            raise Rejected(
                "no_key",
                f"couldn't record {what}: only its keyed hash is kept, and the Recorder has no"
                " key; pass key=TenantKey(...) or set TRAILWEAVE_PRODUCER_KEY_ID and _KEY_SECRET",
            )
        return keyed_text_hash(self.policy.key, raw)

    def hashed_or_none(self, raw: str) -> str | None:
        """The same for what may be missing: None without the key."""
        if self.policy.key is None and not raw.startswith(_HASHED):
            return None
        return self.hashed("", raw)

    def handles(self, what: str, raw: Mapping[str, str]) -> list[dict[str, str]]:
        """Handles by kind, each as its keyed hash."""
        return [{"kind": kind, "hash": self.hashed(what, value)} for kind, value in raw.items()]


class Writer:
    """Writes events of one participant of one trace. Thread-safe: it holds only constants."""

    __slots__ = ("_envelope", "_trace", "outlet", "span_id")

    def __init__(self, outlet: Outlet, trace: Trace, envelope: dict[str, Any]) -> None:
        self.outlet = outlet
        self.span_id: str = envelope["span_id"]
        self._trace = trace
        self._envelope = envelope

    @property
    def trace(self) -> Trace:
        """The sequence that the events are numbered by."""
        return self._trace

    def captor(self) -> Captor:
        """For the contents of one event."""
        return Captor(self.outlet.policy)

    def write(
        self, name: str, given: Mapping[str, Any], own: Mapping[str, Any], captor: Captor
    ) -> str:
        """Send one event and return its id.

        `given` came from the caller by keyword, `own` was made by the event's method. Raises
        `TypeError` for a keyword the event doesn't have, `Rejected` for a value it can't have,
        `EventTooLarge`, `SpoolFull`, `TransportClosed`; then nothing was recorded.
        """
        allowed = ALLOWED.get(name)
        if allowed is not None and not given.keys() <= allowed:
            unknown = ", ".join(sorted(given.keys() - allowed))
            raise TypeError(f"{name} has no field {unknown}")
        event_id = new_event_id()
        record = self._envelope.copy()
        record["event_id"] = event_id
        record["event_type"] = name
        record["occurred_at"] = time.time_ns() // 1000
        record.update(given)
        self._convert(record, given)
        record.update(own)
        self._search(record, given, own, captor)
        redactions = captor.redactions()
        if redactions:
            record["redactions"] = redactions
        self._trace.send(self.outlet.transport, self.outlet.encoder, name, record)
        return event_id

    def _convert(self, record: dict[str, Any], given: Mapping[str, Any]) -> None:
        for name in ("actor", "reporter"):
            if name in given:
                record[name] = given[name].record()
        if "correlate" in given:
            handles = self.outlet.handles("correlate", record.pop("correlate"))
            record["correlation"] = {"how": "exact", "handles": handles}

    def _search(
        self,
        record: dict[str, Any],
        given: Mapping[str, Any],
        own: Mapping[str, Any],
        captor: Captor,
    ) -> None:
        """Take secrets out of what is no content: reasons, URIs, resources, attributes."""
        names = [name for name in (*given, *own) if _is_searched(name)]
        texts = []
        for name in names:
            value = record.get(name)
            if type(value) is str:
                texts.append(value)
            elif value and not isinstance(value, int | float):
                texts.append(str(value))
        if not may_hold_secret("\n".join(texts)):
            return
        for name in names:
            if name in record:
                record[name] = captor.redactor.value(name, record[name])


@cache
def _is_searched(name: str) -> bool:
    return name not in _NEVER_SEARCHED and not name.endswith(("_hash", "_id"))
