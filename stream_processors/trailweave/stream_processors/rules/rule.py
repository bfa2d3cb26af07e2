"""What a rule is, and the decorator that makes one of a function."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from trailweave.stream_processors.chain import Chain, Record

Severity = Literal["low", "medium", "high", "critical"]
#: Authorities that may report about a session; `session_started.expected_sources` names them.
Source = Literal["agent", "gateway", "policy", "vault", "downstream"]


@dataclass(frozen=True, slots=True)
class Hit:
    """One thing found: what it is about, one sentence, and the events it rests on."""

    subject: str
    summary: str
    events: tuple[Record, ...] = ()


Check = Callable[[Chain], Iterator[Hit]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule with its metadata; `name` is the finding's name."""

    name: str
    severity: Severity
    #: Official ids first, then the loose labels that readers of the field know.
    controls: tuple[str, ...]
    #: Authorities without whose reports the absence of an event means nothing.
    needs: tuple[Source, ...]
    expected: str
    next_step: str
    doc: str
    check: Check
    #: Whether the chain holds what the rule compares, where the promised authorities don't tell.
    when: Callable[[Chain], bool] | None


def rule(
    severity: Severity,
    *,
    controls: tuple[str, ...],
    expected: str,
    next_step: str,
    needs: tuple[Source, ...] = (),
    when: Callable[[Chain], bool] | None = None,
) -> Callable[[Check], Rule]:
    """Make a `Rule` of a function; its name and docstring become the rule's."""

    def wrap(check: Check) -> Rule:
        doc = inspect.getdoc(check) or ""
        name = check.__name__
        return Rule(name, severity, controls, needs, expected, next_step, doc, check, when)

    return wrap
