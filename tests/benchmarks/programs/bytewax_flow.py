"""The join in Bytewax: a stateful step keyed by trace, without recovery (its fastest form)."""

# mypy: disable-error-code="import-not-found"
# The peers live in an environment of their own.

from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.run import cli_main

from tests.benchmarks.programs.told import Told, arguments, first


class Join:
    """Gathers the pieces of a trace; its events are complete by their number."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self.seen = False

    def keyed(self, message: Any) -> tuple[str, bytes]:
        """The key as Bytewax wants it, and the piece."""
        if not self.seen:
            self.seen = True
            first()
        return message.key.decode(), self.told.piece(message.value)

    def fold(self, pieces: list[bytes] | None, piece: bytes) -> tuple[Any, list[bytes]]:
        """(state, what is complete)."""
        pieces = pieces or []
        pieces.append(piece)
        if len(pieces) < self.told.per_trace:
            return pieces, []
        return None, [b"".join(pieces)]


def dataflow(told: Told) -> Dataflow:
    """From the event topics to the one of joined records."""
    join = Join(told)
    flow = Dataflow("join")
    source = KafkaSource([told.broker], told.topics)
    events = op.map("key", op.input("events", flow, source), join.keyed)
    joined = op.stateful_flat_map("join", events, join.fold)
    records = op.map("record", joined, lambda kv: KafkaSinkMessage(kv[0].encode(), kv[1]))
    settings = {"compression.type": "lz4", "linger.ms": "20"}
    op.output("out", records, KafkaSink([told.broker], told.out, settings))
    return flow


def main() -> None:
    """Run until killed."""
    cli_main(dataflow(arguments()))


if __name__ == "__main__":
    main()
