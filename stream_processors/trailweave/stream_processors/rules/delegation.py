"""Findings about agents that act for each other."""

import itertools
from collections.abc import Iterator

from trailweave.stream_processors.chain import Chain
from trailweave.stream_processors.rules.limits import Limits, covers
from trailweave.stream_processors.rules.rule import Hit, rule


@rule(
    "high",
    controls=("ASI07", "AC-4", "T12"),
    expected="a line of delegation without a loop, and no longer than is allowed",
    next_step="find out which agent hands on what it was given, and stop it",
    early=True,
)
def delegation_loop(chain: Chain, limits: Limits) -> Iterator[Hit]:
    """An agent acts, through others, for itself; or too many act for each other.

    Too many: more than `limits.delegation_depth`.
    """
    for record in chain.delegations:
        subjects = [one["subject"] for one in record["delegation"]]
        again = next((s for i, s in enumerate(subjects) if s in subjects[:i]), None)
        if again is not None:
            yield Hit(subjects[0], f"{again} acts for itself through others", (record,))
        elif len(subjects) > limits.delegation_depth:
            yield Hit(subjects[0], f"{len(subjects)} act for each other in one line", (record,))


@rule(
    "critical",
    controls=("ASI03", "AC-6", "NHI5:2025"),
    expected="no more rights for an agent than for the one it acts for",
    next_step="take the right away; find out who granted it, and why that was not checked",
    early=True,
)
def delegation_escalation(chain: Chain) -> Iterator[Hit]:
    """An agent may do more than the one that it acts for; or a credential more than its parent.

    Compared where both say what they may do.
    """
    for record in chain.delegations:
        line = record["delegation"]
        for agent, above in itertools.pairwise(line):
            more = _beyond(agent["scopes"], above["scopes"])
            if more is not None:
                summary = f"{agent['subject']} may do {more}, which {above['subject']} may not"
                yield Hit(agent["subject"], summary, (record,))
    issued = {r["credential_id"]: r for r in chain.of("credential_issued")}
    for credential_id, record in issued.items():
        parent = issued.get(record["parent_credential_id"])
        if parent:
            more = _beyond(record["scopes_granted"], parent["scopes_granted"])
            if more is not None:
                summary = f"a credential allows {more}, which the one it was made from does not"
                yield Hit(credential_id, summary, (parent, record))


def _beyond(scopes: list[str], above: list[str]) -> str | None:
    """The first scope that none above covers."""
    if not scopes or not above:
        return None
    return next((s for s in scopes if not any(covers(one, s) for one in above)), None)
