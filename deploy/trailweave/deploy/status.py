"""`trailweave status`: how far each worker is behind, how fresh the answers are, what is open."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from trailweave.deploy.account import TABLES, Moment, take_moment
from trailweave.deploy.clients import kafka_errors
from trailweave.deploy.output import utc
from trailweave.deploy.settings import Settings
from trailweave.schemas import events
from trailweave.sinks.ask import ask, ask_one

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

#: An open session is looked for among the events of so many hours; idle ends one in minutes.
OPEN_HOURS: Final = 24
#: Heartbeats missed before a producer counts as silent.
BEATS_MISSED_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Status:
    """The answer; lags are in records, ages in seconds."""

    lags: list[dict[str, Any]]
    tables: list[dict[str, Any]]
    open_sessions: int
    open_events: int
    dead_letters: int
    silent_producers: list[dict[str, Any]]


def take_status(settings: Settings, client: "Client", now: datetime) -> Status:
    """Ask Kafka and ClickHouse."""
    with kafka_errors(settings, "ask for the lag"):
        moment = take_moment(settings)
    tables = ask(client, "status")
    for row in tables:
        row["age_s"] = _age_s(row["newest"], now)
    still_open = ask_one(client, "status_open", hours=OPEN_HOURS)
    producers = ask(client, "account_producers")
    return Status(
        lags=lags(moment, {"join": settings.join.group, "load": settings.load.group}),
        tables=tables,
        open_sessions=still_open["sessions"],
        open_events=still_open["events"],
        dead_letters=next(row["records"] for row in tables if row["table"] == "dead_letters"),
        silent_producers=silent(producers, now),
    )


def lags(moment: Moment, groups: Mapping[str, str]) -> list[dict[str, Any]]:
    """Per worker and topic: the records between what it has committed and the end."""
    read = {
        "join": (events.event_topics(), moment.joined),
        "load": ((*events.event_topics(), *TABLES), moment.loaded),
    }
    rows = []
    for worker, (topics, marks) in read.items():
        for topic in topics:
            places = {p: b for p, b in moment.bounds.items() if p[0] == topic}
            behind = {
                p: b.end - (marks[p].offset if p in marks else b.start) for p, b in places.items()
            }
            if worker == "load":
                behind = {p: moment.unloaded[p] for p in places}
            rows.append(
                {
                    "worker": worker,
                    "group": groups[worker],
                    "topic": topic,
                    "end": sum(bound.end for bound in places.values()),
                    "lag": sum(max(0, lag) for lag in behind.values()),
                    "started": any(place in marks for place in places),
                }
            )
    return rows


def silent(producers: list[dict[str, Any]], now: datetime) -> list[dict[str, Any]]:
    """Producers that neither ended in order nor sent the heartbeats that were due."""
    found = []
    for row in producers:
        age_s = _age_s(row["last_recorded_at"], now) or 0.0
        if not row["final"] and age_s > BEATS_MISSED_MAX * row["interval_s"]:
            found.append({**row, "age_s": age_s})
    return found


def _age_s(moment: datetime | None, now: datetime) -> float | None:
    return None if moment is None else round((now.astimezone(UTC) - utc(moment)).total_seconds(), 1)
