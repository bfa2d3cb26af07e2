"""Whatever JSON stands where a field should: events, a reason, or one malformed record."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trailweave.producers.adapters.formats import FORMATS
from trailweave.producers.ingest import Malformed, read
from trailweave.producers.transport import default_encoder

ContextOf = Callable[..., Any]

SAMPLES = {
    "otlp": (
        "otlp/replayed-openai-chat-tool-calls-content-traces.json",
        "otlp/constructed-agent-tool-traces.json",
        "otlp/constructed-claude-code-logs.json",
        "otlp/sdkspans-vercel-ai-generatetext.json",
        "otlp/attributes-openinference-genai-chat-tool-calls.json",
    ),
    "opa": ("opa/constructed-traced-upload.json", "opa/docs-erased-event.json"),
    "vault": ("vault/constructed-openbao-lease-lifecycle.jsonl",),
    "mcp": ("mcp/2026-07-28/tools-call-flow.jsonl", "mcp/2025-11-25/tools-call-session.jsonl"),
}

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["true", "2026-11-20T20:00:00Z", "tools/call", "response", "0" * 32]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)


def documents(path: Path) -> list[Any]:
    text = path.read_text("utf-8")
    try:
        found = json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line]
    return found if isinstance(found, list) else [found]


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON value."""
    inner: list[tuple[Any, Any]] = list(enumerate(value)) if isinstance(value, list) else []
    if isinstance(value, dict):
        inner = list(value.items())
    return [here, *(each for key, part in inner for each in places(part, (*here, key)))]


def replaced(value: Any, place: tuple[Any, ...], by: Any) -> Any:
    if not place:
        return by
    key, *rest = place
    if isinstance(value, dict):
        return {**value, key: replaced(value[key], tuple(rest), by)}
    return [replaced(v, tuple(rest), by) if i == key else v for i, v in enumerate(value)]


@pytest.mark.parametrize("name", sorted(SAMPLES))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_place_ends_as_events_a_reason_or_malformed(
    name: str, vectors: Path, context_of: ContextOf, data: st.DataObject
) -> None:
    rows = documents(vectors / data.draw(st.sampled_from(SAMPLES[name])))
    place = data.draw(st.sampled_from(places(rows)[1:]))
    changed = replaced(rows, place, data.draw(JSON))
    lines = b"\n".join(json.dumps(row).encode() for row in changed)
    form, encoder = FORMATS[name], default_encoder()
    state, context = form.start(), context_of(name)
    made = [
        outcome.translated
        for outcome in read(BytesIO(lines), "file", form, state, context)
        if not isinstance(outcome, Malformed)
    ]

    for translated in (*made, *form.finish(state, context)):
        for event in translated.events:
            assert encoder.encode(event.name, event.record)
