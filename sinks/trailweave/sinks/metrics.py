"""The load worker's figures for Prometheus; every name stands in `docs/reference.md`."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

#: Seconds; an insert is a batch, and bounded by `insert_timeout_s`.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(slots=True)
class LoadMetrics:
    """Counters since the start of the process; the sum of the stage is `trailweave account`'s."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    rows: Counter = field(init=False)
    ranges: Counter = field(init=False)
    redone: Counter = field(init=False)
    rejected: Counter = field(init=False)
    retries: Counter = field(init=False)
    buffered: Gauge = field(init=False)
    lag: Gauge = field(init=False)
    insert_s: Histogram = field(init=False)

    def __post_init__(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"trailweave_load_{name}", text, labels, registry=self.registry)

        self.rows = counter("rows", "rows inserted", "table")
        self.ranges = counter("ranges", "ranges of offsets finished")
        self.redone = counter("redone", "inserts that first looked what was there")
        self.rejected = counter("rejected", "records that got no row", "code")
        self.retries = counter("retries", "waits because Kafka or ClickHouse was away")
        self.buffered = Gauge(
            "trailweave_load_buffered_records", "read, in no range yet", registry=self.registry
        )
        self.lag = Gauge(
            "trailweave_load_lag",
            "offsets up to the end of the partition, as last fetched",
            ("topic", "partition"),
            registry=self.registry,
        )
        self.insert_s = Histogram(
            "trailweave_load_insert_seconds",
            "from sending an insert to its acknowledgement",
            ("table",),
            registry=self.registry,
            buckets=_SECONDS,
        )
