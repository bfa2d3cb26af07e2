"""Settings and sample files for the tests of adapters."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from trailweave.producers.adapters.formats import FORMATS
from trailweave.producers.adapters.record import Context
from trailweave.producers.capture import Capture
from trailweave.producers.identity import Identity
from trailweave.producers.ingest import Malformed, read
from trailweave.schemas.hashing import TenantKey

VECTORS = Path(__file__).parents[5] / "shared" / "vectors"

ContextOf = Callable[..., Context]
Reading = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def vectors() -> Path:
    """The folder of sample files."""
    if not VECTORS.is_dir():
        pytest.skip("the sample files beside the repository are not there")
    return VECTORS


@pytest.fixture
def context_of() -> ContextOf:
    """Settings of one format, everything kept unless told otherwise."""

    def make(name: str, capture: Capture = "full", **more: Any) -> Context:
        settings: dict[str, Any] = {"key": TenantKey("k1", b"made-up key"), **more}
        return Context("acme", name, Identity("service_account", name), capture=capture, **settings)

    return make


@pytest.fixture
def reading(context_of: ContextOf) -> Reading:
    """Reads records of one format as one file, and gives the events' fields, in order."""

    def run(name: str, *records: Any, context: Context | None = None) -> list[dict[str, Any]]:
        lines = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in records]
        form, made = FORMATS[name], []
        state, used = FORMATS[name].start(), context or context_of(name)
        for outcome in read(BytesIO(b"\n".join(lines)), "file", form, state, used):
            assert not isinstance(outcome, Malformed), str(outcome)
            made += [event.record for event in outcome.translated.events]
        for left in form.finish(state, used):
            made += [event.record for event in left.events]
        return made

    return run
