"""`trailweave spool drain`: sends what dead producers left on disk."""

from typing import Any, Final

from trailweave.deploy.settings import Settings, SettingsError

#: Long enough for a full spool of 256 MiB over a slow line.
DRAIN_TIMEOUT_S: Final = 600.0


def drain_spool(settings: Settings, *, failed: bool) -> dict[str, Any]:
    """Adopt and send; the counts. `failed` also tries what Kafka refused. Raises `TrailError`."""
    from trailweave.producers.drain import drain

    folder = settings.producer.spool
    if folder is None or not folder.is_dir():
        raise SettingsError(
            f"couldn't find a spool in {folder or 'no directory'}: name it with --dir, or set"
            " TRAILWEAVE_PRODUCER_SPOOL"
        )
    drained = drain(folder, settings.kafka_config(), DRAIN_TIMEOUT_S, failed=failed)
    return {
        "delivered": drained.sent,
        "failed": drained.failed,
        "damaged": drained.damaged,
        "left": 0 if drained.finished else 1,
    }
