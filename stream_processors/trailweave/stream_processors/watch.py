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
import json
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
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
from trailweave.schemas.codec import Decoder
from trailweave.schemas.errors import Fatal, Rejected, Retryable
from trailweave.stream_processors import lane_reader, own_agents
from trailweave.stream_processors.detectors import of_chains, of_producers
from trailweave.stream_processors.detectors.detector import Fact
from trailweave.stream_processors.seen import Seen, key_of
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
        self._seen = Seen(settings.rules, table, time.time())

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
            facts = ((event.key, Fact(*json.loads(event.value))) for event in mine)
            found, changed = self._seen.fold(facts, int(time.time() * 1000))
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
            if batch:
                self._seen.reading(batch[-1].message.timestamp, time.time())
            await self._send_facts(
                [fact for event in batch for fact in facts_of(event, self._decoder)]
            )
            await _ack(stream, batch)

    async def _send_facts(self, said: list[Fact]) -> None:
        await self._send(
            FACTS_TOPIC, [(key_of(fact), json.dumps(fact).encode(), None) for fact in said]
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
