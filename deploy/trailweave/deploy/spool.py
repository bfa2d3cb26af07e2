"""`trailweave spool drain`: sends what dead producers left on disk."""

from typing import Any, Final

from trailweave.deploy.settings import Settings, SettingsError

#: Long enough for a full spool of 256 MiB over a slow line.
DRAIN_TIMEOUT_S: Final = 600.0


def drain_spool(settings: Settings, *, failed: bool) -> dict[str, Any]:
    """Adopt and send; the counts. `failed` also tries what Kafka refused. Raises `TrailError`."""
    from trailweave.producers.kafka import KafkaTransport

    folder = settings.producer.spool
    if folder is None or not folder.is_dir():
        raise SettingsError(
            f"couldn't find a spool in {folder or 'no directory'}: name it with --dir, or set"
            " TRAILWEAVE_PRODUCER_SPOOL"
        )
    transport = KafkaTransport(settings.kafka_config(), folder)
    transport.start(None, adopt_failed=failed)
    try:
        empty = transport.flush(DRAIN_TIMEOUT_S)
        counts = transport.counts
    finally:
        transport.close(0.0)
    return {
        "delivered": counts.adopted,
        "failed": counts.failed,
        "damaged": counts.damaged,
        "left": 0 if empty else 1,
    }
