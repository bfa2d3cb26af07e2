"""The workers with their settings translated: one process each, until told to stop."""

import logging
import threading
from typing import TYPE_CHECKING

from trailweave.deploy.clients import clickhouse_dsn
from trailweave.deploy.metrics import serve_metrics
from trailweave.deploy.registry import writer_schemas
from trailweave.deploy.settings import Join, Settings
from trailweave.deploy.tables import profile
from trailweave.schemas import events
from trailweave.schemas.errors import Fatal

if TYPE_CHECKING:
    from trailweave.stream_processors.session import ClosingTimes
    from trailweave.stream_processors.verdict import RulesConfig

log = logging.getLogger(__name__)


def run_join(settings: Settings, stop: threading.Event) -> None:
    """Join until `stop` is set; raises `Fatal`."""
    from trailweave.stream_processors import join
    from trailweave.stream_processors.metrics import JoinMetrics

    wanted = settings.join
    metrics = JoinMetrics()
    worker = join.JoinSettings(
        kafka=settings.kafka_config(),
        group=wanted.group,
        slot=wanted.slot,
        times=closing_times(wanted, settings.schemas.unknown_wait_s),
        rules=rules_config(settings),
        batch_events_max=wanted.batch_events_max,
        linger_s=wanted.linger_s,
        session_timeout_s=wanted.session_timeout_s,
        closers=wanted.closers,
        promote_s=wanted.promote_s,
        look_every_s=wanted.look_every_s,
        held_bytes_max=wanted.held_bytes_max,
    )
    with serve_metrics(settings.metrics, metrics.registry), writer_schemas(settings) as schemas:
        log.info("join runs as slot %d of %s", wanted.slot, wanted.group)
        join.run(worker, stop, metrics, schemas)
    log.info("join has drained")


def run_watch(settings: Settings) -> None:
    """Watch until a signal; raises `Fatal`."""
    from trailweave.schemas.topics import load_topics

    try:
        from trailweave.stream_processors import watch
    except ImportError as error:
        raise Fatal(
            f"couldn't watch: {error}; install it with pip install 'trailweave[watch]'"
        ) from error
    wanted = load_topics(settings.topics.partitions or None)
    lanes = next(one.partitions for one in wanted if one.name == events.SESSIONS_TOPIC)
    watch.run(
        watch.WatchSettings(
            kafka=settings.kafka_config(),
            group=settings.watch.group,
            rules=rules_config(settings),
            module=settings.watch.module,
            partitions=lanes,
            replication_factor=settings.topics.replication_factor,
        )
    )


def rules_config(settings: Settings) -> "RulesConfig":
    """What `rules.toml` says, or the defaults where none is named; raises `Fatal`."""
    from trailweave.stream_processors.verdict import RulesConfig

    path = settings.rules.path
    return RulesConfig() if path is None else RulesConfig.load(path)


def closing_times(wanted: Join, unknown_wait_s: float) -> "ClosingTimes":
    """The closing times in the milliseconds of broker timestamps."""
    from trailweave.stream_processors.session import ClosingTimes

    return ClosingTimes(
        grace_ms=round(wanted.grace_s * 1000),
        idle_ms=round(wanted.idle_s * 1000),
        approval_hold_max_ms=round(wanted.approval_hold_max_s * 1000),
        unknown_schema_wait_ms=round(unknown_wait_s * 1000),
    )


def run_load(settings: Settings, stop: threading.Event) -> None:
    """Load until `stop` is set; raises `Fatal`."""
    from trailweave.sinks import load
    from trailweave.sinks.metrics import LoadMetrics

    wanted = settings.load
    metrics = LoadMetrics()
    worker = load.LoadSettings(
        kafka=settings.kafka_config(),
        clickhouse=clickhouse_dsn(settings),
        group=wanted.group,
        slot=wanted.slot,
        profile=profile(settings),
        create_tables=wanted.create_tables,
        epoch=wanted.epoch,
        batch_rows_max=wanted.batch_rows_max,
        batch_bytes_max=wanted.batch_bytes_max,
        inserts_per_s_max=wanted.inserts_per_s_max,
        inserts_at_once=wanted.inserts_at_once,
        linger_min_s=wanted.linger_min_s,
        linger_max_s=wanted.linger_max_s,
        insert_timeout_s=wanted.insert_timeout_s,
        session_timeout_s=wanted.session_timeout_s,
    )
    with serve_metrics(settings.metrics, metrics.registry), writer_schemas(settings) as schemas:
        log.info("load runs as slot %d of %s", wanted.slot, wanted.group)
        load.run(worker, stop, metrics, schemas)
    log.info("load has drained")
