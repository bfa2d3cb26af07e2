"""What a Schema Registry in the settings changes for workers and for commands that send."""

from __future__ import annotations

from collections import Counter

import pytest
from trailweave.deploy.fleet.fleet import Fleet
from trailweave.deploy.registry import writer, writer_schemas
from trailweave.deploy.settings import Schemas, Settings, SettingsError
from trailweave.schemas.codec import CONFLUENT, SINGLE_OBJECT, NoSchemas
from trailweave.schemas.schema_topic import SchemaTopic
from trailweave.schemas.standing import ByFraming, Standing

KAFKA = {"bootstrap.servers": "127.0.0.1:1"}
START_US = 1_750_000_000_000_000


def settings(registry: str = "") -> Settings:
    return Settings(kafka=KAFKA, schemas=Schemas(registry=registry))


class Says(NoSchemas):
    """Always the same."""

    def __init__(self, standing: Standing) -> None:
        self._standing: Standing = standing

    def standing(self, *_: object) -> Standing:
        return self._standing


def test_ids_are_asked_of_the_registry_and_fingerprints_of_the_topic() -> None:
    both = ByFraming(published=Says("known"), registered=Says("unknown"))

    assert both.standing(b"8 bytes!", 1, 1) == "known"
    assert both.standing(b"four", 1, 1) == "unknown"


def test_workers_ask_the_topic_and_a_registry_only_where_one_is_set() -> None:
    with writer_schemas(settings()) as alone, writer_schemas(settings("mock://workers")) as both:
        assert isinstance(alone, SchemaTopic)
        assert isinstance(both, ByFraming)


def test_commands_write_with_the_registrys_ids_where_one_is_set() -> None:
    fleet = Fleet(20, 1, START_US, 0.1, writer=writer(settings("mock://commands")))
    framings = Counter((sent.kind == "corrupt", sent.value[:1]) for sent in fleet)

    assert set(framings) == {(False, CONFLUENT), (True, SINGLE_OBJECT[:1])}
    assert writer(settings()) is None


def test_an_address_that_is_none_is_an_error_without_its_password() -> None:
    with pytest.raises(SettingsError, match=r"schemas\.registry") as caught:
        writer(settings("//user:hidden@host"))

    assert "hidden" not in str(caught.value)
