"""The join in a Faust table, in memory with its changelog on Kafka, at least once."""

import sys
from typing import Any

import faust

from tests.benchmarks.programs.told import arguments, first


def main() -> None:
    """Run until killed."""
    told = arguments()
    app = faust.App(
        "bench-faust",
        broker=f"kafka://{told.broker}",
        store="memory://",
        topic_partitions=told.partitions,
        topic_replication_factor=1,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        producer_compression_type="lz4",
        producer_linger=0.02,
        datadir=str(told.state),
    )
    raw: dict[str, Any] = {"key_type": bytes, "value_type": bytes}
    raw |= {"key_serializer": "raw", "value_serializer": "raw"}
    events, out = app.topic(*told.topics, **raw), app.topic(told.out, **raw)
    table = app.Table("open", default=bytes, partitions=told.partitions, schema=faust.Schema(**raw))

    async def join(stream: Any) -> None:
        seen = False
        async for key, value in stream.items():
            if not seen:
                seen = True
                first()
            held = table[key]
            count = int.from_bytes(held[:2]) + 1
            joined = held[2:] + told.piece(value)
            if count < told.per_trace:
                table[key] = count.to_bytes(2) + joined
            else:
                del table[key]
                await out.send(key=key, value=joined)

    app.agent(events)(join)
    sys.argv = ["faust", "worker", "--without-web", "--loglevel=warn"]
    app.main()


if __name__ == "__main__":
    main()
