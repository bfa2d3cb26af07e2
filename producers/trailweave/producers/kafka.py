"""Events to Kafka, with bounded memory and then a disk spool behind it.

The caller's thread encodes and enqueues; one background thread serves delivery reports, moves
events between memory, spool and Kafka, and sends heartbeats. One lock guards all of it, so that
recorded = delivered + buffered + spooled + failed holds whenever somebody looks.

Where an accepted event is, and what loses it there:

- in memory (`buffered`), until Kafka acknowledges it: SIGKILL or a crash of the process. That is
  the last tenth of a second while Kafka answers, `away_after_s` when it stops answering, and never
  more than `memory_events_max`. The loss shows as a gap in `trace_seq`, or as a count that
  `session_ended` promised. With `durable` every event is on disk first, and nothing is lost.
- in the spool (`spooled`), while Kafka is away, or when memory is full: a power cut within
  `SYNC_INTERVAL_S` of writing, or the loss of the disk. Sent when Kafka is back, by this process
  or the next one on the same directory, as the same bytes; at least once.
- in the spool's `failed` folder, when Kafka refused it for good: stays there until `drain`
  is told to send it again.

Fork: a child process can't use its parent's transport; it must make its own.
"""

import atexit
import ctypes
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from confluent_kafka import KafkaError, KafkaException
from trailweave.producers.client import error_of, is_permanent, new_client
from trailweave.producers.frames import Stored
from trailweave.producers.heartbeat import heartbeat
from trailweave.producers.limits import (
    ADOPT_INTERVAL_S,
    DRAIN_BATCH,
    FAILED_LOG_EVERY,
    LAST_WORDS_S,
    OVERHEAD_BYTES,
    POLL_S,
    RETRY_S,
    SENDING_BYTES_MAX,
    SENDING_EVENTS_MAX,
    SYNC_INTERVAL_S,
    KafkaLimits,
)
from trailweave.producers.spool import RECYCLE_BYTES_MIN, NoRoom, Spool, Taken
from trailweave.producers.transport import (
    Counts,
    Producer,
    SpoolFull,
    TransportClosed,
    default_encoder,
)
from trailweave.schemas import schema_topic
from trailweave.schemas.codec import Encoder
from trailweave.schemas.errors import Fatal, TrailError
from trailweave.schemas.events import HEARTBEATS_TOPIC

log = logging.getLogger(__name__)


class KafkaTransport:
    """A `Transport` to Kafka. `config` is librdkafka's: bootstrap.servers, security, anything.

    Raises `Fatal` for settings that librdkafka refuses, or a spool directory that can't be used.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        spool_dir: Path | str,
        limits: KafkaLimits | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        self._config = dict(config)
        self._spool_dir = Path(spool_dir)
        self._limits = limits or KafkaLimits()
        self._encoder = encoder or default_encoder()
        self._lock = threading.Condition()
        self._recorded = self._delivered = self._buffered = 0
        self._spooled = self._failed = self._adopted = 0
        self._buffered_bytes = 0
        #: Spooled events handed to librdkafka.
        self._sending = self._sending_bytes = 0
        #: Came back from Kafka and found no room on disk; still counted as buffered.
        self._held: deque[tuple[Stored, bool]] = deque()
        self._away = False
        self._waiting_since = 0.0
        self._renew_at = 0.0
        self._drain_at = 0.0
        self._beats = 0
        self._beating = False
        self._state: Literal["new", "open", "closing", "closed", "forked"] = "new"
        self._renew = False
        #: For events that were refused within a batch, made when there is one.
        self._solo: Any = None
        #: With a Schema Registry's encoder, the registry has the schemas.
        self._unpublished = encoder is None
        #: Kafka has acknowledged something.
        self._reached = False
        self._stop = threading.Event()
        self._producer: Producer | None = None

    # --- the protocol ------------------------------------------------------------------------

    def start(self, producer: Producer | None, *, adopt_failed: bool = False) -> None:
        """Begin. Without a producer (see `drain`) no heartbeats are sent."""
        name = producer.producer_id if producer else f"drain:{os.getpid()}"
        self._producer, self._name = producer, name
        self._client = self._new_client()
        self._spool = Spool(self._spool_dir, name, self._limits.spool_bytes_max)
        self._spool.adopt(failed=adopt_failed)
        self._state = "open"
        self._thread = threading.Thread(target=self._run, name="trailweave-kafka", daemon=True)
        self._thread.start()
        me = weakref.ref(self)
        self._at_exit = partial(_close_at_exit, me)
        atexit.register(self._at_exit)
        os.register_at_fork(after_in_child=partial(_abandon_after_fork, me))

    @property
    def delayed(self) -> bool:
        """Kafka is away. An event taken before that was noticed is late without saying so."""
        return self._away

    @property
    def counts(self) -> Counts:
        """What became of the events."""
        with self._lock:
            return self._counts()

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        """Take one event into memory, or into the spool while Kafka is away or memory is full."""
        with self._lock:
            while True:
                if self._state != "open":
                    raise TransportClosed(_CLOSED[self._state])
                try:
                    self._accept(topic, key, value)
                except NoRoom as error:
                    if self._limits.on_full == "raise":
                        raise SpoolFull(str(error), self._counts()) from None
                    self._lock.wait(POLL_S)
                else:
                    self._recorded += 1
                    return

    def flush(self, timeout_s: float) -> bool:
        """Wait until memory and spool are empty, adopted events included."""
        with self._lock:
            return self._lock.wait_for(self._settled, timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """Deliver for `timeout_s` (default: the limit), put the rest on disk, end.

        What was in memory goes to the spool even above its limit. Raises `SpoolFull` when the disk
        took no more: those events are lost, and the counts show them as buffered.
        """
        with self._lock:
            if self._state != "open":
                return
            self._state = "closing"
        with self._lock:
            self._lock.wait_for(
                lambda: self._away or self._settled(),
                self._limits.close_timeout_s if timeout_s is None else timeout_s,
            )
        self._stop.set()
        self._thread.join()
        if self._reached and not self._away:
            # Schemas and heartbeats are in no count.
            self._client.flush(LAST_WORDS_S)
        self._take_back()
        if self._reached and not self._away:
            self._beat(final=True)
            self._client.flush(LAST_WORDS_S)
        self._sync()
        with self._lock:
            self._spool.close()
            self._state = "closed"
        atexit.unregister(self._at_exit)
        if self._buffered:
            raise SpoolFull(f"couldn't keep {self._buffered} events at the end", self._counts())

    # --- accepting (lock held) ---------------------------------------------------------------

    def _accept(self, topic: str, key: bytes, value: bytes) -> None:
        durable = self._limits.durable
        if not (durable or self._away) and self._buffer(topic, key, value):
            return
        try:
            self._spool.append(Stored(topic, key, value))
        except NoRoom:
            # Kafka is away and the disk is full: there may still be memory.
            if durable or not self._away or not self._buffer(topic, key, value):
                raise
        else:
            self._spooled += 1

    def _buffer(self, topic: str, key: bytes, value: bytes) -> bool:
        """Into memory, if there is room."""
        size = len(value)
        if (
            self._buffered >= self._limits.memory_events_max
            or self._buffered_bytes + size > self._limits.memory_bytes_max
            or self._produce(topic, key, value, self._on_report) is not None
        ):
            return False
        self._buffered += 1
        self._buffered_bytes += size
        return True

    def _produce(
        self, topic: str, key: bytes, value: bytes, on_report: Callable[..., None]
    ) -> KafkaError | None:
        """Hand it to librdkafka; why it didn't take it, if it didn't."""
        if not self._outstanding():
            self._waiting_since = time.monotonic()
        try:
            self._client.produce(topic, value, key, on_delivery=on_report)
        except BufferError:
            return KafkaError(KafkaError._QUEUE_FULL)
        except KafkaException as error:
            return error_of(error)
        return None

    def _settled(self) -> bool:
        return not self._buffered and not self._spool.pending

    def _outstanding(self) -> int:
        return self._buffered - len(self._held) + self._sending

    def _counts(self) -> Counts:
        return Counts(
            self._recorded,
            self._delivered,
            self._buffered,
            self._spooled,
            self._failed,
            self._adopted,
            self._spool.damaged if self._state != "new" else 0,
        )

    # --- delivery reports (background thread) ------------------------------------------------

    def _on_report(self, error: KafkaError | None, message: Any, alone: bool = False) -> None:
        with self._lock:
            if error is None:
                self._forget_buffered(len(message))
                self._delivered += 1
                self._heard()
                return
            permanent = is_permanent(error)
            stored = Stored(message.topic(), message.key(), message.value(), error.str())
            if permanent and not alone and self._send_alone(stored, self._on_report):
                return
            self._keep(stored, permanent)

    def _send_alone(self, stored: Stored, on_report: Callable[..., None]) -> bool:
        """Kafka refuses a whole batch for one bad event in it: the second try is a batch of one."""
        try:
            if self._solo is None:
                self._solo = self._new_client({"batch.num.messages": "1"})
            self._solo.produce(
                stored.topic, stored.value, stored.key, on_delivery=partial(on_report, alone=True)
            )
        except (BufferError, KafkaException, Fatal) as error:
            log.warning("couldn't send a refused event alone: %s", error)
            return False
        return True

    def _keep(self, stored: Stored, permanent: bool) -> None:
        """A buffered event that came back: to the failed file or the spool, else it stays."""
        try:
            if permanent:
                self._fail(stored)
                self._failed += 1
            else:
                self._spool.append(replace(stored, note=""))
                self._spooled += 1
        except NoRoom:
            self._held.append((stored, permanent))
            return
        self._forget_buffered(len(stored.value))

    def _fail(self, stored: Stored) -> None:
        self._spool.keep_failed(stored)
        self._heard()
        if not self._failed % FAILED_LOG_EVERY:
            log.error(
                "Kafka refused an event for %s: %s; such events are kept in %s",
                stored.topic, stored.note, self._spool_dir / "failed",
            )  # fmt: skip

    def _forget_buffered(self, size: int) -> None:
        self._buffered -= 1
        self._buffered_bytes -= size

    def _on_spooled_report(
        self, taken: Taken, error: KafkaError | None, _message: Any, alone: bool = False
    ) -> None:
        with self._lock:
            permanent = error is not None and is_permanent(error)
            report = partial(self._on_spooled_report, taken)
            if permanent and not alone and self._send_alone(taken.stored, report):
                return
            self._sending -= 1
            self._sending_bytes -= len(taken.stored.value)
            if error is not None and not permanent:
                self._give_back(taken)
                return
            if error is not None:
                try:
                    self._fail(replace(taken.stored, note=error.str()))
                except NoRoom:
                    self._give_back(taken)
                    return
            self._settle(taken, failed=permanent)

    def _give_back(self, taken: Taken) -> None:
        self._spool.give_back(taken)
        self._drain_at = time.monotonic() + RETRY_S

    def _settle(self, taken: Taken, *, failed: bool) -> None:
        if taken.segment.adopted:
            self._adopted += not failed
        else:
            self._spooled -= 1
            self._delivered += not failed
            self._failed += failed
        self._spool.acknowledge(taken)
        self._heard()

    def _heard(self) -> None:
        self._reached = True
        self._waiting_since = time.monotonic()
        if self._away:
            self._away = False
            log.info("Kafka is back; sending %d spooled events", self._spooled)

    def _on_error(self, error: KafkaError) -> None:
        # A fatal error ends this client for good; everything in it comes back by reports.
        if error.fatal() or error.code() == KafkaError._FATAL:
            log.warning("librdkafka gave up (%s); making a new client", error.str())
            self._renew = True

    # --- the background thread ---------------------------------------------------------------

    def _run(self) -> None:
        due = {"sync": 0.0, "adopt": time.monotonic() + ADOPT_INTERVAL_S, "beat": 0.0}
        while not self._stop.is_set():
            try:
                self._turn(due)
            except Exception:  # the thread is what moves events; it must not die
                log.exception("couldn't work off the events for Kafka; trying again")
                self._stop.wait(RETRY_S)

    def _turn(self, due: dict[str, float]) -> None:
        self._client.poll(POLL_S)
        if self._solo is not None:
            self._solo.poll(0)
        now = time.monotonic()
        if self._renew:
            self._replace_client()
        if self._unpublished and self._reached:
            self._publish_schemas()
        self._notice_absence(now)
        self._retry_held()
        while now >= self._drain_at and self._drain():
            self._client.poll(0)
        with self._lock:
            # A quarter of a small spool, so that it can't stay full of acknowledged events.
            self._spool.recycle(min(RECYCLE_BYTES_MIN, self._limits.spool_bytes_max // 4))
            self._lock.notify_all()
        if now >= due["sync"]:
            due["sync"] = now + SYNC_INTERVAL_S
            self._sync()
        if now >= due["adopt"]:
            due["adopt"] = now + ADOPT_INTERVAL_S
            with self._lock:
                self._spool.adopt()
        if now >= due["beat"]:
            due["beat"] = now + self._limits.heartbeat_interval_s
            self._beat(final=False)

    def _notice_absence(self, now: float) -> None:
        with self._lock:
            away = now - self._waiting_since > self._limits.away_after_s
            if self._away and now >= self._renew_at:
                self._renew_at = now + self._limits.renew_after_s
                self._renew = True
            if self._away or not away or not self._outstanding():
                return
            self._away = True
            self._renew_at = now + self._limits.renew_after_s
            log.warning("Kafka doesn't answer; events go to the spool in %s", self._spool_dir)
        # What waits in memory is safer on disk; the reports of it move it there.
        self._client.purge(in_queue=True, in_flight=False)

    def _retry_held(self) -> None:
        with self._lock:
            for _ in range(len(self._held)):
                stored, permanent = self._held.popleft()
                produced = (
                    not permanent
                    and not self._away
                    and self._produce(stored.topic, stored.key, stored.value, self._on_report)
                    is None
                )
                if not produced:
                    self._keep(stored, permanent)

    def _drain(self) -> bool:
        """Hand some spooled events to librdkafka; whether there may be more to hand over."""
        with self._lock:
            # While Kafka is away one event is enough to notice that it is back.
            room = 1 if self._away else SENDING_EVENTS_MAX
            for _ in range(DRAIN_BATCH):
                if self._sending >= room or self._sending_bytes >= SENDING_BYTES_MAX:
                    return False
                taken = self._spool.take()
                if taken is None:
                    return False
                stored = taken.stored
                self._sending += 1
                self._sending_bytes += len(stored.value)
                report = partial(self._on_spooled_report, taken)
                error = self._produce(stored.topic, stored.key, stored.value, report)
                if error is not None:
                    report(error, None)
                    return False
            return True

    def _publish_schemas(self) -> None:
        """Queue what we write for the built-in registry, once Kafka is known to be there."""
        self._unpublished = False
        try:
            schema_topic.publish(self._client)
        except TrailError as error:
            log.warning("%s; readers of this version know the schemas anyway", error)

    def _sync(self) -> None:
        with self._lock:
            fds = self._spool.to_sync()
        for fd in fds:
            try:
                os.fdatasync(fd)
            except OSError as error:
                log.warning("couldn't sync the spool %s: %s", self._spool_dir, error.strerror)
            finally:
                os.close(fd)

    def _beat(self, *, final: bool) -> None:
        if self._producer is None or self._away or (self._beating and not final):
            return
        with self._lock:
            counts = self._counts()
        record = heartbeat(
            self._producer, self._beats, counts, self._limits.heartbeat_interval_s, final=final
        )
        value = self._encoder.encode("producer_heartbeat", record)
        key = self._producer.producer_id.encode()
        try:
            self._client.produce(HEARTBEATS_TOPIC, value, key, on_delivery=self._on_beat)
            self._beating = True
        except (BufferError, KafkaException) as error:
            log.debug("couldn't send a heartbeat: %s", error)

    def _on_beat(self, error: KafkaError | None, _message: object) -> None:
        # Only one that arrived uses its number up: a gap would look like a lost heartbeat.
        self._beating = False
        if error is None:
            self._beats += 1
            self._reached = True

    def _take_back(self) -> None:
        """At the end: what librdkafka still has comes back by reports, and goes to the spool."""
        # These events were accepted: the limit refuses new ones, not them.
        with self._lock:
            self._spool.bytes_max = sys.maxsize
        clients = [client for client in (self._client, self._solo) if client is not None]
        deadline = time.monotonic() + LAST_WORDS_S
        while self._outstanding() and time.monotonic() < deadline:
            for client in clients:
                client.purge()
                client.poll(POLL_S)
        with self._lock:
            for _ in range(len(self._held)):
                self._keep(*self._held.popleft())

    def _replace_client(self) -> None:
        with self._lock:
            old, self._renew = (self._client, self._solo), False
            self._client, self._solo = self._new_client(), None
        for client in old:
            if client is not None:
                client.purge()
                client.flush(LAST_WORDS_S)

    def _new_client(self, more: Mapping[str, str] | None = None) -> Any:
        limits = self._limits
        events_max = limits.memory_events_max + SENDING_EVENTS_MAX + 1_000
        bytes_max = limits.memory_bytes_max + 2 * SENDING_BYTES_MAX + events_max * OVERHEAD_BYTES
        return new_client(
            {**self._config, **(more or {})}, self._name, events_max, bytes_max, self._on_error
        )

    def _forked(self) -> None:
        self._lock = threading.Condition()
        if self._state in ("open", "closing"):
            self._spool.abandon()
            # Destroying it would wait for threads that this process doesn't have.
            for client in (self._client, self._solo):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))
            atexit.unregister(self._at_exit)
            self._state = "forked"


_CLOSED: Final = {
    "new": "couldn't send: the transport was not started",
    "closing": "couldn't send: the transport is being closed",
    "closed": "couldn't send: the transport is closed",
    "forked": "couldn't send after a fork: make a Recorder in the new process",
}


def _close_at_exit(me: "weakref.ref[KafkaTransport]") -> None:
    transport = me()
    if transport is not None:
        try:
            transport.close()
        except TrailError as error:
            log.error("%s", error)  # noqa: TRY400 - the process ends; its message says all


def _abandon_after_fork(me: "weakref.ref[KafkaTransport]") -> None:
    transport = me()
    if transport is not None:
        transport._forked()  # noqa: SLF001 - of this module
