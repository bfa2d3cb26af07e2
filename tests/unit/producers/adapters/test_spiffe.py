"""SPIFFE IDs: rejected, never repaired."""

import json
from pathlib import Path

from trailweave.producers.adapters.spiffe import SpiffeId, read_spiffe_id


def test_every_published_id_is_accepted_or_rejected_as_stated(vectors: Path) -> None:
    lines = (vectors / "spiffe" / "spiffe-ids.jsonl").read_text("utf-8").splitlines()
    cases = [json.loads(line) for line in lines if line]

    wrong = [c["id"] for c in cases if (read_spiffe_id(c["id"]) is not None) != c["valid"]]

    assert len(cases) == 56
    assert wrong == []


def test_an_id_is_taken_apart_and_put_together_again() -> None:
    found = read_spiffe_id("spiffe://example.org/agent/claims")

    assert found == SpiffeId("example.org", "/agent/claims")
    assert str(found) == "spiffe://example.org/agent/claims"


def test_an_id_longer_than_the_specification_allows_is_none() -> None:
    assert read_spiffe_id("spiffe://example.org/" + "a" * 2028) is None
    assert read_spiffe_id("spiffe://" + "a" * 256 + "/x") is None
