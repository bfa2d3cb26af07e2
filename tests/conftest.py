"""Fixtures for every test: one embedded Kafka and one embedded ClickHouse per run, real ones.

With pytest-xdist the workers of a run share them: the first that needs an engine starts it, the
others find its address in a file, and the starter stops it when nobody uses it any more. A test
keeps apart from others by `topic_prefix` and `database`, not by an engine of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import clickhouse_connect
import pytest
from hypothesis import settings
from trailweave.deploy.local.engines import ClickHouseEngine, KafkaEngine

from tests.processes import lives

# The same examples in every run, so that a red one is about the change at hand; `make soak` tries
# new ones, and many more. No deadline for one: on a busy machine it would tell about the machine.
settings.register_profile("quick", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=2_000, deadline=None)
settings.load_profile("quick")

# Every broker of these tests lives for a minute or two. The second compiler pays off later: without
# it a start takes two seconds of a core instead of four.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")

#: Another worker may still be in the middle of its longest test.
OTHERS_TIMEOUT_S = 600.0
OTHERS_POLL_S = 0.1


def pytest_collection_finish() -> None:
    """Keep the garbage collector from walking all of what lives to the end, again and again."""
    gc.freeze()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bootstrap server of the run's Kafka, as `host:port`."""

    def start(folder: Path) -> tuple[str, Callable[[], None]]:
        engine = KafkaEngine(folder)
        return engine.start(), engine.stop

    with _shared(_run_folder(tmp_path_factory) / "kafka", start) as address:
        yield address


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DSN of the run's ClickHouse, its database `default`."""

    def start(folder: Path) -> tuple[str, Callable[[], None]]:
        engine = ClickHouseEngine(folder)
        return engine.start(), engine.stop

    with _shared(_run_folder(tmp_path_factory) / "clickhouse", start) as dsn:
        yield dsn


@pytest.fixture
def topic_prefix() -> str:
    """What a test puts in front of its topics, groups and transactional ids."""
    return f"t{uuid.uuid4().hex[:12]}."


@pytest.fixture
def database(clickhouse: str) -> Iterator[str]:
    """The DSN of a database that only this test uses; dropped after it."""
    name = f"t{uuid.uuid4().hex[:12]}"
    with contextlib.closing(clickhouse_connect.get_client(dsn=clickhouse)) as client:
        client.command(f"CREATE DATABASE {name}")
        yield clickhouse.rpartition("/")[0] + "/" + name
        client.command(f"DROP DATABASE {name} SYNC")


def _run_folder(factory: pytest.TempPathFactory) -> Path:
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextlib.contextmanager
def _shared(folder: Path, start: Callable[[Path], tuple[str, Callable[[], None]]]) -> Iterator[str]:
    users = folder.with_name(folder.name + "-users")
    users.mkdir(parents=True, exist_ok=True)
    me = users / str(os.getpid())
    found = folder.with_name(folder.name + "-address.json")
    stop = None
    with _alone(folder):
        if found.exists():
            address = json.loads(found.read_text())
        else:
            address, stop = start(folder)
            found.write_text(json.dumps(address))
        me.touch()
    try:
        yield address
    finally:
        me.unlink()
        if stop is not None:
            deadline = time.monotonic() + OTHERS_TIMEOUT_S
            while time.monotonic() < deadline and not _stopped_alone(folder, users, found, stop):
                time.sleep(OTHERS_POLL_S)


def _stopped_alone(folder: Path, users: Path, found: Path, stop: Callable[[], None]) -> bool:
    with _alone(folder):
        if any(lives(int(user.name)) for user in users.iterdir()):
            return False
        # A worker that comes after this starts an engine of its own.
        found.unlink()
        stop()
        return True


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with folder.with_name(folder.name + "-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
