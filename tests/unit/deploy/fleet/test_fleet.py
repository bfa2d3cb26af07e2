"""The fleet keeps its promises: reproducible, whole, and labelled with what it truly holds."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from trailweave.deploy.commands.demo import demo
from trailweave.deploy.fleet.anomalies import ANOMALIES
from trailweave.deploy.fleet.arrival import Sent
from trailweave.deploy.fleet.corrupt import CORRUPTIONS
from trailweave.deploy.fleet.fleet import Fleet
from trailweave.deploy.fleet.labels import Label
from trailweave.deploy.fleet.stories import STORIES
from trailweave.schemas.codec import EVENT_BYTES_MAX, Decoder, event_checker
from trailweave.schemas.errors import Rejected
from trailweave.schemas.events import Event, event_topics, event_types
from trailweave.schemas.validity import validity
from trailweave.stream_processors.closing import close
from trailweave.stream_processors.rules import RULES
from trailweave.stream_processors.session import Session
from trailweave.stream_processors.verdict import RulesConfig

from tests.unit.stream_processors.builders import TOPICS, lane, source

BASE_US = 1_790_000_000_000_000
#: So many that every anomaly is there.
SESSIONS, SHARE = 120, 0.4
DECODER = Decoder()
CHECKER = event_checker()
ENDED = event_types()["session_ended"].fingerprint

Found = set[tuple[str, str]]


class Run(NamedTuple):
    """A fleet that has been sent, and its events by trace."""

    fleet: Fleet
    sent: list[Sent]
    traces: dict[str, list[Event]]


@pytest.fixture(scope="module")
def run() -> Run:
    fleet = Fleet(SESSIONS, 7, BASE_US, SHARE)
    sent = list(fleet)
    traces: dict[str, list[Event]] = defaultdict(list)
    for record in sent:
        if record.kind == "event":
            traces[record.key.decode()].append(Event(*DECODER.decode(record.value)))
    for events in traces.values():
        events.sort(key=lambda event: event.record["occurred_at"])
    return Run(fleet, sent, dict(traces))


# --- an oracle: rules again, as plainly as can be ---

#: Those that it knows.
ORACLE_RULES = {
    "exec_without_decision",
    "denied_but_executed",
    "fail_open",
    "approval_after_act",
    "self_approval",
    "override_no_reason",
    "hallucinated_call",
    "ghost_action",
    "outcome_missing",
    "cred_after_expiry",
    "cred_after_revoke",
    "model_version_missing",
    "identity_missing",
    "seq_gap",
    "dup_conflict",
}


class Oracle:
    """One trace, judged naively."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.found: Found = set()
        self.proposed = {
            proposal["call_id"]
            for record in self.of("model_responded")
            for proposal in record["proposed"]
        }
        self.succeeded = {r["call_id"] for r in self.of("tool_executed") if r["status"] == "ok"}
        self.happened = {r["call_id"] for r in self.of("tool_executed", "downstream_observed")}
        self.denied = {r["call_id"] for r in self.of("policy_decided") if r["effect"] == "deny"}
        self.denied |= {r["call_id"] for r in self.of("approval_decided") if r["effect"] == "deny"}

    def of(self, *names: str) -> list[dict[str, Any]]:
        return [event.record for event in self.events if event.name in names]

    def judge(self) -> Found:
        self.calls()
        self.approvals()
        self.failures()
        self.outcomes()
        self.credentials()
        self.revocations()
        self.models_and_identities()
        self.gaps()
        return self.found

    def calls(self) -> None:
        decided = {r["call_id"] for r in self.of("policy_decided")}
        self.found |= {("exec_without_decision", call) for call in self.succeeded - decided}
        for call in self.proposed - self.happened - self.denied:
            self.found.add(("hallucinated_call", call))
        initiators = {r["call_id"]: r["initiator"] for r in self.of("tool_requested")}
        for call in self.happened - self.proposed:
            if initiators.get(call, "model") == "model":
                self.found.add(("ghost_action", call))
        for record in self.of("tool_executed"):
            if record["status"] == "ok" and self.effective(record) == "deny":
                self.found.add(("denied_but_executed", record["call_id"]))

    def effective(self, executed: dict[str, Any]) -> str | None:
        effect = None
        for event in self.events:
            record = event.record
            if event.name in ("policy_decided", "approval_decided"):
                before = record["occurred_at"] <= executed["started_at"]
                if before and record["call_id"] == executed["call_id"]:
                    effect = record["effect"]
        return effect

    def approvals(self) -> None:
        starts = {r["call_id"]: r["started_at"] for r in self.of("tool_executed")}
        for record in self.of("approval_decided"):
            if record["effect"] != "allow":
                continue
            call, approval = record["call_id"], record["approval_id"]
            if call in self.succeeded and record["occurred_at"] > starts[call]:
                self.found.add(("approval_after_act", call))
            if record["by"]["subject"] == record["requested_by"]["subject"]:
                self.found.add(("self_approval", approval))
            if record["approval_kind"] == "override" and not record["reason"]:
                self.found.add(("override_no_reason", approval))

    def failures(self) -> None:
        failed = {r["call_id"] for r in self.of("policy_decided") if r["timed_out"] or r["error"]}
        self.found |= {("fail_open", call) for call in failed & self.succeeded}

    def outcomes(self) -> None:
        allowed = {r["call_id"] for r in self.of("policy_decided") if r["effect"] == "allow"}
        for record in self.of("tool_requested"):
            call = record["call_id"]
            if record["side_effect"] and call in allowed and call not in self.happened:
                self.found.add(("outcome_missing", call))

    def credentials(self) -> None:
        expiry: dict[str, int] = {}
        for event in self.events:
            record = event.record
            if event.name in ("credential_issued", "credential_renewed"):
                expiry[record["credential_id"]] = record["expires_at"]
            elif event.name == "credential_used" and record["occurred_at"] > expiry.get(
                record["credential_id"], record["expires_at"]
            ):
                self.found.add(("cred_after_expiry", record["credential_id"]))

    def revocations(self) -> None:
        revoked: dict[str, int] = {}
        for event in self.events:
            record = event.record
            if event.name == "credential_revoked":
                revoked.setdefault(record["credential_id"], record["occurred_at"])
            elif event.name == "credential_used" and record["credential_id"] in revoked:
                self.found.add(("cred_after_revoke", record["credential_id"]))

    def models_and_identities(self) -> None:
        for record in self.of("model_responded"):
            if record["model"] is None and record["model_version"] is None:
                self.found.add(("model_version_missing", record["event_id"]))
        actors = [event.record["actor"] for event in self.events]
        proved = any(a["assurance"] == "verified" and a["kind"] != "human" for a in actors)
        sponsored = any(event.record["sponsor"] for event in self.events)
        if not (proved and sponsored):
            self.found.add(("identity_missing", "session"))

    def gaps(self) -> None:
        self.found |= {("dup_conflict", event_id) for event_id in self.conflicts()}
        for producer in self.short():
            self.found.add(("seq_gap", producer))

    def short(self) -> set[str]:
        seen: dict[str, set[int]] = defaultdict(set)
        for event in self.events:
            seen[event.record["producer_id"]].add(event.record["trace_seq"])
        holes = {p for p, seqs in seen.items() if len(seqs) != max(seqs) + 1}
        for end in self.of("session_ended"):
            holes |= {p for p, count in end["expected"].items() if len(seen[p]) < count}
        return holes

    def completeness(self) -> str:
        exhaustive = any(r["root"] and r["expected_exhaustive"] for r in self.of("session_ended"))
        if not exhaustive:
            return "unprovable"
        return "incomplete" if self.short() or self.conflicts() else "complete"

    def conflicts(self) -> list[str]:
        times = Counter(event.record["event_id"] for event in self.events)
        return [event_id for event_id, count in times.items() if count > 1]


# --- what the labels say ---


def sessions(sent: list[Sent]) -> list[Session]:
    """As a join would hold them once all has come."""
    held = lane()
    for record in sent:
        topic = TOPICS.index(record.topic)
        held.fold(topic, held.positions[topic], BASE_US // 1000, record.key, record.value)
    return list(held.sessions.values())


def session_labels(run: Run) -> list[Label]:
    return [label for label in run.fleet.labels if label.story != "stray"]


def anomaly_of(run: Run, trace_id: str) -> str | None:
    return next(label.anomaly for label in run.fleet.labels if label.trace_id == trace_id)


def test_labels_hold_exactly_the_findings_that_an_independent_oracle_has(run: Run) -> None:
    judged = {trace_id: Oracle(events).judge() for trace_id, events in run.traces.items()}

    assert judged == {
        label.trace_id: {tuple(f) for f in label.findings if f.rule in ORACLE_RULES}
        for label in session_labels(run)
    }


def test_the_join_finds_exactly_what_the_labels_hold(run: Run) -> None:
    judged, turn = {}, lane().turn()
    for session in sessions(run.sent):
        closing = close(session, "idle", turn, source(), RulesConfig())
        if closing is None:
            continue  # nothing of it is an event
        found = {(finding["rule"], finding["subject"]) for finding in closing.findings}
        judged[closing.trace_id] = (found, closing.chain["completeness"])

    assert {label.trace_id: judged[label.trace_id] for label in session_labels(run)} == {
        label.trace_id: (set(map(tuple, label.findings)), label.completeness)
        for label in session_labels(run)
    }


def test_labels_state_the_completeness_that_an_independent_oracle_sees(run: Run) -> None:
    seen = {trace_id: Oracle(events).completeness() for trace_id, events in run.traces.items()}

    assert seen == {label.trace_id: label.completeness for label in session_labels(run)}


def test_every_anomaly_is_there_and_causes_its_own_finding_alone(run: Run) -> None:
    planted = [label for label in session_labels(run) if label.anomaly]
    rules = {label.anomaly: {f.rule for f in label.findings} for label in planted}

    assert rules == {name: set() if name == "no_end" else {name} for name in ANOMALIES}
    assert run.fleet.totals.anomalies == Counter(label.anomaly for label in planted)
    assert len(planted) == SESSIONS * SHARE


def test_clean_sessions_are_complete_and_the_majority(run: Run) -> None:
    clean = [label for label in session_labels(run) if label.anomaly is None]

    assert len(clean) == SESSIONS * (1 - SHARE)
    assert {(label.findings, label.completeness) for label in clean} == {((), "complete")}


def test_every_anomaly_occurs_in_a_demo_of_the_usual_size() -> None:
    usual: dict[str, Any] = {str(option.name): option.default for option in demo.params}
    fleet = Fleet(usual["sessions"], usual["seed"], BASE_US, usual["anomalies"])
    for _ in fleet:
        pass

    assert set(fleet.totals.anomalies) == set(ANOMALIES)
    assert fleet.totals.anomalies.total() == usual["sessions"] * usual["anomalies"]


def test_every_rule_is_planted_that_needs_no_settings_and_no_clock() -> None:
    unplanted = {rule.name for rule in RULES} - set(ANOMALIES)

    assert unplanted == {"unapproved_model", "agent_cred_elsewhere", "clock_skew"}


@pytest.mark.parametrize("sessions", [1, 3, 49])
def test_every_kind_of_corrupt_record_is_in_any_fleet(sessions: int) -> None:
    fleet = Fleet(sessions, 1, BASE_US, 0.29)
    for _ in fleet:
        pass

    assert [code for label in fleet.labels for code in label.dead_letters] == list(CORRUPTIONS)
    assert fleet.totals.anomalies.total() == int(sessions * 29 / 100)


def test_every_story_and_tenant_occurs(run: Run) -> None:
    labels = session_labels(run)

    assert {label.story for label in labels} == {story.__name__ for story in STORIES}
    assert {label.tenant for label in labels} == {"acme", "globex", "initech"}


# --- what is sent ---


def test_the_same_seed_and_base_time_give_the_same_bytes() -> None:
    first, second = Fleet(40, 3, BASE_US, 0.5), Fleet(40, 3, BASE_US, 0.5)

    assert list(first) == list(second)
    assert first.labels == second.labels


def test_another_seed_gives_other_traces() -> None:
    first, second = (Fleet(20, seed, BASE_US) for seed in (3, 4))

    assert not {record.key for record in first} & {record.key for record in second}


def test_a_fleet_can_be_sent_again() -> None:
    fleet = Fleet(20, 3, BASE_US, 0.5)
    once, labels = list(fleet), fleet.labels

    assert list(fleet) == once
    assert fleet.labels == labels


def test_totals_and_labels_add_up_to_what_was_sent(run: Run) -> None:
    kinds, totals = Counter(record.kind for record in run.sent), run.fleet.totals

    assert totals.events_distinct == kinds["event"] + kinds["corrupt"]
    assert totals.duplicates == kinds["duplicate"] == sum(x.duplicates for x in run.fleet.labels)
    assert totals.dead_letters == kinds["corrupt"]
    assert sum(label.events for label in run.fleet.labels) == kinds["event"]
    assert totals.records == len(run.sent)


def test_totals_are_told_as_json_with_every_anomaly_by_its_name(run: Run) -> None:
    told = json.loads(json.dumps(run.fleet.totals.as_dict()))

    assert Counter(told["anomalies"]) == run.fleet.totals.anomalies
    assert told["records"] == len(run.sent)
    assert told.keys() == {
        "sessions", "events_distinct", "duplicates", "dead_letters", "anomalies", "records"
    }  # fmt: skip


def test_only_forged_events_share_an_id_and_no_two_records_are_alike_but_duplicates(
    run: Run,
) -> None:
    ids = [event.record["event_id"] for events in run.traces.values() for event in events]
    values = {record.value for record in run.sent if record.kind == "event"}
    forged = run.fleet.totals.anomalies["dup_conflict"]

    assert forged > 0
    assert len(set(ids)) + forged == len(ids) == len(values)
    assert all(record.value in values for record in run.sent if record.kind == "duplicate")


def test_every_event_is_valid_in_its_topic_and_small(run: Run) -> None:
    good = [record for record in run.sent if record.kind != "corrupt"]
    for record in good:
        validity(record.topic, record.key, record.value, CHECKER)

    assert {record.topic for record in good} == set(event_topics())
    assert max(len(record.value) for record in good) < EVENT_BYTES_MAX / 100


def test_every_corrupt_record_is_refused_for_the_reason_on_its_label(run: Run) -> None:
    codes = []
    for record in run.sent:
        if record.kind == "corrupt":
            with pytest.raises(Rejected) as refused:
                validity(record.topic, record.key, record.value, CHECKER)
            codes.append(refused.value.reason.code)
    labelled = [code for label in run.fleet.labels for code in label.dead_letters]

    assert sorted(codes) == sorted(labelled)
    assert set(codes) == set(CORRUPTIONS)


def test_corrupt_records_lie_in_no_session_of_the_fleet(run: Run) -> None:
    corrupt = {record.key.decode() for record in run.sent if record.kind == "corrupt"}

    assert corrupt.isdisjoint(run.traces)


def test_a_fleet_without_anomalies_has_no_corrupt_records_either() -> None:
    fleet = Fleet(50, 3, BASE_US, 0)

    assert {record.kind for record in fleet} == {"event", "duplicate"}
    assert {label.completeness for label in fleet.labels} == {"complete"}


def test_sequences_are_dense_per_producer_except_where_a_gap_is_planted(run: Run) -> None:
    gaps = {label.trace_id for label in run.fleet.labels if label.anomaly == "seq_gap"}
    for trace_id in run.traces.keys() - gaps:
        counts: Counter[str] = Counter()
        for event in run.traces[trace_id]:
            record = event.record
            assert record["trace_seq"] == counts[record["producer_id"]], record
            counts[record["producer_id"]] += 1


def test_the_root_end_is_the_last_thing_to_happen_and_nothing_lies_after_the_base_time(
    run: Run,
) -> None:
    for trace_id, events in run.traces.items():
        ends = [event for event in events if event.name == "session_ended" and event.record["root"]]
        late = anomaly_of(run, trace_id) == "action_after_end"
        assert not ends or (ends[0] is events[-1]) != late
        assert events[-1].record["occurred_at"] <= BASE_US


def test_parents_of_spans_are_spans_of_the_same_trace(run: Run) -> None:
    for trace_id, events in run.traces.items():
        spans = {event.record["span_id"] for event in events}
        parents = {event.record["parent_span_id"] for event in events} - {None}
        assert (parents <= spans) != (anomaly_of(run, trace_id) == "orphan_span")


# --- how it arrives ---


def test_traces_are_interleaved_and_several_producers_write_one(run: Run) -> None:
    changes = sum(a.key != b.key for a, b in zip(run.sent, run.sent[1:], strict=False))
    producers = [len({e.record["producer_id"] for e in events}) for events in run.traces.values()]

    assert changes > len(run.sent) * 0.7
    assert min(producers) >= 4


def test_some_events_arrive_after_the_root_end(run: Run) -> None:
    ended: set[bytes] = set()
    late = 0
    for record in run.sent:
        late += record.key in ended
        if record.kind == "event" and record.value[2:10] == ENDED:
            ended.add(record.key)

    assert late > 100


def test_a_duplicate_comes_after_its_original_and_before_another_event_of_its_topic(
    run: Run,
) -> None:
    seen: set[bytes] = set()
    last = {(r.key, r.topic): i for i, r in enumerate(run.sent) if r.kind == "event"}
    for i, record in enumerate(run.sent):
        if record.kind == "duplicate":
            assert record.value in seen
            assert i < last[record.key, record.topic]
        seen.add(record.value)


def test_one_producer_keeps_its_order_within_a_topic(run: Run) -> None:
    newest: dict[tuple[bytes, str, str], int] = {}
    for record in run.sent:
        if record.kind == "event":
            _, fields = DECODER.decode(record.value)
            way = (record.key, record.topic, fields["producer_id"])
            assert fields["trace_seq"] > newest.get(way, -1)
            newest[way] = fields["trace_seq"]


@pytest.mark.parametrize("wrong", [lambda: Fleet(-1, 1, 0), lambda: Fleet(1, 1, 0, 1.5)])
def test_a_plan_that_makes_no_sense_is_refused(wrong: Callable[[], Fleet]) -> None:
    with pytest.raises(ValueError, match="couldn't plan"):
        wrong()
