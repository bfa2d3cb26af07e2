"""Faust agents of the user's own beside ours: `watch.module` names a module that has them. Edge.

The module has a function `register(trail)`, which is given a `Trail` and defines agents on
`trail.app`; `own_agents_example` is one to begin with. They run in watch's process, read what is
committed, and say findings as our detectors do:

- The sessions topic has what the join and `reassess` write of each session, as Avro; `chain_of`
  gives a closed one as a dict in the names of the schema `chain`, and None for everything else.
- An agent may see a chain again, after a kill. `say` makes the finding's id of tenant, rule and
  subject, so that what is said again is the same finding: choose subjects that repeat.
- State belongs into a `trail.app.Table`, with the key of the stream's events.
- Whatever an agent raises stops that agent and is in the log; the others go on.
"""

import importlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from trailweave.schemas import events, ids
from trailweave.schemas.codec import Decoder, Encoder
from trailweave.schemas.errors import Fatal, Rejected
from trailweave.stream_processors.rules.rule import Severity

#: Of topics whose keys and values are bytes.
RAW: Final[Mapping[str, Any]] = {
    "key_type": bytes,
    "value_type": bytes,
    "key_serializer": "raw",
    "value_serializer": "raw",
}


class Trail:
    """What an agent of the user's own works with."""

    def __init__(self, app: Any) -> None:
        #: The `faust.App`.
        self.app = app
        #: The records of all sessions; keys are trace ids.
        self.sessions = app.topic(events.SESSIONS_TOPIC, **RAW)
        self._findings = app.topic(events.FINDINGS_TOPIC, **RAW)
        self._decoder, self._encoder = Decoder(), Encoder()

    def chain_of(self, event: Any) -> dict[str, Any] | None:
        """The closed chain of an event of `sessions`; None for open revisions and fragments."""
        if dict(event.headers or ()).get("kind") != b"chain":
            return None
        try:
            _, chain = self._decoder.decode(event.value)
        except Rejected:
            return None  # of another version
        return chain

    async def say(  # noqa: PLR0913 - what a finding says, each by its name
        self,
        rule: str,
        *,
        tenant: str,
        subject: str,
        summary: str,
        severity: Severity = "medium",
        trace_id: str = "",
        controls: Sequence[str] = (),
        expected: str = "",
        next_step: str = "",
        version: str = "own-1",
    ) -> None:
        """Say a finding, and wait until Kafka has it. A new `summary` replaces the old one."""
        finding = {
            "finding_id": ids.derived_id(tenant, trace_id, rule, subject),
            "trace_id": trace_id,
            "tenant": tenant,
            "rule": rule,
            "state": "open",
            "severity": severity,
            "subject": subject,
            "summary": summary,
            "expected": expected,
            "next_step": next_step,
            "controls": list(controls),
            "evidence": [],
            "chain_state": "closed",
            "agent_id": None,
            "identity": None,
            "sponsor": None,
            "detected_at": int(time.time() * 1000),
            "rules_version": version,
            "rules_config_hash": "",
        }
        value = self._encoder.encode("finding", finding)
        await (await self._findings.send(key=subject.encode(), value=value))


def register(module: str, app: Any) -> None:
    """Let the module define its agents; raises `Fatal` when it can't be imported or has none."""
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise Fatal(
            f"couldn't import the agents of {module}: {type(error).__name__}: {error};"
            " watch.module is a module's name, as after `import`"
        ) from error
    make = getattr(found, "register", None)
    if not callable(make):
        raise Fatal(f"couldn't use the agents of {module}: it has no function register(trail)")
    make(Trail(app))
