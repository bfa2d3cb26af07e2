"""Clients of Kafka and ClickHouse, made from the settings; their exceptions become ours here."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit, urlunsplit

from trailweave.deploy.masking import masked
from trailweave.deploy.settings import BOOTSTRAP, Settings, SettingsError
from trailweave.schemas import events
from trailweave.schemas.errors import Fatal, Retryable

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client
    from confluent_kafka import Consumer, Producer
    from confluent_kafka.admin import AdminClient

#: How long a command waits for Kafka to answer one question.
KAFKA_TIMEOUT_S: Final = 10.0


class Unreachable(Retryable):
    """A service did not answer."""


@contextmanager
def kafka_errors(settings: Settings, what: str) -> Iterator[None]:
    """Turns librdkafka's exceptions into one sentence that begins with "couldn't `what`"."""
    from confluent_kafka import KafkaException

    try:
        yield
    except KafkaException as error:
        cause = error.args[0] if error.args else error
        text = cause.str() if hasattr(cause, "str") else str(cause)
        if hasattr(cause, "code") and _is_away(cause):
            raise Unreachable(
                f"couldn't {what}: no Kafka answers on {settings.kafka.get(BOOTSTRAP)} ({text});"
                " start `trailweave up`, or set TRAILWEAVE_KAFKA"
            ) from None
        raise Fatal(masked(f"couldn't {what}: {text}; look at the [kafka] settings")) from None


def _is_away(error: Any) -> bool:
    from confluent_kafka import KafkaError

    return error.code() in (
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
    )


def admin(settings: Settings) -> "AdminClient":
    """An admin client; use it inside `kafka_errors`."""
    from confluent_kafka.admin import AdminClient

    return AdminClient({**_quiet(settings), "client.id": "trailweave-cli"})


def consumer(settings: Settings, group: str, **more: str) -> "Consumer":
    """A consumer that commits nothing; `group` only names whose offsets it may ask for."""
    from confluent_kafka import Consumer

    fixed = {"group.id": group, "enable.auto.commit": "false", "isolation.level": "read_committed"}
    return Consumer({**_quiet(settings), **fixed, **more})


def producer(settings: Settings) -> "Producer":
    """A producer whose acknowledged records are safe, keyed as every client of ours keys."""
    from confluent_kafka import Producer

    fixed = {"enable.idempotence": "true", "acks": "all", "partitioner": "murmur2_random"}
    return Producer({"compression.type": "lz4", **_quiet(settings), **fixed})


def require_topics(settings: Settings, what: str) -> None:
    """Raise at once, and not after minutes of trying, when Kafka is away or has no topics yet."""
    with kafka_errors(settings, what):
        known = admin(settings).list_topics(timeout=KAFKA_TIMEOUT_S).topics
    missing = [topic for topic in events.event_topics() if topic not in known]
    if missing:
        raise Fatal(
            f"couldn't {what}: the topic {missing[0]} does not exist; run `trailweave topics apply`"
        )


def _quiet(settings: Settings) -> dict[str, str]:
    # librdkafka logs each failed connect to standard error by itself; the command says it once.
    return {"log_level": "0", **settings.kafka_config()}


def clickhouse_options(settings: Settings) -> dict[str, Any]:
    """What `clickhouse_connect.get_client` is to be called with."""
    wanted = settings.clickhouse
    scheme = urlsplit(settings.clickhouse_dsn()).scheme
    if scheme not in ("http", "https", "clickhouse", "clickhouses", "clickhousedb"):
        raise SettingsError(
            f"couldn't use {masked(wanted.dsn)!r} for clickhouse.dsn: write it as"
            " http://host:8123/database or https://host:8443/database"
        )
    files = {
        name: str(path)
        for name in ("ca_cert", "client_cert", "client_cert_key")
        if (path := getattr(wanted, name)) is not None
    }
    options: dict[str, Any] = {
        "dsn": wanted.dsn,
        "verify": wanted.verify,
        "connect_timeout": wanted.connect_timeout_s,
        "send_receive_timeout": wanted.query_timeout_s,
        **files,
    }
    if scheme in ("https", "clickhouses"):
        # The client looks at the port only, and would talk plain HTTP to any but 8443.
        options["interface"] = "https"
    if wanted.server_host_name:
        options["server_host_name"] = wanted.server_host_name
    return options


def clickhouse_dsn(settings: Settings) -> str:
    """The DSN with the TLS files in its query, where the load worker's client finds them."""
    options = clickhouse_options(settings)
    parts = urlsplit(settings.clickhouse_dsn())
    names = ("ca_cert", "client_cert", "client_cert_key", "server_host_name")
    more = {name: options[name] for name in names if name in options}
    if not settings.clickhouse.verify:
        more["verify"] = "false"
    query = "&".join(filter(None, (parts.query, urlencode(more))))
    return urlunsplit(parts._replace(query=query))


@contextmanager
def clickhouse(settings: Settings) -> Iterator["Client"]:
    """A client for the length of a command; its exceptions become one sentence."""
    import clickhouse_connect
    from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

    options = clickhouse_options(settings)
    # The driver logs each failure by itself; the command says it once.
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)
    try:
        client = clickhouse_connect.get_client(**options, autogenerate_session_id=False)
        try:
            yield client
        finally:
            client.close()
    except OperationalError as error:
        raise Unreachable(
            f"couldn't reach ClickHouse on {masked(options['dsn'])}: {_cause(error)};"
            " start `trailweave up`, or set TRAILWEAVE_CLICKHOUSE"
        ) from None
    except ClickHouseError as error:
        hint = "; run `trailweave tables apply`" if _no_table(error) else ""
        raise Fatal(f"couldn't ask ClickHouse: {_first_line(error)}{hint}") from None


def _no_table(error: Exception) -> bool:
    return "UNKNOWN_TABLE" in str(error) or "UNKNOWN_DATABASE" in str(error)


def _cause(error: Exception) -> str:
    """What the system said; the driver wraps it in its whole connection pool."""
    found = re.search(r"\[Errno -?\d+\] ([^'\")]+)", str(error))
    return found[1].strip() if found else _first_line(error)


def _first_line(error: Exception) -> str:
    lines = masked(str(error)).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
