"""Every limit and interval of `kafka.KafkaTransport`, and why it has that size."""

from dataclasses import dataclass
from typing import Final, Literal

#: The longest a delivery report or a waiting caller goes unnoticed.
POLL_S: Final = 0.1
#: What a power cut may take from the spool.
SYNC_INTERVAL_S: Final = 1.0
#: How often folders of processes that died meanwhile are looked for.
ADOPT_INTERVAL_S: Final = 60.0
#: Before the spool is tried again after Kafka gave events back.
RETRY_S: Final = 1.0
#: Spooled events on their way to Kafka; the spool must not fill memory a second time.
SENDING_EVENTS_MAX: Final = 2_000
SENDING_BYTES_MAX: Final = 8 << 20
#: Spooled events handed over while holding the lock: a caller waits a millisecond at most.
DRAIN_BATCH: Final = 50
#: The last heartbeat, and the reports of what was taken back at the end.
LAST_WORDS_S: Final = 1.0
#: A wrong ACL refuses every event; the log should say so, but not with every event.
FAILED_LOG_EVERY: Final = 1_000
#: librdkafka's own bookkeeping of an event in its queue.
OVERHEAD_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class KafkaLimits:
    """When memory, spool and patience end."""

    #: An agent makes a few events a second; this is a minute of a busy gateway.
    memory_events_max: int = 20_000
    memory_bytes_max: int = 32 << 20
    spool_bytes_max: int = 256 << 20
    #: Kafka is away when nothing was acknowledged for this long although something waits.
    away_after_s: float = 3.0
    #: Away for so long, and again each time, the client is made anew: one that was told of a
    #: cluster without brokers, as while all of them restart, asks nobody any more (librdkafka
    #: issue 5301).
    renew_after_s: float = 60.0
    #: Memory and spool full: an exception for the caller, or wait for room. In asyncio, `raise`.
    on_full: Literal["raise", "block"] = "raise"
    #: Write every event to the spool before it is sent.
    durable: bool = False
    heartbeat_interval_s: float = 10.0
    #: How long `close`, and so the end of the process, tries to reach Kafka.
    close_timeout_s: float = 5.0
