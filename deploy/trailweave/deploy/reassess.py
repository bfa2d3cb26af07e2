"""Judges stored sessions anew and writes the next revisions: what `trailweave reassess` does. Edge.

Order of effects, some sessions at a time, and what a crash between them does:

1. read their parts, events and open findings from ClickHouse      nothing was said
2. judge them, in memory                                           nothing was said
3. write records and findings in one Kafka transaction             aborted by the next start
4. wait until load has stored them                                 done; the next run sees it

A run that comes again leaves out what is up to date. One that comes between 3 and 4 makes the same
revisions once more: the same verdict, under the same finding ids.
"""

import base64
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from trailweave.deploy.clients import kafka_errors, require_topics
from trailweave.deploy.settings import Settings
from trailweave.deploy.stored import EVIDENCE, named_all
from trailweave.schemas import events
from trailweave.schemas.codec import Encoder
from trailweave.schemas.errors import Retryable
from trailweave.schemas.standing import WriterStandings
from trailweave.sinks.ask import TRACES_MAX, ask
from trailweave.stream_processors.chain import Source, event_decoder
from trailweave.stream_processors.own_rules import own_rules
from trailweave.stream_processors.reassessment import (
    Before,
    NotLoadedError,
    Revision,
    Row,
    revise,
)
from trailweave.stream_processors.recovery import reassess_headers
from trailweave.stream_processors.verdict import Own, RulesConfig

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

#: Sessions looked at in one question, and events read at once: some 100 MB.
PAGE: Final = 1_000
EVENTS_MAX: Final = 50_000
TRANSACTION_TIMEOUT_S: Final = 60.0
#: Load stores what was written within seconds.
LOADED_WITHIN_S: Final = 60.0
POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which sessions to look at."""

    since: datetime
    until: datetime
    tenant: str = ""
    trace: str = ""
    #: Only those with a part that no reassessment covers.
    pending_only: bool = False
    #: Only where the answer of these rules changes; none: any.
    rules: frozenset[str] = frozenset()
    dry_run: bool = False


@dataclass(slots=True)
class Reassessed:
    """What became of each session: the first is the sum of the five after it."""

    looked_at: int = 0
    revised: int = 0
    #: Judged anew, and nothing that was asked for is different.
    unchanged: int = 0
    up_to_date: int = 0
    #: Their events are not stored yet, or their bytes have expired.
    not_stored: int = 0
    #: Their events lie in several partitions: the number of lanes has changed in between.
    spread: int = 0
    findings_opened: int = 0
    findings_retracted: int = 0
    #: Per rule: findings opened less findings retracted.
    rules: dict[str, int] = field(default_factory=dict)
    #: Whether load had stored all that was written when the run ended.
    loaded: bool = True
    dry_run: bool = False

    def document(self) -> dict[str, Any]:
        """The counts for `--json`."""
        return asdict(self) | {"rules": dict(sorted(self.rules.items()))}

    def count(self, revision: Revision) -> None:
        """A session that is revised."""
        self.revised += 1
        self.findings_opened += len(revision.opened)
        self.findings_retracted += len(revision.retracted)
        for rule, _ in revision.opened:
            self.rules[rule] = self.rules.get(rule, 0) + 1
        for rule, _ in revision.retracted:
            self.rules[rule] = self.rules.get(rule, 0) - 1


class Reassessor:
    """One run. `schemas` are asked for the schemas of other versions, as the join asks them."""

    def __init__(
        self,
        settings: Settings,
        client: "Client",
        schemas: WriterStandings,
        config: RulesConfig,
        wanted: Wanted,
        own: Own | None = None,
    ) -> None:
        """`own` asks the rules that the configuration calls the user's own."""
        self.done = Reassessed(dry_run=wanted.dry_run)
        self._settings = settings
        self._client = client
        self._schemas = schemas
        self._config, self._own = config, own
        self._wanted = wanted
        self._topics = events.event_topics()
        self._decoder = event_decoder(schemas)
        self._encoder = Encoder()
        self._sources: dict[int, Source] = {}
        self._writer: _Writer | None = None

    def run(self, told: Callable[[int], None]) -> Reassessed:
        """Look at every session that is wanted; raises `TrailError`."""
        for page in self._pages():
            wanted = []
            for row in page:
                self.done.looked_at += 1
                before = self._before(row)
                if row["lanes"] > 1:
                    self.done.spread += 1
                elif before.pending or (
                    before.outdated(self._config) and not self._wanted.pending_only
                ):
                    wanted.append(before)
                else:
                    self.done.up_to_date += 1
            for some in _portions(wanted):
                self._revise(some)
            told(self.done.looked_at)
        if self._writer is not None:
            self.done.loaded = self._writer.wait_until_loaded(self._client)
        return self.done

    def _pages(self) -> Iterator[list[dict[str, Any]]]:
        wanted, after = self._wanted, ("", "")
        while True:
            page = ask(
                self._client, "reassess_sessions", after_tenant=after[0], after_trace=after[1],
                tenant=wanted.tenant, trace=wanted.trace, since=wanted.since, until=wanted.until,
                limit=PAGE,
            )  # fmt: skip
            if not page:
                return
            yield page
            after = page[-1]["tenant"], page[-1]["trace_id"]

    def _before(self, row: Mapping[str, Any]) -> Before:
        return Before(
            tenant=row["tenant"],
            trace_id=row["trace_id"],
            lane=row["lane"],
            newest_part=row["newest_part"],
            covered_part=row["covered_part"],
            fragmented=bool(row["fragmented"]),
            records=row["records"],
            dead_lettered=row["dead_lettered"],
            rules_version=row["rules_version"],
            rules_config_hash=row["rules_config_hash"],
        )

    def _revise(self, some: list[Before]) -> None:
        tenants = sorted({before.tenant for before in some})
        these = {"tenants": tenants, "traces": [before.trace_id for before in some]}
        rows: dict[tuple[str, str], list[Row]] = {}
        for row in ask(self._client, "reassess_events", **these):
            value = base64.b64decode(row["record"])
            at = (self._topics.index(row["topic"]), row["offset"], row["recorded_ms"])
            rows.setdefault((row["tenant"], row["trace_id"]), []).append(Row(*at, value))
        standing: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in ask(self._client, "reassess_findings", **these):
            standing.setdefault((row["tenant"], row["trace_id"]), []).append(_finding(row))
        revisions = []
        for before in some:
            key = (before.tenant, before.trace_id)
            revision = self._judged(before, rows.get(key, []), standing.get(key, []))
            if revision is not None:
                revisions.append((before, revision))
        if revisions and not self._wanted.dry_run:
            if self._writer is None:
                self._writer = _Writer(self._settings)
            self._writer.write(revisions)
        for _, revision in revisions:
            self.done.count(revision)

    def _judged(
        self, before: Before, rows: list[Row], standing: list[dict[str, Any]]
    ) -> Revision | None:
        source = self._sources.get(before.lane)
        if source is None:
            source = Source(self._topics, before.lane, self._decoder, self._admits)
            self._sources[before.lane] = source
        now_ms = int(time.time() * 1000)
        try:
            revision = revise(
                before, rows, standing, source, self._config, self._encoder, now_ms, own=self._own
            )
        except NotLoadedError:
            self.done.not_stored += 1
            return None
        if not before.pending and self._wanted.rules and not self._wanted.rules & revision.changed:
            self.done.unchanged += 1
            return None
        return revision

    def _admits(self, key: bytes, recorded_ms: int) -> bool:
        standing = self._schemas.standing(key, recorded_ms, int(time.time() * 1000))
        if standing == "wait":
            raise NotLoadedError("a schema may still be published")
        return standing == "known"


def _portions(wanted: Iterable[Before]) -> Iterator[list[Before]]:
    """Sessions whose events fit into memory together, and whose names into one question."""
    some: list[Before] = []
    for before in wanted:
        large = sum(one.records for one in some) + before.records > EVENTS_MAX
        if some and (large or len(some) == TRACES_MAX):
            yield some
            some = []
        some.append(before)
    if some:
        yield some


def _finding(row: Mapping[str, Any]) -> dict[str, Any]:
    """A stored finding as a record of the schema; the fields of the new one are set later."""
    evidence = named_all(EVIDENCE, row["evidence"])
    for place in evidence:
        place["leaf"] = bytes.fromhex(place["leaf"])
    absent = {name: row[name] or None for name in ("agent_id", "identity", "sponsor")}
    return {**row, **absent, "evidence": evidence, "controls": list(row["controls"])}


class _Writer:
    """A producer whose transactions no reader sees a part of."""

    def __init__(self, settings: Settings) -> None:
        from confluent_kafka import Producer

        self._settings = settings
        self._ends: dict[int, int] = {}
        require_topics(settings, "write revisions")
        with kafka_errors(settings, "write revisions"):
            self._producer: Producer = Producer(
                {
                    "compression.type": "lz4",
                    "log_level": "0",
                    **settings.kafka_config(),
                    "message.max.bytes": "2500000",
                    "transactional.id": f"{settings.join.group}-reassess",
                    "transaction.timeout.ms": str(int(TRANSACTION_TIMEOUT_S * 1000)),
                }
            )
            self._producer.init_transactions(TRANSACTION_TIMEOUT_S)

    def write(self, revisions: list[tuple[Before, Revision]]) -> None:
        """All of them or none; raises `TrailError`, and then it is not known which."""
        with kafka_errors(self._settings, "write revisions"):
            self._producer.begin_transaction()
            for before, revision in revisions:
                key = before.trace_id.encode()
                self._produce(
                    events.SESSIONS_TOPIC,
                    partition=before.lane,
                    key=key,
                    value=revision.sealed.chain,
                    headers=reassess_headers(before.newest_part, revision.sealed.session),
                    on_delivery=self._on_delivery,
                )
                for _, finding in (*revision.opened, *revision.retracted):
                    self._produce(
                        events.FINDINGS_TOPIC, partition=before.lane, key=key, value=finding
                    )
            self._producer.commit_transaction(TRANSACTION_TIMEOUT_S)

    def _produce(self, topic: str, **record: Any) -> None:
        while True:
            try:
                self._producer.produce(topic, **record)
            except BufferError:
                self._producer.poll(POLL_S)
            else:
                return

    def _on_delivery(self, error: Any, message: Any) -> None:
        if error is None:
            lane = message.partition()
            self._ends[lane] = max(self._ends.get(lane, -1), message.offset())

    def wait_until_loaded(self, client: "Client") -> bool:
        """Whether load has stored the last revision of every lane in time."""
        deadline = time.monotonic() + LOADED_WITHIN_S
        while True:
            stored = {row["lane"]: row["offset"] for row in ask(client, "reassess_stored")}
            if all(stored.get(lane, -1) >= end for lane, end in self._ends.items()):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)


def reassess(
    settings: Settings,
    client: "Client",
    schemas: WriterStandings,
    config: RulesConfig,
    wanted: Wanted,
    told: Callable[[int], None],
) -> Reassessed:
    """One run over the sessions that are wanted; raises `TrailError`."""
    try:
        with own_rules(config) as own:
            return Reassessor(settings, client, schemas, config, wanted, own).run(told)
    except Retryable as error:
        raise type(error)(f"{error}; run it again: what is done is left out then") from error
