"""The Prometheus endpoint of a worker, and what each worker shows of its own process.

The join's and the load's own metrics are made in their rooms, each with its registry.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trailweave.deploy.settings import Metrics
from trailweave.schemas.errors import Fatal

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)


@contextmanager
def serve_metrics(settings: Metrics, registry: "CollectorRegistry") -> Iterator[None]:
    """Answer `GET /metrics` while the worker runs; nothing listens when the port is 0.

    Adds the process's own figures (CPU, memory, open files, garbage collection) to the registry.
    """
    if settings.port == 0:
        yield
        return
    from prometheus_client import (
        GCCollector,
        PlatformCollector,
        ProcessCollector,
        start_http_server,
    )

    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    try:
        server, thread = start_http_server(settings.port, settings.host, registry)
    except OSError as error:
        raise Fatal(
            f"couldn't serve metrics on {settings.host}:{settings.port}: {error.strerror};"
            " name another --metrics-port"
        ) from None
    log.info("metrics on http://%s:%d/metrics", settings.host, settings.port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
