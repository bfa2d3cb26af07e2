"""SIGINT and SIGTERM as an event that a worker's loop looks at, and the workers' log."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from trailweave.deploy.masking import MaskingFormatter


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one ends the process at once."""
    stop = threading.Event()

    def ask_to_stop(number: int, _: object) -> None:
        if stop.is_set():
            raise SystemExit(128 + number)
        stop.set()

    before = {
        number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Log lines of this process on standard error, passwords masked."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(MaskingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
