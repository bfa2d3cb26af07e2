"""A session of an agent: a participant with a beginning and an end that says what to expect."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from trailweave.producers.fields import SESSION_ENVELOPE, SESSION_FIELDS, Status
from trailweave.producers.identity import Identity, Record, delegate, identity_of
from trailweave.producers.participant import Participant, status_of
from trailweave.producers.trace import Trace
from trailweave.producers.traceparent import SAMPLED, TraceParent
from trailweave.producers.writer import Outlet, Writer
from trailweave.schemas.errors import TrailError
from trailweave.schemas.ids import new_span_id

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opening:
    """How a session begins, and what its end may promise."""

    task: str | None
    #: It ends the whole trace: false for a child agent.
    root: bool
    #: No producer takes part in the trace but this one and those named with `expect`.
    exhaustive: bool
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a trace a participant stands, and as whom."""

    outlet: Outlet
    trace: Trace
    #: The recorder's constants: tenant, producer, reporter, …
    envelope: Mapping[str, Any]
    actor: Identity
    parent: TraceParent | None = None
    #: The parent span is another process's.
    remote: bool = False
    delegation: Sequence[Record] = ()

    @property
    def flags(self) -> str:
        """Trace flags to hand on."""
        return SAMPLED if self.parent is None else self.parent.flags

    def writer(self, session_fields: Mapping[str, Any]) -> Writer:
        """A writer with a span of its own."""
        envelope = {
            **self.envelope,
            "trace_id": self.trace.trace_id,
            "producer_epoch": self.trace.epoch,
            "actor": self.actor.record(),
            "span_id": new_span_id(),
            "parent_span_id": self.parent.span_id if self.parent else None,
            "parent_remote": self.remote if self.parent else None,
            "delegation": list(self.delegation),
            **{k: v for k, v in session_fields.items() if k in SESSION_ENVELOPE},
        }
        if "sponsor" in session_fields:
            envelope["sponsor"] = identity_of(session_fields["sponsor"], "human").record()
        return Writer(self.outlet, self.trace, envelope)


class Session(Participant):
    """An agent at work on a task, as a sync or async context manager.

    Entering records `session_started`, leaving `session_ended`: status `ok`, or `error` and the
    exception's type, never its message. Set `outcome`, `status` or `cost_usd` to say more.
    """

    def __init__(self, place: Place, opening: Opening) -> None:
        unknown = opening.fields.keys() - SESSION_FIELDS
        if unknown:
            raise TypeError(f"a session has no field {', '.join(sorted(unknown))}")
        super().__init__(place.writer(opening.fields), place.actor, place.flags)
        self.outcome: str | None = None
        self.status: Status | None = None
        self.cost_usd: float | None = None
        #: The id of `session_started`, once entered.
        self.started_event_id = ""
        self._place = place
        self._opening = opening
        self._expected: dict[str, int] = {}

    def expect(self, producer_id: str, count: int) -> None:
        """Another producer has sent this many events in this trace; may be called again."""
        self._expected[producer_id] = count

    def child(
        self,
        agent: Identity | str,
        task: str | None = None,
        scopes: Sequence[str] = (),
        **fields: Any,
    ) -> "Session":
        """The session of an agent that this one delegates to, within the same trace.

        `scopes` is what the child may do; its delegation names it first, then this session's.
        `fields` are those of `Recorder.session`; what is not given is inherited.
        """
        place, actor = self._place, identity_of(agent, "agent")
        envelope = {**place.envelope, "agent_id": _name(agent), "agent_version": None}
        inherited = {k: v for k, v in self._opening.fields.items() if k in SESSION_ENVELOPE}
        child = Place(
            place.outlet,
            place.trace,
            envelope,
            actor,
            TraceParent(self.trace_id, self.span_id, self._flags),
            delegation=(
                delegate(actor, scopes),
                *(place.delegation or (delegate(place.actor, ()),)),
            ),
        )
        started = {"parent_session_event_id": self.started_event_id or None, "entrypoint": "agent"}
        opening = Opening(task, root=False, exhaustive=False, fields=inherited | started | fields)
        return Session(child, opening)

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._end(kind)
        except TrailError as lost:
            # The agent's own exception must reach its caller; the missing end shows in the chain.
            if error is None:
                raise
            log.error("couldn't record the end of a session: %s", lost)  # noqa: TRY400 - said all

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)

    def _start(self) -> None:
        captor = self._writer.captor()
        given = {
            k: v
            for k, v in self._opening.fields.items()
            if k not in SESSION_ENVELOPE and k != "scopes"
        }
        own: dict[str, Any] = {"task": captor.text("task", self._opening.task)[0]}
        if given.get("initiator") is not None:
            own["initiator"] = identity_of(given["initiator"], "human").record()
        if "tools_offered" in given:
            own["tools_offered"] = [
                {"tool": offer} if isinstance(offer, str) else dict(offer)
                for offer in given["tools_offered"]
            ]
        self.started_event_id = self._writer.write("session_started", given, own, captor)

    def _end(self, kind: type[BaseException] | None) -> None:
        producer_id = self._place.envelope["producer_id"]
        own = {
            "outcome": self.outcome if kind is None else kind.__name__,
            "status": self.status or status_of(kind),
            "root": self._opening.root,
            # The trace puts in the count of this producer, under the lock that numbers the end.
            "expected": {**self._expected, producer_id: 0},
            "expected_exhaustive": self._opening.root and self._opening.exhaustive,
            "cost_usd": self.cost_usd,
        }
        self._writer.write("session_ended", {}, own, self._writer.captor())


def _name(agent: Identity | str) -> str:
    return agent if isinstance(agent, str) else agent.subject
