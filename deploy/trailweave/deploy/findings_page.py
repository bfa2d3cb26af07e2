"""docs/findings.md, made of what the rules say of themselves."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

from trailweave.stream_processors.detectors import DETECTORS, Detector
from trailweave.stream_processors.rules import RULES, Limits, Rule

EARLY: Final = "while the session is open, and when it closes"
CLOSING: Final = "when the session closes"

_HEAD: Final = """# Findings

Written by `trailweave findings explain --markdown` from the rules in
`stream_processors/trailweave/stream_processors/rules`.

Each rule is a function of one chain: a session with all its events, whoever reported them. A
finding names its subject and the events that it rests on. There are three answers: found, not
found, and *not evaluable*, where what a rule needs was never promised: then the lack of an event
means nothing. Sessions promise it (`session_started.expected_sources`), or `expected_sources` in
`rules.toml` does for all of them. The same chain and settings give the same findings, with the
same ids, whenever they are judged.

Times are those of whoever reports. Where two are compared, five seconds are allowed, for clocks
differ; what has no time is not judged, or as the rule says.

Controls are official ids first (OWASP ASI 2026 and NHI 2025, OWASP T1 to T15, NIST SP 800-53,
MITRE ATLAS, PCI DSS, SOC 2), then labels that readers of the field know.
"""
_ACROSS: Final = """## Across sessions

`trailweave watch` looks for what only many sessions together show. Such a finding names no trace as
its own; its summary names the latest. It is said again, under the same id, when more comes. What is
found because something did not come is taken back when it comes."""
_OWN: Final = '''## Rules of your own

`[own]` in `rules.toml` names a module whose `RULES` are asked of every chain that closes, and of
those that `trailweave reassess` judges:

```toml
[own]
module = "acme_rules"   # as after `import`; the workers must be able to
deadline_s = 1.0        # for all of them, per chain
memory_mb = 1024        # of their process
version = "3"           # change it with the module: reassess then judges anew
```

```python
from trailweave.stream_processors.rules import Hit
from trailweave.stream_processors.rules.rule import rule


@rule(
    "high",
    controls=("ACME-7",),
    about=("tool_requested",),
    expected="no transfers by night",
    next_step="ask treasury",
)
def night_transfer(chain):
    """Somebody transferred money by night."""
    for request in chain.of("tool_requested"):
        if request["tool"] == "transfer" and request["occurred_at"] // 3_600_000_000 % 24 < 6:
            yield Hit(request["call_id"], "a transfer by night", (request,))


RULES = (night_transfer,)
```

A rule sees what ours see: the fields that `chain.py` lists, no content. They run in a process of
their own. One that raises is not evaluable for that chain; one that is slow, never ends, takes too
much memory or ends the process costs its chain the answers of all of them, which the verdict then
names as not evaluable, and the join at most some seconds a minute. What they print goes to the
worker's standard error.'''
_LIMITS: Final = """## What rules compare with

`[limits]` in `rules.toml`, beside `expected_sources` and `off`, the rules that are not asked. The
hash of the file stands in every verdict. Where nobody has said what is approved, the rule that
asks for it is not evaluable.

| setting | default | meaning |
| --- | --- | --- |
"""


def about(rule: Rule) -> dict[str, Any]:
    """What a rule says of itself."""
    return {
        "name": rule.name,
        "severity": rule.severity,
        "meaning": rule.doc,
        "needs": list(rule.needs),
        "about": list(rule.about),
        "asked": EARLY if rule.early else CLOSING,
        "expected": rule.expected,
        "next_step": rule.next_step,
        "controls": list(rule.controls),
    }


def across(detector: Detector) -> dict[str, Any]:
    """What a detector over many sessions says of itself."""
    return {
        "name": detector.name,
        "severity": detector.severity,
        "meaning": detector.doc,
        "needs": [],
        "about": [],
        "asked": "over all sessions and producers, by `trailweave watch`",
        "expected": detector.expected,
        "next_step": detector.next_step,
        "controls": list(detector.controls),
    }


def page() -> str:
    """The whole page, as Markdown."""
    lines = [_HEAD, "| finding | severity | expected |", "| --- | --- | --- |"]
    lines += [f"| [{r.name}](#{r.name}) | {r.severity} | {r.expected} |" for r in RULES]
    for rule in RULES:
        lines += ["", *_section(about(rule))]
    lines += ["", _ACROSS]
    for detector in DETECTORS.values():
        lines += ["", *_section(across(detector))]
    rows = [f"| `{name}` | {_shown(value)} | {doc} |" for name, value, doc in _limits()]
    return "\n".join([*lines, "", _OWN, "", _LIMITS + "\n".join(rows), ""])


def _section(said: Mapping[str, Any]) -> list[str]:
    needs = ", ".join(said["needs"])
    return [
        f"### {said['name']}",
        "",
        f"**{said['severity'].capitalize()}.** {said['meaning']}",
        "",
        f"- Expected: {said['expected']}.",
        f"- Next step: {said['next_step']}.",
        f"- Asked {said['asked']}{f', where these report: {needs}' if needs else ''}.",
        f"- Controls: {', '.join(said['controls'])}.",
    ]


def _limits() -> Iterator[tuple[str, Any, str]]:
    usual = Limits()
    for one in fields(Limits):
        yield one.name, getattr(usual, one.name), one.metadata["doc"]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {one}" for name, one in value.items())
    return ", ".join(value) if isinstance(value, tuple) else str(value)
