"""The definitions in tables.sql, as text and as data."""

import re

import pytest
from trailweave.schemas.errors import Fatal
from trailweave.sinks import tables


@pytest.mark.parametrize("name", tables.PROFILES)
def test_every_placeholder_is_filled_in(name: str) -> None:
    made = tables.statements(tables.PROFILES[name])

    assert len(made) == len(tables.TABLES) + len(tables.VIEWS)
    assert not [statement for statement in made if "$" in statement]


def test_every_table_turns_deduplication_on() -> None:
    made = tables.statements(tables.PROFILES["ai_act"])[: len(tables.TABLES)]

    assert all(f"non_replicated_deduplication_window = {tables.DEDUP_WINDOW}" in s for s in made)


def test_every_table_expires_by_broker_time() -> None:
    made = tables.statements(tables.PROFILES["ai_act"])[: len(tables.TABLES)]

    assert all("recorded_at) + INTERVAL 185 DAY" in statement for statement in made)


def test_every_sorting_key_ends_in_the_records_place() -> None:
    made = tables.statements(tables.PROFILES["ai_act"])[: len(tables.TABLES)]

    ends = ("topic_id, partition, offset, ordinal", "letter_offset, ordinal")
    for statement in made:
        (key,) = re.findall(r"^ORDER BY \(([^)]*)\)", statement, re.MULTILINE)
        assert key.strip().endswith(ends)


def test_hot_parts_move_only_where_there_is_a_place_to_move_to() -> None:
    cold = tables.Profile(366, 93, hot_days=93, storage_policy="tiered")

    assert "TO VOLUME" not in "".join(tables.statements(tables.PROFILES["pci"]))
    assert "INTERVAL 93 DAY TO VOLUME 'cold'" in "".join(tables.statements(cold))


def test_a_replicated_profile_names_its_cluster() -> None:
    made = tables.statements(tables.Profile(10, 5, engine="replicated", cluster="c1"))

    assert all("ON CLUSTER `c1`" in statement for statement in made)
    assert "ENGINE = ReplicatedReplacingMergeTree" in made[0]


def test_content_cannot_outlive_its_row() -> None:
    with pytest.raises(Fatal):
        tables.Profile(keep_days=5, content_days=6)


def test_columns_are_read_with_types_and_defaults() -> None:
    found = {column.name: column for column in tables.columns("events")}

    assert found["recorded_at"].type == "DateTime64(3, 'UTC')"
    assert found["tool"].default == "`body.own.tool`"
    assert found["tool"].type == "LowCardinality(String)"
    assert found["body.own.tool"].type == "String"
    assert found["body.own.expires_at"].type == found["expires_at"].type
    assert found["record"].type == "String"


def test_an_analyst_is_granted_every_column_but_content() -> None:
    grants = "\n".join(tables.role_statements())
    (events,) = re.findall(r"SELECT\(([^)]*)\) ON events TO trailweave_analyst", grants)
    granted = set(events.split(", "))

    stored = {column.name for column in tables.columns("events") if "." not in column.name}
    assert granted == stored - {"record"}


def test_no_grant_of_a_whole_table_holds_content() -> None:
    whole = re.findall(r"SELECT ON (\w+) TO (\w+)", "\n".join(tables.role_statements()))

    with_content = {"events", "dead_letters", "events_distinct", "dead_letters_distinct"}
    assert {role for table, role in whole if table in with_content} == {"trailweave_investigator"}
