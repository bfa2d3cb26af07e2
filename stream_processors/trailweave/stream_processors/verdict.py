"""The verdict: a chain judged by all rules, as the chain record and the finding records.

Pure: the same chain and settings give the same verdict, whenever and wherever it is judged.
"""

import hashlib
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from trailweave.schemas import hashing, ids
from trailweave.schemas.compiled_write import Items
from trailweave.schemas.errors import Fatal
from trailweave.schemas.varint import write_varint
from trailweave.stream_processors.bounds import bounded, text, text_or_none
from trailweave.stream_processors.chain import Chain, Record, values
from trailweave.stream_processors.ranges import ProducerRange
from trailweave.stream_processors.rules import RULES, RULES_VERSION, Hit, Limits, Rule
from trailweave.stream_processors.rules.limits import limits_from
from trailweave.stream_processors.rules.rule import Source
from trailweave.stream_processors.rules.ruleset import Plan, RuleSet

#: Evidence listed event by event; a longer chain carries ranges and the root only, so that no
#: chain record outgrows Kafka's limits (a reference takes about 110 bytes).
EVIDENCE_MAX: Final = 2_000
#: Findings per chain and rule: the first ones in the chain's order.
FINDINGS_PER_RULE_MAX: Final = 100
#: References to events per finding.
FINDING_EVIDENCE_MAX: Final = 20

ALL: Final = RuleSet(RULES)
#: Those that are asked of open sessions.
EARLY: Final = RuleSet(rule for rule in RULES if rule.early)

SEVERITIES: Final = ("none", "low", "medium", "high", "critical")
DATA_CLASSES: Final = ("public", "internal", "confidential", "restricted", "secret")
_CORRELATIONS: Final = ("exact", "handle", "heuristic", "uncorrelated")


@dataclass(frozen=True, slots=True)
class OwnConfig:
    """`[own]` of rules.toml: the user's own rules, and what they may take. See `own_rules`."""

    #: As after `import`; it has `RULES`.
    module: str
    #: For all of them, per chain.
    deadline_s: float = 1.0
    #: Address space of their process.
    memory_mb: int = 1_024
    #: Changed when the module changes: `reassess` then judges with it what was judged before.
    version: str = ""


@dataclass(frozen=True, slots=True)
class RulesConfig:
    """`rules.toml`: what cannot be read from the chain itself. Its hash stands in every verdict."""

    #: Authorities that report about every session, beside those a session promises itself.
    expected_sources: frozenset[str] = frozenset()
    #: Rules that are not asked.
    off: frozenset[str] = frozenset()
    #: What rules compare with.
    limits: Limits = field(default_factory=Limits)
    #: The user's own rules.
    own: OwnConfig | None = None
    digest: str = "sha256:" + hashlib.sha256(b"").hexdigest()

    @classmethod
    def load(cls, path: Path) -> "RulesConfig":
        """Read a file; raises `Fatal` naming what is wrong in it."""
        try:
            raw = path.read_bytes()
            table = tomllib.loads(raw.decode())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise Fatal(f"couldn't read the rules file {path}: {error}") from error
        sources = _names(path, table, "expected_sources")
        off = _names(path, table, "off")
        unknown = set(table) - {"expected_sources", "off", "limits", "own"}
        unknown |= sources - set(get_args(Source)) | off - {rule.name for rule in RULES}
        if unknown:
            raise Fatal(f"the rules file {path} has unknown names: {sorted(unknown)}")
        try:
            limits = limits_from(table.get("limits", {}))
            own = _own_from(table["own"]) if "own" in table else None
        except ValueError as error:
            raise Fatal(f"the rules file {path}: {error}") from error
        return cls(sources, off, limits, own, "sha256:" + hashlib.sha256(raw).hexdigest())


def _own_from(table: Any) -> OwnConfig:
    kinds: dict[str, tuple[type, ...]] = {
        "module": (str,),
        "deadline_s": (int, float),
        "memory_mb": (int,),
        "version": (str,),
    }
    if not isinstance(table, dict) or not table.get("module") or table.keys() - kinds.keys():
        raise ValueError(f"own must be a table with module, and may have {', '.join(kinds)}")
    for name, value in table.items():
        wrong = not isinstance(value, kinds[name]) or isinstance(value, bool)
        if wrong or (not isinstance(value, str) and value <= 0):
            raise ValueError(f"own.{name} can't be {value!r}")
    return OwnConfig(**table)


def _names(path: Path, table: dict[str, Any], key: str) -> frozenset[str]:
    names = table.get(key, [])
    # A text would pass as the set of its letters, and make rules not evaluable without a word.
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Fatal(f"the rules file {path}: {key} must be a list of names")
    return frozenset(names)


class Finding(NamedTuple):
    """A hit with its rule and its id, which repeats when the work is repeated."""

    finding_id: str
    rule: Rule
    hit: Hit


class Verdict(NamedTuple):
    """What all rules say about one chain."""

    findings: list[Finding]
    not_evaluable: list[str]
    missing: list[dict[str, str]]
    completeness: str
    ranges: list[ProducerRange]


def unjudged(chain: Chain) -> Verdict:
    """Fragments are stored and announced; `reassess` judges them with the rest of their chain."""
    ranges = [r for group in chain.ranges.values() for r in group]
    return Verdict([], [], [], "unprovable", ranges)


def judge_early(chain: Chain, config: RulesConfig) -> Verdict:
    """What is certain of a session that is still open; nobody can say yet what is missing of it."""
    return unjudged(chain)._replace(findings=judge(chain, config, EARLY).findings)


class OwnVerdict(NamedTuple):
    """What the user's own rules say of a chain."""

    found: list[tuple[Rule, list[Hit]]]
    not_evaluable: list[str]
    #: Names of all that gave an answer.
    answered: frozenset[str] = frozenset()


#: Asks the user's own rules of a chain.
Own = Callable[[Chain], OwnVerdict]


def asked(chain: Chain, config: RulesConfig, rules: RuleSet) -> Plan:
    """Which rules to ask of a chain."""
    available = chain.promised | config.expected_sources
    return rules.plan(chain.kinds(), available, config.off)


def judge(
    chain: Chain, config: RulesConfig, rules: RuleSet = ALL, own: Own | None = None
) -> Verdict:
    """Ask every rule; say what is missing and whether the record is complete."""
    plan = asked(chain, config, rules)
    findings, not_evaluable = [], list(plan.not_evaluable)
    limits = config.limits
    for rule, check, limited, when in plan.ask:
        if when is not None and not when(chain, limits):
            not_evaluable.append(rule.name)
            continue
        hits = check(chain, limits) if limited else check(chain)
        first = next(hits, None)
        if first is not None:
            findings += _findings(chain, rule, _by_subject(first, hits))
    if own is not None:
        theirs = own(chain)
        not_evaluable += theirs.not_evaluable
        for rule, found in theirs.found:
            findings += _findings(chain, rule, _by_subject(found[0], found[1:]))
    # The worst first: a chain record that can't list all of them lists these.
    findings.sort(key=lambda f: (-SEVERITIES.index(f.rule.severity), f.finding_id))
    missing = list(_missing(chain))
    ranges = [r for group in chain.ranges.values() for r in group]
    return Verdict(findings, not_evaluable, missing, _completeness(chain, missing, ranges), ranges)


def _findings(chain: Chain, rule: Rule, hits: Iterable[Hit]) -> list[Finding]:
    return [
        Finding(ids.derived_id(chain.tenant, chain.trace_id, rule.name, hit.subject), rule, hit)
        for hit in hits
    ]


def _by_subject(first: Hit, others: Iterable[Hit]) -> Iterable[Hit]:
    """One finding per subject: a later hit on it says the same of other events."""
    found = {first.subject: first}
    for hit in others:
        if len(found) == FINDINGS_PER_RULE_MAX:
            break
        found.setdefault(hit.subject, hit)
    return found.values()


def _missing(chain: Chain) -> Iterable[dict[str, str]]:
    expected, counts = chain.expected or {}, chain.counts
    for producer, ranges in chain.flawed.items():
        for part in ranges:
            if part.missing or part.conflicting:
                yield from _sequence_lacks(part)
        promised, count = expected.get(producer, 0), counts.get(producer, 0)
        if count < promised:
            yield _lack("count", producer, f"{count} of {promised} announced events arrived")
    for event_id in chain.conflicts:
        yield _lack("conflict", event_id, "two different events have this id")


def _sequence_lacks(part: ProducerRange) -> Iterable[dict[str, str]]:
    producer = part.producer_id
    for first, last in part.gaps:
        yield _lack("sequence", producer, f"sequence {first} to {last} never arrived")
    unlisted = part.missing - sum(last - first + 1 for first, last in part.gaps)
    if unlisted:
        yield _lack("sequence", producer, f"{unlisted} more sequence numbers never arrived")
    for number in part.conflicts:
        yield _lack("conflict", producer, f"two different events have the sequence {number}")
    unlisted = part.conflicting - len(part.conflicts)
    if unlisted:
        yield _lack("conflict", producer, f"so have {unlisted} more sequence numbers")


def _lack(what: str, subject: str, detail: str) -> dict[str, str]:
    return {"what": what, "subject": text(subject), "detail": detail}


def _completeness(chain: Chain, missing: list[dict[str, str]], ranges: list[ProducerRange]) -> str:
    if missing:
        return "incomplete"
    expected = chain.expected
    if expected is None or not chain.of("session_started"):
        return "unprovable"
    sequenced = None not in [record["trace_seq"] for record in chain.records]
    announced = expected.keys() >= {part.producer_id for part in ranges}
    return "complete" if sequenced and announced else "unprovable"


class Circumstances(NamedTuple):
    """What the worker knows of a closing beside the chain itself."""

    state: str
    close_reason: str
    part: int
    judged_at_ms: int
    dead_lettered: int
    writer: str = "join"


def chain_record(
    chain: Chain, verdict: Verdict, at: Circumstances, config: RulesConfig
) -> dict[str, Any]:
    """The chain record (schema `chain`), which always fits into a Kafka record."""
    root = next(iter(chain.of("session_started")), None)
    end = next((r for r in reversed(chain.of("session_ended")) if r["root"]), None)
    # Translated records without a time have 0, and stand in front of all others.
    first = root or next((r for r in chain.records if r["occurred_at"]), None)
    responses = chain.of("model_responded")
    leaves = [record["place"][3] for group in chain.by_producer.values() for record in group]
    record = {
        "tenant": chain.tenant,
        "trace_id": chain.trace_id,
        "state": at.state,
        "close_reason": at.close_reason,
        "writer": at.writer,
        "part": at.part,
        "judged_at": at.judged_at_ms,
        "first_recorded_at": chain.times[0],
        "last_recorded_at": chain.times[1],
        "started_at": first["occurred_at"] or None if first else None,
        "ended_at": end["occurred_at"] or None if end else None,
        "events": len(chain.records),
        "duplicates": chain.duplicates,
        "dead_lettered": at.dead_lettered,
        "counts": chain.types,
        "producers": _producers(verdict.ranges, chain.expected or {}),
        **_who_and_what(chain),
        "models": sorted({_model(r) for r in responses if r["model"] or r["model_version"]}),
        "pairs": _pairs(chain.of("credential_used")),
        "approvals": [_approval(r) for r in chain.of("approval_decided")],
        "input_tokens": _sum(responses, "input_tokens"),
        "output_tokens": _sum(responses, "output_tokens"),
        "cost_usd": sum(r["cost_usd"] or 0.0 for r in responses),
        "tool_calls": sum(1 for call in chain.executions if chain.ran(call)),
        "environment": text(root["environment"]) if root else None,
        "purpose": root["purpose"] if root else None,
        "status": end["status"] if end else None,
        "outcome": text_or_none(end["outcome"]) if end else None,
        "completeness": verdict.completeness,
        "missing": verdict.missing,
        "findings": [_reference(f) for f in verdict.findings],
        "not_evaluable": verdict.not_evaluable,
        "highest_severity": max(
            (f.rule.severity for f in verdict.findings), key=SEVERITIES.index, default="none"
        ),
        "findings_hash": _findings_hash(verdict.findings),
        "rules_version": RULES_VERSION,
        "rules_config_hash": config.digest,
        "root": hashing.merkle_root(leaves),
        "evidence": _evidence(chain),
        "evidence_ranges": _evidence_ranges(chain),
    }
    return bounded(record)


_NO_FINDINGS: Final = hashlib.sha256(b"").digest()


def _findings_hash(findings: list[Finding]) -> bytes:
    if not findings:
        return _NO_FINDINGS
    return hashlib.sha256("\n".join(sorted(f.finding_id for f in findings)).encode()).digest()


def _who_and_what(chain: Chain) -> dict[str, Any]:
    """The parts of the chain record that gather something from every event: one pass."""
    identities, sponsors, agents, classes = set(), set(), set(), set()
    pairs, hows, told = set(), set(), set()
    handles: dict[tuple[str, str], str] = {}
    workflow = parent = None
    for record in chain.records:
        # Events share such an object only together with all that is read below: see `REPEATING`.
        correlation = record["correlation"]
        if id(correlation) not in told:
            told.add(id(correlation))
            hows.add(correlation["how"])
            for handle in correlation["handles"]:
                handles.setdefault((handle["kind"], handle["hash"]), record["event_id"])
        if "handles" in record:
            for handle in record["handles"]:
                handles.setdefault((handle["kind"], handle["hash"]), record["event_id"])
        actor = record["actor"]
        if id(actor) in told:
            continue
        told.add(id(actor))
        subject = text(actor["subject"])
        identities.add(subject)
        sponsor = record["sponsor"]
        if sponsor is not None:
            sponsors.add(text(sponsor["subject"]))
            if actor["kind"] != "human":
                pairs.add((subject, text(sponsor["subject"])))
        agents.add(record["agent_id"])
        classes.add(record["data_class"])
        workflow = workflow or record["workflow_id"]
        parent = parent or record["parent_trace_id"]
    used = {record["credential_id"] for name in _CREDENTIALS for record in chain.of(name)}
    requests, executions = chain.of("tool_requested"), chain.of("tool_executed")
    classes.update(values(requests, "record_class"), values(executions, "result_data_class"))
    return {
        "identities": sorted(identities),
        "sponsors": sorted(sponsors),
        "agents": sorted(text(agent) for agent in agents if agent),
        "tools": sorted(map(text, {*values(requests, "tool"), *values(executions, "tool")})),
        "credentials": sorted(map(text, used)),
        "workload_sponsors": [{"workload": w, "sponsor": s} for w, s in sorted(pairs)],
        "data_class": text_or_none(_highest(classes)),
        "workflow_id": text_or_none(workflow),
        "parent_trace_id": text_or_none(parent),
        "correlation": max(hows, key=_CORRELATIONS.index, default="exact"),
        "handles": [
            {"kind": text(kind), "hash": text(value), "event_id": event_id}
            for (kind, value), event_id in sorted(handles.items())
        ],
    }


_CREDENTIALS: Final = (
    "credential_issued",
    "credential_used",
    "credential_renewed",
    "credential_rotated",
    "credential_revoked",
)


def _sum(records: list[Record], key: str) -> int:
    """Bounded by what a long holds: a record that can't be written would stop the lane for good."""
    return max(-(1 << 63), min((1 << 63) - 1, sum(r[key] or 0 for r in records)))


def _producers(ranges: list[ProducerRange], expected: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "producer_id": text(producer),
            "epoch": epoch,
            "events": events,
            "first_seq": first,
            "last_seq": last,
            "gaps": [number for gap in gaps for number in gap] if gaps else [],
            "expected": expected.get(producer),
        }
        for producer, epoch, events, first, last, gaps, *_ in ranges
    ]


def _model(response: Record) -> str:
    version = response["model_version"]
    return text(f"{response['model'] or '?'}@{version}" if version else str(response["model"]))


def _pairs(uses: list[Record]) -> list[dict[str, Any]]:
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for use in uses:
        key = (use["credential_id"], use["agent_id"], use["task_id"], use["scope_exercised"])
        pair = found.setdefault(
            key,
            {
                "credential_id": text(key[0]),
                "agent_id": text_or_none(key[1]),
                "task_id": text_or_none(key[2]),
                "scope": text_or_none(key[3]),
                "first_at": use["occurred_at"],
                "last_at": use["occurred_at"],
            },
        )
        # A use without a time, 0, came first in the order, and says nothing about when.
        pair["first_at"] = pair["first_at"] or use["occurred_at"]
        pair["last_at"] = use["occurred_at"]
    return list(found.values())


def _approval(record: Record) -> dict[str, Any]:
    return {
        "approval_id": text(record["approval_id"]),
        "by": text(record["by"]["subject"]),
        "approval_kind": record["approval_kind"],
        "effect": record["effect"],
        "requested_at": record["requested_at"],
        "decided_at": record["occurred_at"],
    }


def _highest(named: set[str | None]) -> str | None:
    """The highest of some data classes; a class of the user's own stands below the known."""
    known = [c for c in DATA_CLASSES if c in named]
    return known[-1] if known else min((c for c in named if c), default=None)


def _reference(finding: Finding) -> dict[str, Any]:
    return {
        "finding_id": finding.finding_id,
        "rule": finding.rule.name,
        "severity": finding.rule.severity,
        "subject": text(finding.hit.subject),
    }


def _evidence(chain: Chain) -> Items:
    """Every event's place, in order of topic and offset, as the bytes that the record has."""
    count = len(chain.records)
    if not 0 < count <= EVIDENCE_MAX:
        return Items()
    return Items(write_varint(count) + chain.evidence)


def _place(record: Record) -> dict[str, Any]:
    topic, partition, offset, leaf = record["place"]
    return {
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "event_id": record["event_id"],
        "leaf": leaf,
    }


def _evidence_ranges(chain: Chain) -> Items:
    ranges = sorted(chain.ranges_of_evidence)
    return Items(write_varint(len(ranges)) + b"".join(ranges) if ranges else b"")


def finding_record(
    finding: Finding, chain: Chain, at: Circumstances, config: RulesConfig
) -> dict[str, Any]:
    """The finding record (schema `finding`) of one finding of a chain."""
    first = finding.hit.events[0] if finding.hit.events else next(iter(chain.records), None)
    sponsor = first["sponsor"] if first else None
    return {
        "finding_id": finding.finding_id,
        "trace_id": chain.trace_id,
        "tenant": chain.tenant,
        "rule": finding.rule.name,
        "state": "open",
        "severity": finding.rule.severity,
        "subject": text(finding.hit.subject),
        "summary": text(finding.hit.summary),
        "expected": finding.rule.expected,
        "next_step": finding.rule.next_step,
        "controls": list(finding.rule.controls),
        "evidence": [_place(r) for r in finding.hit.events[:FINDING_EVIDENCE_MAX]],
        "chain_state": at.state,
        "agent_id": text_or_none(first["agent_id"]) if first else None,
        "identity": text(first["actor"]["subject"]) if first else None,
        "sponsor": text(sponsor["subject"]) if sponsor else None,
        "detected_at": at.judged_at_ms,
        "rules_version": RULES_VERSION,
        "rules_config_hash": config.digest,
    }
