"""What rules compare with and no chain can say: the settings `[limits]` of `rules.toml`.

Every default is what most fleets never reach by honest work. A list or table that is empty makes
the rule that needs it not evaluable: nobody has said what is approved.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from functools import lru_cache
from ipaddress import ip_network
from typing import Any, Final, get_type_hints

#: Data classes that call for care; named in `envelope.data_class`.
SENSITIVE: Final = frozenset({"restricted", "secret"})


def _limit(default: Any, doc: str) -> Any:
    """A setting with its meaning, which docs/findings.md shows."""
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds and approved lists."""

    models: tuple[str, ...] = _limit(
        (), "models that may answer, as patterns (`gpt-4o-*`), by the provider's name for them"
    )
    networks: tuple[str, ...] = _limit(
        (), "networks from which agents' identities are used, as CIDR"
    )
    tools: Mapping[str, str] = _limit(
        {},
        "approved tools: name to the hash of its definition; others are as a session offers them",
    )
    bundles: Mapping[str, str] = _limit(
        {}, "policy bundles in force: name to revision; others are as a session expects them"
    )
    production: tuple[str, ...] = _limit(
        ("production", "prod", "live"), "names of environments that are production"
    )
    obligations: Mapping[str, str] = _limit(
        {
            "approval": "approval",
            "human_approval": "approval",
            "require_approval": "approval",
            "step_up": "approval",
            "guardrail": "guardrail",
        },
        "obligations of a decision that leave a trace: name to `approval` or `guardrail`",
    )
    credential_ttl_s: float = _limit(
        86_400.0, "a credential that lives for longer is a standing one"
    )
    credential_alive_s: float = _limit(
        300.0, "a task's credential may outlive its session by so much"
    )
    scopes_unused_share: float = _limit(
        0.5, "a session may leave so much of what a credential grants unused"
    )
    delegation_depth: int = _limit(5, "agents that act for each other, one behind the other")
    tool_calls: int = _limit(200, "executed tool calls of a session")
    tries: int = _limit(10, "tries of one call")
    tokens: int = _limit(5_000_000, "tokens of a session, in and out")
    cost_usd: float = _limit(100.0, "cost of a session")
    clock_ahead_s: float = _limit(
        30.0, "a producer's clock may be ahead of the broker's by so much; at least 5"
    )
    credential_days: float = _limit(1.0, "`watch`: days over which one credential is used")
    approvals_per_hour: int = _limit(20, "`watch`: approvals of one person within an hour")
    approval_median_s: float = _limit(5.0, "`watch`: what half of them take at least")
    sponsors: int = _limit(20, "`watch`: people for whom one workload acts")
    agent_calls_per_hour: int = _limit(1_000, "`watch`: tool calls of one agent within an hour")
    agent_cost_per_hour: float = _limit(500.0, "`watch`: cost of one agent within an hour")
    trace_kept_s: float = _limit(
        3_600.0, "`watch`: how long parts of one trace may come one after the other"
    )
    producer_silent_s: float = _limit(
        60.0, "`watch`: a producer may send no heartbeat for so long, or for three intervals"
    )
    producer_settle_s: float = _limit(
        7_200.0, "`watch`: how long recorded events may take to their sessions' close"
    )


def limits_from(table: Any) -> Limits:
    """The settings of a table; raises ValueError that names the one that is wrong."""
    if not isinstance(table, dict):
        raise ValueError("limits must be a table")  # noqa: TRY004 - the file is wrong, not a call
    kinds = get_type_hints(Limits)
    unknown = table.keys() - kinds.keys()
    if unknown:
        known = ", ".join(sorted(one.name for one in fields(Limits)))
        raise ValueError(f"limits has no {', '.join(sorted(unknown))}; there are {known}")
    found = {name: _value(name, value, str(kinds[name])) for name, value in table.items()}
    return Limits(**found)


def _value(name: str, value: Any, kind: str) -> Any:
    if "Mapping" in kind:
        if isinstance(value, dict) and all(isinstance(one, str) for one in value.values()):
            return dict(value)
        raise ValueError(f"limits.{name} must be a table of texts")
    if "tuple" in kind:
        # A text would pass as the list of its letters.
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"limits.{name} must be a list of texts")
        if name == "networks":
            for one in value:
                try:
                    ip_network(one)
                except ValueError as error:
                    raise ValueError(f"limits.{name}: {error}") from error
        return tuple(value)
    number = isinstance(value, int) or ("float" in kind and isinstance(value, float))
    if not number or isinstance(value, bool) or value < 0:
        raise ValueError(f"limits.{name} must be a number from 0 on")
    return value


def covers(granted: str, scope: str) -> bool:
    """Whether a scope that was granted, with wildcards or not, allows another."""
    return granted == scope or ("*" in granted and fnmatchcase(scope, granted))


def is_production(name: str | None, limits: Limits) -> bool:
    """Whether an environment is production by its name."""
    return name is not None and _is_among(name, limits.production)


@lru_cache(maxsize=1_000)
def _is_among(name: str, names: tuple[str, ...]) -> bool:
    return name.casefold() in map(str.casefold, names)
