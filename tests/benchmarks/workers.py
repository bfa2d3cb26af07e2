"""The product's workers as processes of their own, as a platform team runs them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from trailweave.deploy.local.engines import LocalEngines
from trailweave.deploy.supervisor import Worker


class EndedError(Exception):
    """A worker that did not run to the end, and its last words."""


@contextmanager
def workers(both: LocalEngines, *names: str) -> Iterator[dict[str, int]]:
    """Run them on these engines; their process ids by name.

    They drain in the end, and are gone with this process, however it goes: one left behind would
    join whatever Kafka is next to take its broker's port.
    """
    env = {"TRAILWEAVE_KAFKA": both.kafka.address, "TRAILWEAVE_CLICKHOUSE": both.clickhouse.dsn}
    running = {name: Worker(name, (), env, both.data_dir / "workers") for name in names}
    with ExitStack() as stack:
        for worker in running.values():
            worker.start()
            stack.callback(worker.stop)
        yield {name: worker.pid for name, worker in running.items()}
        for name, worker in running.items():
            if not worker.running:
                raise EndedError(f"{name} ended: {worker.last_words()}")
