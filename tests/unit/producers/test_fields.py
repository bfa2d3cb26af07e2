"""The event methods' keyword arguments are the schemas' fields, no more and no fewer."""

from typing import get_type_hints

import pytest
from trailweave.producers.fields import (
    FIELDS_OF,
    SESSION_ENVELOPE,
    EventFields,
    SessionFields,
)
from trailweave.schemas import events

#: Given to the methods under another name, or made by them.
MADE = {
    "prompt_submitted": {"content", "content_hash"},
    "context_retrieved": {"content", "content_hash"},
    "memory_accessed": {"store", "content", "content_hash"},
    "model_responded": {"provider", "proposed", "content", "content_hash"},
    "tool_requested": {"call_id_source", "tool", "arguments", "arguments_hash"},
    "tool_executed": {"call_id", "result", "result_hash", "arguments_hash"},
    "policy_decided": {"effect", "input_hash", "arguments_hash", "modified_arguments_hash"},
    "guardrail_checked": {"guardrail", "verdict"},
    "approval_requested": {"context_hash"},
    "approval_decided": {"approval_id", "effect", "by", "arguments_hash"},
    "credential_issued": {"credential_id"},
    "credential_used": {"credential_id"},
    "credential_renewed": {"credential_id"},
    "credential_rotated": {"credential_id"},
    "credential_revoked": {"credential_id"},
    "downstream_observed": {"system", "operation"},
}
COMMON = set(get_type_hints(EventFields))


def names(fields: list[events.Json]) -> set[str]:
    return {field["name"] for field in fields}


def test_every_event_but_the_sessions_own_has_a_method() -> None:
    assert set(FIELDS_OF) == set(events.event_names()) - {"session_started", "session_ended"}


@pytest.mark.parametrize("name", FIELDS_OF)
def test_an_events_arguments_are_its_own_fields(name: str) -> None:
    arguments = set(get_type_hints(FIELDS_OF[name])) - COMMON

    assert arguments == names(events.own_fields(name)) - MADE[name]


def test_what_every_event_takes_stands_in_the_envelope() -> None:
    envelope = names(events.envelope_fields("head")) | names(events.envelope_fields("tail"))

    assert COMMON - envelope == {"correlate"}
    assert envelope >= SESSION_ENVELOPE


def test_a_sessions_arguments_are_those_of_its_start_and_the_envelope() -> None:
    own = names(events.own_fields("session_started")) - {"task"}

    assert set(get_type_hints(SessionFields)) - SESSION_ENVELOPE - {"scopes"} == own
