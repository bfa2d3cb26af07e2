"""What a rule is, and the decorator that makes one of a function."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from trailweave.stream_processors.chain import Chain, Record
from trailweave.stream_processors.rules.limits import Limits

Severity = Literal["low", "medium", "high", "critical"]
#: Authorities that may report about a session; `session_started.expected_sources` names them.
Source = Literal["agent", "gateway", "policy", "vault", "downstream"]


@dataclass(frozen=True, slots=True)
class Hit:
    """One thing found: what it is about, one sentence, and the events it rests on."""

    subject: str
    summary: str
    events: tuple[Record, ...] = ()


#: A rule's function: of the chain, or of the chain and the limits.
Check = Callable[[Chain], Iterator[Hit]] | Callable[[Chain, Limits], Iterator[Hit]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule with its metadata; `name` is the finding's name."""

    name: str
    severity: Severity
    #: Official ids first, then the loose labels that readers of the field know.
    controls: tuple[str, ...]
    #: Authorities without whose reports the absence of an event means nothing.
    needs: tuple[Source, ...]
    #: Event types without each of which it finds nothing: it is not asked then.
    about: tuple[str, ...]
    expected: str
    next_step: str
    doc: str
    check: Callable[..., Iterator[Hit]]
    #: Whether the function compares with limits, and takes them.
    limited: bool
    #: Whether chain and limits hold what the rule compares, where promised authorities don't tell.
    when: Callable[[Chain, Limits], bool] | None
    #: Whether it is asked before the session closes, too: what it finds rests on events that are
    #: there, and not on the lack of others.
    early: bool


def rule(  # noqa: PLR0913 - what a rule says of itself, each by its name
    severity: Severity,
    *,
    controls: tuple[str, ...],
    expected: str,
    next_step: str,
    needs: tuple[Source, ...] = (),
    about: tuple[str, ...] = (),
    when: Callable[[Chain, Limits], bool] | None = None,
    early: bool = False,
) -> Callable[[Check], Rule]:
    """Make a `Rule` of a function; its name and docstring become the rule's."""

    def wrap(check: Check) -> Rule:
        doc = inspect.getdoc(check) or ""
        limited = "limits" in inspect.signature(check).parameters
        return Rule(
            check.__name__,
            severity,
            controls,
            needs,
            about,
            expected,
            next_step,
            doc,
            check,
            limited,
            when,
            early,
        )

    return wrap
