"""Two of each service for the contract tests: the embedded one, and the official image.

The embedded front only claims to be ClickHouse; these tests hold it to what a server does. The
images need Docker; where it doesn't answer, their half of the tests is skipped and says so.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from trailweave.deploy.local.datadir import free_port
from trailweave.deploy.local.kafka import SETTINGS

#: The versions that are embedded.
KAFKA_IMAGE = "apache/kafka:4.3.1"
CLICKHOUSE_IMAGE = "clickhouse/clickhouse-server:26.9"
PULL_AND_START_TIMEOUT_S = 300
DOCKER_TIMEOUT_S = 5


@pytest.fixture(scope="session")
def docker() -> None:
    """Skip unless a Docker daemon answers."""
    library: Any = importlib.import_module("docker")  # ships no types
    refusal = ""
    with warnings.catch_warnings():
        # The library leaves the socket open that it couldn't reach a daemon through.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            with contextlib.closing(library.from_env(timeout=DOCKER_TIMEOUT_S)) as client:
                client.ping()
        except library.errors.DockerException as why:
            refusal = str(why)
        gc.collect()
    if refusal:
        pytest.skip(f"Docker doesn't answer here, so the official images can't run: {refusal}")


@pytest.fixture(scope="session")
def kafka_image(docker: None) -> Iterator[str]:
    """The bootstrap server of the official Kafka image, set up as the embedded one is."""
    # testcontainers' own Kafka module knows another vendor's image only.
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    # A broker tells clients its address, so the port on this machine has to be known before.
    port = free_port()
    container = DockerContainer(KAFKA_IMAGE).with_bind_ports(9092, port)
    environment = {
        **SETTINGS,
        "node.id": "1",
        "process.roles": "broker,controller",
        "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "controller.quorum.voters": "1@localhost:9093",
    }
    for name, value in environment.items():
        container.with_env("KAFKA_" + name.upper().replace(".", "_"), value)
    started = LogMessageWaitStrategy("Kafka Server started")
    container.waiting_for(started.with_startup_timeout(PULL_AND_START_TIMEOUT_S))
    with container:
        yield f"127.0.0.1:{port}"


@pytest.fixture(scope="session")
def clickhouse_image(docker: None) -> Iterator[str]:
    """The DSN of the official ClickHouse image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from testcontainers.community.clickhouse import ClickHouseContainer

    container = ClickHouseContainer(CLICKHOUSE_IMAGE, username="test", password="test", dbname="t")
    with container:
        host, port = container.get_container_host_ip(), container.get_exposed_port(8123)
        yield f"http://test:test@{host}:{port}/default"


@pytest.fixture(params=["embedded", "image"])
def either_kafka(request: pytest.FixtureRequest) -> str:
    """A bootstrap server: the embedded broker's, then the image's."""
    address = request.getfixturevalue("kafka" if request.param == "embedded" else "kafka_image")
    assert isinstance(address, str)
    return address


@pytest.fixture(params=["embedded", "image"])
def either_clickhouse(request: pytest.FixtureRequest, topic_prefix: str) -> Iterator[str]:
    """The DSN of an empty database: in the embedded engine, then in the image."""
    kind = "clickhouse" if request.param == "embedded" else "clickhouse_image"
    dsn = request.getfixturevalue(kind)
    name = topic_prefix.rstrip(".")
    with contextlib.closing(clickhouse_connect.get_client(dsn=dsn)) as admin:
        admin.command(f"CREATE DATABASE {name}")
        yield dsn.rpartition("/")[0] + "/" + name
        admin.command(f"DROP DATABASE {name} SYNC")


@pytest.fixture
def client(either_clickhouse: str) -> Iterator[Client]:
    """clickhouse-connect's own client, unmodified, with its defaults."""
    with contextlib.closing(clickhouse_connect.get_client(dsn=either_clickhouse)) as made:
        yield made
