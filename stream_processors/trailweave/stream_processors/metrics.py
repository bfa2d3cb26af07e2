"""The join's figures for Prometheus; every name stands in `docs/reference.md`."""

from collections import Counter as Counts
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from trailweave.stream_processors.transactions import Work

#: Seconds; a transaction is a batch, so below 10 ms and above 10 s nothing is to be told apart.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


@dataclass(slots=True)
class JoinMetrics:
    """Counters since the start of the process; the sum of a stage is `trailweave account`'s."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    events: Counter = field(init=False)
    closed: Counter = field(init=False)
    findings: Counter = field(init=False)
    dead_letters: Counter = field(init=False)
    duplicates: Counter = field(init=False)
    chunks: Counter = field(init=False)
    revisions: Counter = field(init=False)
    recoveries: Counter = field(init=False)
    retries: Counter = field(init=False)
    closers_lost: Counter = field(init=False)
    own_rules_failed: Counter = field(init=False)
    closers: Gauge = field(init=False)
    open_sessions: Gauge = field(init=False)
    held_events: Gauge = field(init=False)
    held_bytes: Gauge = field(init=False)
    clock_lag_s: Gauge = field(init=False)
    transaction_s: Histogram = field(init=False)

    def __post_init__(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"trailweave_join_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"trailweave_join_{name}", text, labels, registry=self.registry)

        self.events = counter("events", "events folded")
        self.closed = counter("sessions_closed", "sessions written", "kind", "reason")
        self.findings = counter("findings", "findings written", "rule")
        self.dead_letters = counter("dead_letters", "records dead-lettered", "code")
        self.duplicates = counter("duplicates", "repeated events left out")
        self.chunks = counter("chunks", "chunks of long-open sessions written")
        self.revisions = counter("open_revisions", "records of sessions that are still open")
        self.recoveries = counter("recoveries", "rebuilds of the lanes' memory")
        self.retries = counter("retries", "waits because Kafka was away")
        self.closers_lost = counter("closers_lost", "child processes for closings that ended")
        self.own_rules_failed = counter(
            "own_rules_failed",
            "users' own rules that raised, and processes of theirs that were lost",
        )
        self.closers = gauge("closers", "child processes that share the closings")
        self.open_sessions = gauge("open_sessions", "sessions open", "lane")
        self.held_events = gauge("held_events", "events in open sessions", "lane")
        self.held_bytes = gauge("held_bytes", "bytes of these in memory", "lane")
        self.clock_lag_s = gauge("clock_lag_seconds", "wall clock less lane clock", "lane")
        self.transaction_s = Histogram(
            "trailweave_join_transaction_seconds",
            "from the first produced record to the commit",
            registry=self.registry,
            buckets=_SECONDS,
        )

    def committed(self, work: "Work", seconds: float) -> None:
        """A transaction is committed; it took so long."""
        closings = [closing for _, closing in work.closings]
        self.transaction_s.observe(seconds)
        # Added up first: a labelled counter costs more than all else here.
        closed = Counts((closing.kind, closing.close_reason) for closing in closings)
        for labels, count in closed.items():
            self.closed.labels(*labels).inc(count)
        self.duplicates.inc(sum(closing.duplicates for closing in closings))
        self.chunks.inc(len(work.chunks))
        self.revisions.inc(len(work.revisions))
        for rule in (rule for closing in closings for rule, _ in closing.findings):
            self.findings.labels(rule).inc()
        refused = [closing.refused for closing in closings]
        refused += [turn.refused for _, turn in work.turns]
        for code in (record.reason.code for records in refused for record in records):
            self.dead_letters.labels(code).inc()
