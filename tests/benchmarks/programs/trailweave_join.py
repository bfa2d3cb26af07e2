"""Our join as the command runs it, verdicts and all; only it says when its first events come."""

import logging
import threading

from confluent_kafka import Consumer
from trailweave.deploy.settings import Join
from trailweave.stream_processors import lane_reader
from trailweave.stream_processors.join import JoinSettings, run
from trailweave.stream_processors.lane_reader import Fetched

from tests.benchmarks.programs.told import arguments, first


def main() -> None:
    """Run until killed."""
    told = arguments()
    # It says when its lanes are back: what `recovery` waits for.
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    consume = lane_reader.consume

    def consume_first(consumer: Consumer, count: int, timeout_s: float) -> list[Fetched]:
        fetched = consume(consumer, count, timeout_s)
        if any(message.error() is None for message in fetched):
            lane_reader.consume = consume
            first()
        return fetched

    lane_reader.consume = consume_first
    settings = JoinSettings({"bootstrap.servers": told.broker}, closers=Join().closers)
    run(settings, threading.Event())


if __name__ == "__main__":
    main()
