"""Where a Confluent Schema Registry is set: its client, what workers read, what commands write."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from trailweave.deploy.masking import masked
from trailweave.deploy.settings import Settings, SettingsError
from trailweave.schemas.codec import Encoder
from trailweave.schemas.errors import Fatal
from trailweave.schemas.schema_topic import SchemaTopic
from trailweave.schemas.standing import ByFraming, StandingRule, WriterStandings

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient


@contextmanager
def writer_schemas(settings: Settings) -> Iterator[WriterStandings]:
    """What join and load ask for the schemas of other versions."""
    rule = StandingRule(round(settings.schemas.unknown_wait_s * 1000))
    with closing(SchemaTopic(settings.kafka_config(), rule=rule)) as topic:
        if not settings.schemas.registry:
            yield topic
            return
        with registry_client(settings) as client:
            from trailweave.schemas.registry import RegistrySchemas

            yield ByFraming(topic, RegistrySchemas(client, rule=rule))


def writer(settings: Settings) -> Encoder | None:
    """An encoder with the registry's ids, all our schemas registered; None without a registry.

    Raises `Retryable` if the registry is away, `Fatal` if it refuses us or a schema.
    """
    if not settings.schemas.registry:
        return None
    with registry_client(settings) as client:
        from trailweave.schemas.registry import register_all

        return Encoder(register_all(client))


def registry_client(settings: Settings) -> "SchemaRegistryClient":
    """The client; a context manager."""
    try:
        from confluent_kafka.schema_registry import SchemaRegistryClient
    except ModuleNotFoundError as error:
        raise Fatal(
            f"couldn't use schemas.registry: the package {error.name} is not installed;"
            ' install it with pip install "trailweave[registry]"'
        ) from None
    url = settings.schemas.registry
    try:
        return SchemaRegistryClient.new_client({"url": url})
    except ValueError:
        raise SettingsError(
            f"couldn't use {masked(url)!r} for schemas.registry: write it as https://host:8081"
        ) from None
