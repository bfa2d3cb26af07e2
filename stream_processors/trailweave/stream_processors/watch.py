"""The detectors over many sessions, as Faust agents. Edge; the only module that imports Faust.

Order of effects, and what a crash between them does (everything is at least once):

1. `read` takes records of the join from the sessions topic, and `hear` heartbeats; they write the
   facts that these say, by key, to a topic of its own; their offsets count once Kafka has the facts
                                                            crash: the records are read again
2. `judge` folds facts by key; a finding that has not been said so goes to the findings topic, and
   is waited for                                            crash: the facts are judged again
3. the changelog has the facts and what was said; then the table in memory has them, too
                                                            crash: the finding is said again
4. the offsets of the facts count                           crash: facts are folded again

A finding is never lost, for it is acknowledged before anything says that it was said. What is said
again has the same finding id, and a fact that is folded again changes nothing: whoever asks for the
latest state of a finding (`findings_latest`) sees it once.

What is true once something has not come for a while is found by looks: facts without a name, which
`look` sends to keys whose time has come. They pass through the facts topic as all others, so it is
one agent that changes a key, whoever sends them.

What one of these agents raises ends the process. Faust would start the agent again, on a stream
that goes on behind the records that were not done.

Faust reads uncommitted records unless it writes transactions itself; here it must not, so the
consumer is told to. An aborted chain of the join never gets here.
"""

import asyncio
import heapq
import json
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import faust
from aiokafka import AIOKafkaConsumer
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import CrashingSupervisor
from trailweave.schemas import events
from trailweave.schemas.codec import Decoder, Encoder
from trailweave.schemas.errors import Fatal, Rejected, Retryable
from trailweave.stream_processors import lane_reader, own_agents
from trailweave.stream_processors.detectors import DETECTORS, of_chains, of_producers
from trailweave.stream_processors.detectors.detector import LOOK, Detector, Fact, finding
from trailweave.stream_processors.rules import Limits
from trailweave.stream_processors.verdict import RulesConfig

#: Facts by key, on their way to whoever holds the key's table partition.
FACTS_TOPIC: Final = "trailweave.watch-facts"
FACTS_KEPT_S: Final = 86_400
TABLE: Final = "facts"
TOPICS_TIMEOUT_S: Final = 30.0
TOPICS_POLL_S: Final = 0.1
BATCH: Final = 500
LINGER_S: Final = 0.1
SESSION_TIMEOUT_S: Final = 10.0
#: How long a rebalance or the end waits for what agents are at; the rest is read again. Below
#: `SESSION_TIMEOUT_S`, and more than a batch takes on a busy machine.
WAIT_S: Final = 5.0
#: How often keys are looked for whose time has come.
LOOK_INTERVAL_S: Final = 5.0
#: How often the whole table is gone through for keys that came with a rebalance.
SCAN_INTERVAL_S: Final = 60.0
#: Events older than this say that the topics have not been read to their ends: what seems not to
#: have come may well be there. Nothing is looked for while such events come.
BEHIND_S: Final = 30.0
#: The same for so long after the start, in which the first events come.
START_S: Final = 10.0
#: What detectors read.
_READ: Final = {
    "chain": (*of_chains.READ, "producers", "writer"),
    "producer_heartbeat": (
        "tenant",
        "producer_id",
        "producer_epoch",
        "interval_s",
        "final",
        "host",
        "recorded",
        "spooled",
        "failed",
    ),
}
_RAW: Final = own_agents.RAW


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """What `watch` needs; `kafka` are librdkafka's names, of which it takes address and login."""

    kafka: Mapping[str, str]
    group: str = "trailweave-watch"
    rules: RulesConfig = field(default_factory=RulesConfig)
    #: A module of the user's own agents: see `own_agents`.
    module: str = ""
    #: Of the facts topic and the table; not to be changed once they are there.
    partitions: int = 4
    replication_factor: int = 1


class _Consumer(driver.Consumer):
    """Reads what is committed, and leaves nothing out when it goes back."""

    async def perform_seek(self) -> None:
        """Go back to the offsets that count; whoever asks for it resumes the flow after it.

        Faust lets it flow meanwhile. What was fetched before is then delivered after it, and Faust
        takes what lies in between for a gap, which counts as done, and leaves it out as known when
        it comes.
        """
        self.stop_flow()
        await super().perform_seek()

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Go back in all partitions: without a committed offset, to the beginning.

        Aiokafka leaves the position of such a partition behind what was fetched and dropped, which
        would then never come, and count as done with what comes after it. A table's changelog is
        sought by its recovery.
        """
        committed = await super().seek_to_committed()
        uncommitted = [
            tp for tp, offset in committed.items() if not offset and not self._is_changelog_tp(tp)
        ]
        if uncommitted:
            await self._thread.seek_to_beginning(*uncommitted)
        return committed

    async def wait_empty(self) -> None:
        """Wait a while for what agents are at, and let what they did count.

        Faust waits for ever: for a record, too, that one agent is through with and that will never
        reach another, whose queue was emptied.
        """
        deadline = time.monotonic() + WAIT_S
        while self._unacked_messages and not self.should_stop and time.monotonic() < deadline:
            await self._wait_for_ack(timeout=1)
            self._clean_unacked_messages()
        await self.commit_and_end_transactions()

    def _new_consumer_thread(self) -> "_Thread":
        return _Thread(self, loop=self.loop, beacon=self.beacon)


class _Thread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # noqa: SLF001 - the driver sets it by its own rule
        return cast("AIOKafkaConsumer", consumer)


class _Transport(driver.Transport):
    Consumer = _Consumer


class _App(faust.App):
    async def on_first_start(self) -> None:
        """Make no folders: the table is in memory and Kafka, the file system may be read-only."""


def make_app(settings: WatchSettings) -> faust.App:
    """The application: its agents and a table.

    Raises `Fatal` for a login that Faust has not, and for a module of agents that can't be used.
    """
    app = _App(
        settings.group,
        broker=[f"kafka://{one.strip()}" for one in settings.kafka["bootstrap.servers"].split(",")],
        broker_credentials=_credentials(settings.kafka),
        store="memory://",
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication_factor,
        topic_disable_leader=True,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        # Faust's minute would be how long a killed worker's partitions wait for the next one.
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=SESSION_TIMEOUT_S / 4,
        producer_acks=-1,
        producer_linger=0.005,
        producer_compression_type="lz4",
        web_enabled=False,
    )
    app.transport = _Transport(app.conf.broker_consumer, app, loop=app.loop)
    agents = _Agents(app, settings)
    for topic, agent in (
        (app.topic(events.SESSIONS_TOPIC, **_RAW), agents.read),
        (app.topic(events.HEARTBEATS_TOPIC, **_RAW), agents.hear),
        (agents.facts, agents.judge),
    ):
        app.agent(topic, name=agent.__name__, supervisor_strategy=CrashingSupervisor)(agent)
    app.timer(interval=LOOK_INTERVAL_S)(agents.look)
    if settings.module:
        own_agents.register(settings.module, app)
    return app


class _Agents:
    """What the application does; Faust calls each with its stream."""

    def __init__(self, app: faust.App, settings: WatchSettings) -> None:
        self._app = app
        self._decoder = Decoder(_READ)
        self.facts = app.topic(
            FACTS_TOPIC,
            internal=True,
            partitions=settings.partitions,
            retention=float(FACTS_KEPT_S),
            **_RAW,
        )
        # By type and not by schema: a recovery reads the changelog by what the types say.
        table = app.Table(TABLE, partitions=settings.partitions, key_type=bytes, value_type=bytes)
        self._changelog = table.changelog_topic.get_topic_name()
        self._seen = _Seen(settings.rules, table)

    async def read(self, stream: Any) -> None:
        """Facts of the join's records."""
        await self._say(stream, _facts_of_record)

    async def hear(self, stream: Any) -> None:
        """Facts of heartbeats."""
        await self._say(stream, _facts_of_beat)

    async def judge(self, stream: Any) -> None:
        """Findings of facts."""
        async for batch in stream.noack_take(BATCH, within=LINGER_S):
            generation = self._app.consumer_generation_id
            # What came before a rebalance comes again, to whoever has its partition now.
            mine = [one for one in batch if one.message.generation_id == generation]
            places = {event.key: event.message.partition for event in mine}
            found, changed = self._seen.fold(
                (event.key, Fact(*json.loads(event.value))) for event in mine
            )
            await self._send(events.FINDINGS_TOPIC, [(*one, None) for one in found.items()])
            if self._app.consumer_generation_id != generation:
                continue
            # Not through the table, which only lets Faust send it some time: its flush gives up
            # after a tenth of a second in which nothing was sent, and offsets would count before.
            await self._send(self._changelog, [(*one, places[one[0]]) for one in changed.items()])
            self._seen.keep(changed)
            await _ack(stream, mine)

    async def look(self) -> None:
        """Looks at keys whose time has come."""
        await self._send_facts(self._seen.due(time.time()))

    async def _say(self, stream: Any, facts_of: Callable[[Any, Decoder], list[Fact]]) -> None:
        async for batch in stream.noack_take(BATCH, within=LINGER_S):
            self._seen.reading(batch)
            await self._send_facts(
                [fact for event in batch for fact in facts_of(event, self._decoder)]
            )
            await _ack(stream, batch)

    async def _send_facts(self, said: list[Fact]) -> None:
        await self._send(
            FACTS_TOPIC, [(_key(fact), json.dumps(fact).encode(), None) for fact in said]
        )

    async def _send(
        self, topic: str, records: Sequence[tuple[bytes, bytes | None, int | None]]
    ) -> None:
        """Send records (key, value, partition), and wait until Kafka has all of them."""
        producer = await self._app.maybe_start_producer()
        sent = [
            await producer.send(topic, key, value, partition, None, None)
            for key, value, partition in records
        ]
        await asyncio.gather(*sent)


async def _ack(stream: Any, batch: Sequence[Any]) -> None:
    for event in batch:
        await stream.ack(event)


@dataclass(slots=True)
class _Kept:
    """The table's value of one key."""

    facts: dict[str, list[Any]] = field(default_factory=dict)
    #: The summary of the finding that stands; empty if none does.
    said: str = ""
    #: When the key was last looked at, in microseconds.
    looked_us: int = 0

    @classmethod
    def of(cls, value: bytes | None) -> "_Kept":
        return cls() if value is None else cls(**json.loads(value))

    def value(self) -> bytes | None:
        """None, as a table and a changelog mean it, if there is nothing to keep."""
        if not self.facts:
            return None
        return json.dumps(
            {"facts": self.facts, "said": self.said, "looked_us": self.looked_us}
        ).encode()

    def forget(self) -> None:
        self.facts, self.said, self.looked_us = {}, "", 0


class _Seen:
    """The table of what was seen of each key, what was last said of it, and when to look again."""

    def __init__(self, rules: RulesConfig, table: Any) -> None:
        self._rules = rules
        self._table = table
        self._encoder = Encoder()
        #: (when, key); `_planned` says which entry of a key holds.
        self._looks: list[tuple[int, bytes]] = []
        self._planned: dict[bytes, int] = {}
        self._scan_at_s = 0.0
        self._not_before_s = time.time() + START_S

    @property
    def limits(self) -> Limits:
        return self._rules.limits

    # --- facts ---

    def fold(
        self, facts: Iterable[tuple[bytes, Fact]]
    ) -> tuple[dict[bytes, bytes], dict[bytes, bytes | None]]:
        """What facts make of their keys, in their order: (findings, the table's new values).

        Findings that are to be said or taken back, by key, the last one of each. The table has
        its values only after `keep`.
        """
        folded: dict[bytes, tuple[Detector, _Kept]] = {}
        records: dict[bytes, dict[str, Any]] = {}
        for key, fact in facts:
            if key not in folded:
                if fact.detector not in DETECTORS:
                    continue  # of another version
                folded[key] = DETECTORS[fact.detector], _Kept.of(self._table.get(key))
            record = self._judged(*folded[key], fact)
            if record is not None:
                records[key] = {**record, "rules_config_hash": self._rules.digest}
        for key, (detector, kept) in folded.items():
            self._plan(key, detector, kept)
        values = {key: kept.value() for key, (_, kept) in folded.items()}
        found = {key: self._encoder.encode("finding", one) for key, one in records.items()}
        return found, {key: one for key, one in values.items() if one != self._table.get(key)}

    def keep(self, changed: Mapping[bytes, bytes | None]) -> None:
        """What was folded goes to the table: it was said, and the changelog has it."""
        data = self._table.data
        for key, value in changed.items():
            if value is None:
                data.pop(key, None)
            else:
                data[key] = value

    def _judged(self, detector: Detector, kept: _Kept, fact: Fact) -> dict[str, Any] | None:
        if fact.name != LOOK:
            kept.facts = detector.fold(kept.facts, fact)
        elif not kept.facts or detector.is_over(
            kept.facts, self.limits, kept.looked_us, fact.at_us
        ):
            kept.forget()
            return None
        else:
            kept.looked_us = fact.at_us
        answer = detector.judge(kept.facts, self.limits, fact.at_us)
        now_ms = int(time.time() * 1000)
        if answer:
            record = finding(detector, fact, kept.facts, answer, now_ms)
            if record["summary"] != kept.said:
                kept.said = record["summary"]
                return record
        elif answer is None and kept.said and detector.takes_back:
            kept.said = ""
            return finding(detector, fact, kept.facts, None, now_ms)
        return None

    # --- looks ---

    def reading(self, batch: Sequence[Any]) -> None:
        """A batch came: if it is an old one, more is there that has yet to be read."""
        now_s = time.time()
        if batch and batch[-1].message.timestamp < now_s - BEHIND_S:
            self._not_before_s = max(self._not_before_s, now_s + START_S)

    def due(self, now_s: float) -> list[Fact]:
        """A look for each key whose time has come."""
        if now_s < self._not_before_s:
            return []
        if now_s >= self._scan_at_s:
            self._scan_at_s = now_s + SCAN_INTERVAL_S
            for key, value in list(self._table.items()):
                detector = DETECTORS.get(_named(key).detector)
                if detector is not None and key not in self._planned:
                    self._plan(key, detector, _Kept.of(value))
        looks, now_us = [], int(now_s * 1_000_000)
        while self._looks and self._looks[0][0] <= now_us:
            at_us, key = heapq.heappop(self._looks)
            if self._planned.get(key) == at_us:
                del self._planned[key]
                looks.append(_named(key)._replace(at_us=now_us))
        return looks

    def _plan(self, key: bytes, detector: Detector, kept: _Kept) -> None:
        at_us = detector.look_us(kept.facts, self.limits, kept.looked_us)
        if at_us is None:
            self._planned.pop(key, None)
        elif self._planned.get(key) != at_us:
            self._planned[key] = at_us
            heapq.heappush(self._looks, (at_us, key))


def _key(fact: Fact) -> bytes:
    return json.dumps([fact.detector, fact.tenant, fact.subject]).encode()


def _named(key: bytes) -> Fact:
    """A look at a key, at no time yet."""
    detector, tenant, subject = json.loads(key)
    return Fact(detector, tenant, subject, LOOK, 0, "", None)


def _facts_of_record(event: Any, decoder: Decoder) -> list[Fact]:
    """Of a closed chain, the join's or a reassessment's, and of a fragment; open revisions have
    none.
    """
    kind = dict(event.headers or ()).get("kind")
    if kind not in (b"chain", b"fragment"):
        return []
    try:
        _, record = decoder.decode(event.value)
    except Rejected:
        return []  # of another version, which its own `watch` reads
    say = of_chains.facts if kind == b"chain" else of_chains.facts_of_fragment
    found = list(say(record))
    if record["writer"] == "join":  # whoever judges anew writes of the same events again
        at = event.message
        found += of_producers.facts_of_arrival(record, at.partition, at.offset)
    return found


def _facts_of_beat(event: Any, decoder: Decoder) -> list[Fact]:
    try:
        _, beat = decoder.decode(event.value)
    except Rejected:
        return []  # load says why
    at_us = int(event.message.timestamp * 1_000_000)
    return list(of_producers.facts_of_heartbeat(beat, at_us))


def _credentials(kafka: Mapping[str, str]) -> Any:
    """Faust's login for librdkafka's settings."""
    protocol = kafka.get("security.protocol", "plaintext").lower()
    if protocol == "plaintext":
        return None
    context = None
    if protocol in ("ssl", "sasl_ssl"):
        context = ssl.create_default_context(cafile=kafka.get("ssl.ca.location"))
        if "ssl.certificate.location" in kafka:
            context.load_cert_chain(
                kafka["ssl.certificate.location"],
                kafka.get("ssl.key.location"),
                kafka.get("ssl.key.password"),
            )
    if protocol == "ssl":
        return faust.SSLCredentials(context)
    mechanism = kafka.get("sasl.mechanism", kafka.get("sasl.mechanisms", "PLAIN"))
    if protocol not in ("sasl_plaintext", "sasl_ssl") or mechanism not in _MECHANISMS:
        raise Fatal(
            f"couldn't log in to Kafka with {protocol} and {mechanism}: watch knows SSL, and SASL"
            f" with {', '.join(_MECHANISMS)}"
        )
    return faust.SASLCredentials(
        username=kafka.get("sasl.username"),
        password=kafka.get("sasl.password"),
        mechanism=mechanism,
        ssl_context=context,
    )


_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def make_topics(settings: WatchSettings) -> None:
    """Make what is missing of the topics of its own, and wait until the cluster names them.

    Faust makes them, too, and subscribes at once: a topic that the metadata does not name yet is
    then left out for minutes. Raises `Retryable`, `Fatal`.
    """
    admin = AdminClient(dict(settings.kafka))
    places = (settings.partitions, settings.replication_factor)
    wanted = {
        FACTS_TOPIC: {"retention.ms": str(FACTS_KEPT_S * 1000)},
        f"{settings.group}-{TABLE}-changelog": {"cleanup.policy": "compact"},
    }
    asked = admin.create_topics([NewTopic(name, *places, config=c) for name, c in wanted.items()])
    for name, answer in asked.items():
        try:
            answer.result(TOPICS_TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise lane_reader.kafka_error(f"make the topic {name}", error.args[0]) from error
    deadline = time.monotonic() + TOPICS_TIMEOUT_S
    while not all(_is_led(admin, name, settings.partitions) for name in wanted):
        if time.monotonic() > deadline:
            raise Retryable(f"couldn't watch: the cluster does not name {', '.join(wanted)} yet")
        time.sleep(TOPICS_POLL_S)


def _is_led(admin: AdminClient, topic: str, partitions: int) -> bool:
    """Whether the topic is there, and each of its partitions has a leader."""
    found = admin.list_topics(topic, timeout=TOPICS_TIMEOUT_S).topics[topic].partitions
    return len(found) >= partitions and all(one.leader >= 0 for one in found.values())


def run(settings: WatchSettings) -> None:
    """Watch until SIGTERM or SIGINT."""
    make_topics(settings)
    worker = faust.Worker(
        make_app(settings), loglevel="WARNING", quiet=True, redirect_stdouts=False
    )
    worker.execute_from_commandline()
