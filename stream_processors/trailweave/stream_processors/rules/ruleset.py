"""Which rules to ask of a chain: by what it holds and by what was promised, before any is asked."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from trailweave.stream_processors.chain import Chain
from trailweave.stream_processors.rules.limits import Limits
from trailweave.stream_processors.rules.rule import Hit, Rule

#: Chains differ in few ways; whoever sends others costs time, and no memory.
_PLANS_MAX: Final = 1_000


class Asked(NamedTuple):
    """A rule with what asking it needs: taken apart once, and not for every chain."""

    rule: Rule
    check: Callable[..., Iterator[Hit]]
    limited: bool
    when: Callable[[Chain, Limits], bool] | None


class Plan(NamedTuple):
    """What to ask of chains of one kind."""

    ask: list[Asked]
    #: Names of the rules that the promised authorities leave open.
    not_evaluable: list[str]


class RuleSet:
    """Rules in an order."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._plans: dict[tuple[AbstractSet[str], ...], Plan] = {}

    def plan(self, types: frozenset[str], available: frozenset[str], off: frozenset[str]) -> Plan:
        """For chains with these event types, authorities that report, and rules not asked."""
        found = self._plans.get((types, available, off))
        if found is None:
            if len(self._plans) == _PLANS_MAX:
                self._plans.clear()
            found = self._plans[types, available, off] = self._planned(types, available, off)
        return found

    def _planned(
        self, types: frozenset[str], available: frozenset[str], off: frozenset[str]
    ) -> Plan:
        ask, lacking = [], []
        for rule in self.rules:
            if rule.name in off:
                continue
            if not available.issuperset(rule.needs):
                lacking.append(rule.name)
            # One that may prove not evaluable is asked for that, whatever the chain holds.
            elif rule.when is not None or types.issuperset(rule.about):
                ask.append(Asked(rule, rule.check, rule.limited, rule.when))
        return Plan(ask, lacking)
