"""The process in which the user's own rules run: `own_rules` starts it and reads its answers. Edge.

It holds no state and talks to nobody but its parent. Whatever the rules do here (raise, loop, take
memory, write to the terminal) stays here: a rule that raises is not evaluable for that chain, and
everything else ends this process, which the parent sees.
"""

import contextlib
import importlib
import itertools
import json
import os
import pickle
import re
import resource
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any, Final

from trailweave.stream_processors.chain import Chain
from trailweave.stream_processors.ranges import by_producer
from trailweave.stream_processors.rules import RULES, Rule
from trailweave.stream_processors.rules.ruleset import RuleSet
from trailweave.stream_processors.verdict import (
    FINDINGS_PER_RULE_MAX,
    SEVERITIES,
    RulesConfig,
    asked,
)

RULES_MAX: Final = 200
#: Characters of what a rule says; records cut it further.
TEXT_MAX: Final = 4_000
#: How often is looked whether the parent still lives.
PARENT_INTERVAL_S: Final = 1.0
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{2,63}").fullmatch


def rules_of(module: str) -> list[Rule]:
    """The module's `RULES`; raises ValueError that says what is wrong with them, and what its
    import raises.
    """
    rules = getattr(importlib.import_module(module), "RULES", None)
    if not isinstance(rules, Iterable):
        raise ValueError(f"{module} has no RULES: a list of functions decorated with rule(...)")  # noqa: TRY004
    found, ours = list(rules), {rule.name for rule in RULES}
    for one in found:
        if not isinstance(one, Rule):
            raise ValueError(f"{module}.RULES holds {type(one).__name__}, and rules only may be")  # noqa: TRY004
        if not _NAME(one.name) or one.name in ours:
            raise ValueError(f"{module}: {one.name[:64]!r} is no name for a rule, or one of ours")
        if one.severity not in SEVERITIES:
            raise ValueError(f"{module}: {one.name} has the severity {one.severity!r}")
    if len(found) > RULES_MAX or len({one.name for one in found}) < len(found):
        raise ValueError(f"{module}.RULES has a name twice, or more than {RULES_MAX} rules")
    return found


def answer(chain: Chain, rules: RuleSet, config: RulesConfig) -> dict[str, Any]:
    """What the rules say of a chain, as JSON has it; events by their index in the chain."""
    plan = asked(chain, config, rules)
    hits, failed = [], {}
    not_evaluable = list(plan.not_evaluable)
    place = {id(record): index for index, record in enumerate(chain.records)}
    for rule, *_ in plan.ask:
        try:
            if rule.when and not rule.when(chain, config.limits):
                not_evaluable.append(rule.name)
                continue
            made = rule.check(chain, config.limits) if rule.limited else rule.check(chain)
            found = []
            for hit in itertools.islice(made, FINDINGS_PER_RULE_MAX):
                events = [place[id(one)] for one in hit.events if id(one) in place]
                text = (str(hit.subject)[:TEXT_MAX], str(hit.summary)[:TEXT_MAX])
                found.append([rule.name, *text, events])
            hits += found  # of a rule that raises on the way, none
        except Exception as error:  # noqa: BLE001 - whatever a user's rule raises
            failed[rule.name] = _where(error)
    return {"hits": hits, "not_evaluable": not_evaluable, "failed": failed}


def _where(error: BaseException) -> str:
    """The exception's type and place; what it says may quote what was recorded."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" in {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""  # noqa: PTH119
    return f"{type(error).__name__}{at}"


def serve(pipe: Connection) -> None:
    """Answer until the parent closes its end."""
    module, memory_bytes, config = pickle.loads(pipe.recv_bytes())  # noqa: S301 - our parent's
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    try:
        rules = rules_of(module)
    except BaseException as error:  # noqa: BLE001 - an import may even try to exit
        why = str(error) if isinstance(error, ValueError) else _where(error)
        pipe.send_bytes(json.dumps({"error": why[:TEXT_MAX]}).encode())
        return
    pipe.send_bytes(json.dumps({"rules": [_said(rule) for rule in rules]}).encode())
    found = RuleSet(rules)
    while True:
        tenant, trace_id, records, duplicates, conflicts, times, ahead = pickle.loads(  # noqa: S301
            pipe.recv_bytes()
        )
        chain = Chain(
            tenant,
            trace_id,
            records,
            by_producer(records),
            b"",
            [],
            duplicates,
            conflicts,
            times,
            ahead,
        )
        pipe.send_bytes(json.dumps(answer(chain, found, config)).encode())


def _said(rule: Rule) -> dict[str, Any]:
    return {
        "name": rule.name,
        "severity": rule.severity,
        "controls": [str(one) for one in rule.controls],
        "expected": str(rule.expected),
        "next_step": str(rule.next_step),
        "doc": rule.doc,
    }


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_INTERVAL_S)
    os._exit(1)


def main() -> None:
    """`python -m … FD PARENT`: the inherited end of a pipe, and who has the other one."""
    fd, parent = int(sys.argv[1]), int(sys.argv[2])
    # A rule that never ends would outlive a parent that was killed.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with contextlib.suppress(EOFError, OSError), Connection(fd) as pipe:
        serve(pipe)


if __name__ == "__main__":
    main()
