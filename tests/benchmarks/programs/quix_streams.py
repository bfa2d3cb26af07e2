"""The join in Quix Streams: its topics put together, a stateful function per key, at least once."""

# mypy: disable-error-code="import-not-found"
# The peers live in an environment of their own.

from functools import reduce
from typing import Any

from quixstreams import Application

from tests.benchmarks.programs.told import Told, arguments, first


class Join:
    """Gathers the pieces of a trace; its events are complete by their number."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self.seen = False

    def fold(self, value: bytes, state: Any) -> list[bytes]:
        """What is complete: nothing, or one joined record."""
        if not self.seen:
            self.seen = True
            first()
        held = state.get_bytes("pieces", b"")
        count = int.from_bytes(held[:2]) + 1
        joined = held[2:] + self.told.piece(value)
        if count < self.told.per_trace:
            state.set_bytes("pieces", count.to_bytes(2) + joined)
            return []
        state.delete("pieces")
        return [joined]


def main() -> None:
    """Run until killed."""
    told = arguments()
    app = Application(
        told.broker,
        consumer_group="bench-quix",
        auto_offset_reset="earliest",
        state_dir=told.state,
        # The default takes a message at a time off a queue that fills in the background.
        consumer_extra_config={"fetch.queue.backoff.ms": 20},
        producer_extra_config={"compression.type": "lz4", "linger.ms": 20},
        loglevel="WARNING",
    )
    raw = {"key_deserializer": "bytes", "value_deserializer": "bytes"}
    frames = [app.dataframe(app.topic(name, **raw)) for name in told.topics]
    every = reduce(lambda left, right: left.concat(right), frames)
    out = app.topic(told.out, key_serializer="bytes", value_serializer="bytes")
    every.apply(Join(told).fold, stateful=True, expand=True).to_topic(out)
    app.run()


if __name__ == "__main__":
    main()
