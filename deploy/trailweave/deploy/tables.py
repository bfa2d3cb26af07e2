"""The tables that the settings ask for, and their DDL."""

import dataclasses
from typing import get_args

from trailweave.deploy.clients import clickhouse
from trailweave.deploy.settings import Settings, SettingsError
from trailweave.sinks.tables import PROFILES, Profile, statements


def profile(settings: Settings) -> Profile:
    """The retention profile with the settings' own values in it; raises `SettingsError`."""
    wanted = settings.tables
    if wanted.profile not in PROFILES:
        raise SettingsError(
            f"couldn't use {wanted.profile!r} for tables.profile: it must be one of"
            f" {', '.join(PROFILES)}"
        )
    engines = get_args(Profile.__annotations__["engine"]) or ("local", "replicated")
    if wanted.engine not in engines:
        raise SettingsError(
            f"couldn't use {wanted.engine!r} for tables.engine: it must be one of"
            f" {', '.join(engines)}"
        )
    own = {
        name: value
        for name in ("keep_days", "content_days", "hot_days", "storage_policy", "cluster")
        if (value := getattr(wanted, name)) is not None
    }
    return dataclasses.replace(PROFILES[wanted.profile], engine=wanted.engine, **own)  # type: ignore[arg-type]


def apply_tables(settings: Settings) -> None:
    """Create what is missing and replace the views; raises `TrailError`."""
    from trailweave.sinks.clickhouse import apply_tables as apply

    with clickhouse(settings) as client:
        apply(client, profile(settings))


def check_tables(settings: Settings) -> list[str]:
    """How the database differs from what is wanted, one sentence per difference."""
    from trailweave.sinks.clickhouse import check_tables as check

    with clickhouse(settings) as client:
        return check(client, profile(settings))


def ddl(settings: Settings) -> list[str]:
    """Every CREATE statement, for who would rather run them by hand."""
    return statements(profile(settings))
