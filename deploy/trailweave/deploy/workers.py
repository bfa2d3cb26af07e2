"""The workers with their settings translated: one process each, until told to stop."""

import logging
import threading
from typing import TYPE_CHECKING

from trailweave.deploy.clients import clickhouse_dsn
from trailweave.deploy.metrics import serve_metrics
from trailweave.deploy.registry import writer_schemas
from trailweave.deploy.settings import Join, Settings
from trailweave.deploy.tables import profile

if TYPE_CHECKING:
    from trailweave.stream_processors.session import ClosingTimes

log = logging.getLogger(__name__)


def run_join(settings: Settings, stop: threading.Event) -> None:
    """Join until `stop` is set; raises `Fatal`."""
    from trailweave.stream_processors import join
    from trailweave.stream_processors.metrics import JoinMetrics
    from trailweave.stream_processors.verdict import RulesConfig

    path = settings.rules.path
    wanted = settings.join
    metrics = JoinMetrics()
    worker = join.JoinSettings(
        kafka=settings.kafka_config(),
        group=wanted.group,
        slot=wanted.slot,
        times=closing_times(wanted, settings.schemas.unknown_wait_s),
        rules=RulesConfig() if path is None else RulesConfig.load(path),
        batch_events_max=wanted.batch_events_max,
        linger_s=wanted.linger_s,
        session_timeout_s=wanted.session_timeout_s,
        closers=wanted.closers,
        promote_s=wanted.promote_s,
        held_bytes_max=wanted.held_bytes_max,
    )
    with serve_metrics(settings.metrics, metrics.registry), writer_schemas(settings) as schemas:
        log.info("join runs as slot %d of %s", wanted.slot, wanted.group)
        join.run(worker, stop, metrics, schemas)
    log.info("join has drained")


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
        linger_min_s=wanted.linger_min_s,
        linger_max_s=wanted.linger_max_s,
        insert_timeout_s=wanted.insert_timeout_s,
        session_timeout_s=wanted.session_timeout_s,
    )
    with serve_metrics(settings.metrics, metrics.registry), writer_schemas(settings) as schemas:
        log.info("load runs as slot %d of %s", wanted.slot, wanted.group)
        load.run(worker, stop, metrics, schemas)
    log.info("load has drained")
