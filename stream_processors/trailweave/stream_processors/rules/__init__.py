"""The rules: one small pure function per finding over a `Chain`.

A rule's docstring is its documentation (`trailweave findings explain`); its metadata names what it
needs. Three answers: hits, no hits, and *not evaluable* when a needed authority neither was
promised by the session nor is by the settings. `judge` asks all of them.
"""

from typing import Final

from trailweave.stream_processors.rules import calls, credentials, records
from trailweave.stream_processors.rules.rule import Hit, Rule

#: Changes whenever a rule's answer may change; stands in every verdict.
RULES_VERSION: Final = "1"

RULES: Final[tuple[Rule, ...]] = (
    calls.exec_without_decision,
    calls.denied_but_executed,
    calls.hallucinated_call,
    calls.ghost_action,
    calls.outcome_missing,
    credentials.cred_after_expiry,
    records.seq_gap,
    records.model_version_missing,
    records.identity_missing,
)

__all__ = ["RULES", "RULES_VERSION", "Hit", "Rule"]
