"""The Recorder: what an agent, a gateway, a policy engine or a vault records events with.

    with Recorder(tenant="acme", agent="clerk") as recorder:
        with recorder.session(task="pay the invoice", sponsor="ann@acme.example") as session:
            with session.tool_call("pay", arguments={"invoice": 7}, side_effect=True) as call:
                call.result = pay(7)

Recording takes some ten microseconds in the calling thread and never waits for the network. What
is accepted is delivered, in memory, on disk or in the failed file, and `counts` says which; what a
killed process can lose stands in `kafka`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Required, Self, TypedDict, Unpack, cast

from trailweave.producers.capture import Capture, CapturePolicy, RedactText
from trailweave.producers.fields import Purpose, SessionFields
from trailweave.producers.identity import Identity, Record, delegate, identity_of
from trailweave.producers.participant import Participant
from trailweave.producers.session import Opening, Place, Session
from trailweave.producers.trace import Traces
from trailweave.producers.traceparent import read_traceparent
from trailweave.producers.transport import (
    Counts,
    Producer,
    Transport,
    default_encoder,
    producer_name,
)
from trailweave.producers.writer import Outlet
from trailweave.schemas.codec import Encoder
from trailweave.schemas.errors import Fatal, Rejected
from trailweave.schemas.hashing import TenantKey
from trailweave.schemas.ids import new_trace_id

KAFKA_VARIABLE: Final = "TRAILWEAVE_KAFKA"
#: TRAILWEAVE_KAFKA_SECURITY_PROTOCOL is librdkafka's security.protocol, and so on.
KAFKA_PREFIX: Final = "TRAILWEAVE_KAFKA_"
#: TENANT, ENVIRONMENT, KEY_ID, KEY_SECRET and SPOOL: what the commands read, too.
PREFIX: Final = "TRAILWEAVE_PRODUCER_"


class RecorderSettings(TypedDict, total=False):
    """What a recorder says of itself in every event."""

    tenant: Required[str]
    #: gen_ai.agent.id; also what the producer id begins with.
    agent: Required[str]
    agent_version: str | None
    #: The identity that acts; a bare text is a SPIFFE id or an agent's name. Without: the agent.
    identity: Identity | str | None
    #: The identity that says so, if it is another: the workload of a gateway.
    reporter: Identity | str | None
    #: The human on whose behalf, for sessions that don't name another.
    sponsor: Identity | str | None
    #: Who answers for the agent.
    owner: str | None
    environment: str
    purpose: Purpose
    #: Shared by all producers of the tenant, so that their hashes match.
    key: TenantKey | None
    #: Without: `hashed` with a key, `metadata` without one.
    capture: Capture | None
    #: Applied to kept texts at level `redacted`, after the secrets are out.
    redact_text: RedactText | None
    #: Without: agent, host and pid.
    producer_id: str | None
    #: host, pod, address. Without: the host's name.
    runtime: Mapping[str, str] | None
    #: Of a Schema Registry; without: single-object encoding.
    encoder: Encoder | None


class Recorder:
    """Records the events of one agent or service of this process. Thread-safe.

    Use it as a context manager, or `close` it; what the process forgets is closed at its exit.
    Without a transport, events go to the Kafka that TRAILWEAVE_KAFKA names. Raises `Fatal` for
    settings that can't work.
    """

    def __init__(
        self, transport: Transport | None = None, **settings: Unpack[RecorderSettings]
    ) -> None:
        unknown = settings.keys() - RecorderSettings.__annotations__.keys()
        if unknown:
            raise TypeError(f"a Recorder has no setting {', '.join(sorted(unknown))}")
        encoder = settings.get("encoder")
        self.transport = transport or kafka_from_environment(os.environ, encoder)
        agent = settings["agent"]
        name = settings.get("producer_id") or producer_name(agent)
        self._producer = Producer(name, settings["tenant"])
        self._key = settings.get("key")
        self._actor = identity_of(settings.get("identity") or agent, "agent")
        self._envelope = _envelope(settings, self._producer, self._actor)
        level = settings.get("capture") or ("metadata" if self._key is None else "hashed")
        self._envelope["capture"] = level
        policy = CapturePolicy(level, self._key, settings.get("redact_text"))
        self._outlet = Outlet(self.transport, encoder or default_encoder(), policy)
        self._traces = Traces(self._producer)
        self.transport.start(self._producer)

    @classmethod
    def from_env(
        cls, transport: Transport | None = None, **settings: Unpack[RecorderSettings]
    ) -> "Recorder":
        """A recorder whose tenant, environment and key come from TRAILWEAVE_PRODUCER_… variables.

        What is given here goes before them.
        """
        merged = {**settings_from_environment(os.environ), **settings}
        return cls(transport, **cast("RecorderSettings", merged))

    @property
    def producer_id(self) -> str:
        """Who writes; another recorder's `session.expect` wants it."""
        return self._producer.producer_id

    @property
    def counts(self) -> Counts:
        """What became of the events recorded so far."""
        return self.transport.counts

    def session(
        self,
        task: str | None = None,
        *,
        traceparent: str | None = None,
        root: bool = True,
        exhaustive: bool = False,
        **fields: Unpack[SessionFields],
    ) -> Session:
        """The agent at work on a task: a context manager, sync or async.

        A valid `traceparent` is continued, else a new trace begins. `root=False` is for an agent
        that works on behalf of another process's session: its end does not end the trace.
        `exhaustive` promises that only this recorder, and producers named with
        `Session.expect`, write into the trace; the session can be proved complete then.
        """
        scopes = fields.get("scopes", ())
        place = self._place(traceparent, [delegate(self._actor, scopes)] if scopes else [])
        return Session(place, Opening(task, root, exhaustive, fields))

    def join_trace(self, traceparent: str, actor: Identity | str | None = None) -> Participant:
        """Take part in another's trace: a gateway, a policy engine, a vault.

        Records neither the session's start nor its end. `actor` is who acts, where that is not
        this recorder's identity. Raises `Rejected` for a header that names no trace.
        """
        if read_traceparent(traceparent) is None:
            raise Rejected("traceparent", "couldn't join: the traceparent header names no trace")
        place = self._place(traceparent, [])
        if actor is not None:
            place = replace(place, actor=identity_of(actor, "agent"))
        return Participant(place.writer({}), place.actor, place.flags)

    def keyed_hash(self, text: str) -> str:
        """The tenant's keyed hash of a text, as other producers make it; never of a bare secret.

        Raises `Rejected` (`no_key`) without a key.
        """
        return self._outlet.hashed("a hash", text)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything recorded is delivered; False when it took too long."""
        return self.transport.flush(timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """Deliver for a bounded time, spool the rest, end. May be called again."""
        self.transport.close(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _place(self, traceparent: str | None, delegation: Sequence[Record]) -> Place:
        parent = read_traceparent(traceparent) if traceparent else None
        trace = self._traces.enter(parent.trace_id if parent else new_trace_id())
        return Place(
            self._outlet, trace, self._envelope, self._actor, parent, remote=True,
            delegation=delegation,
        )  # fmt: skip


def _envelope(settings: RecorderSettings, producer: Producer, actor: Identity) -> dict[str, Any]:
    sponsor = settings.get("sponsor")
    reporter = identity_of(settings.get("reporter") or actor, "workload")
    return {
        "tenant": producer.tenant,
        "producer_id": producer.producer_id,
        "agent_id": settings["agent"],
        "agent_version": settings.get("agent_version"),
        "agent_owner": settings.get("owner"),
        "reporter": reporter.record(),
        "sponsor": identity_of(sponsor, "human").record() if sponsor else None,
        "environment": settings.get("environment", "production"),
        "purpose": settings.get("purpose", "production"),
        "runtime": dict(settings.get("runtime") or {"host": producer.host}),
    }


def settings_from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """What TRAILWEAVE_PRODUCER_… variables say of the producer."""
    found: dict[str, Any] = {"tenant": environ.get(f"{PREFIX}TENANT") or "default"}
    if environment := environ.get(f"{PREFIX}ENVIRONMENT"):
        found["environment"] = environment
    kid, secret = environ.get(f"{PREFIX}KEY_ID"), environ.get(f"{PREFIX}KEY_SECRET")
    if bool(kid) != bool(secret):
        raise Fatal(f"couldn't make the tenant's key: set both {PREFIX}KEY_ID and _KEY_SECRET")
    if kid and secret:
        found["key"] = TenantKey(kid, secret.encode())
    return found


def kafka_from_environment(environ: Mapping[str, str], encoder: Encoder | None) -> Transport:
    """The Kafka that TRAILWEAVE_KAFKA names, its spool in TRAILWEAVE_PRODUCER_SPOOL."""
    from trailweave.producers.kafka import KafkaTransport

    config = {
        name.removeprefix(KAFKA_PREFIX).lower().replace("_", "."): value
        for name, value in environ.items()
        if name.startswith(KAFKA_PREFIX)
    }
    if KAFKA_VARIABLE in environ:
        config["bootstrap.servers"] = environ[KAFKA_VARIABLE]
    if not config.get("bootstrap.servers"):
        raise Fatal(
            f"couldn't tell where Kafka is: set {KAFKA_VARIABLE} to its bootstrap servers, or pass"
            " transport=MemoryTransport() in a test"
        )
    spool = environ.get(f"{PREFIX}SPOOL")
    return KafkaTransport(config, Path(spool) if spool else default_spool(environ), None, encoder)


def default_spool(environ: Mapping[str, str]) -> Path:
    """The spool of this user, where XDG puts state that outlives a process."""
    state = environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "trailweave" / "spool"
