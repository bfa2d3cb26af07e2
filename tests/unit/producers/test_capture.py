"""What is kept of a content, by level."""

import pytest
from trailweave.producers.capture import Captor, Capture, CapturePolicy
from trailweave.schemas.errors import Rejected
from trailweave.schemas.hashing import TenantKey, keyed_hash, keyed_text_hash

KEY = TenantKey("k1", b"a key for tests")


@pytest.mark.parametrize(
    ("level", "text_kept", "hash_kept"),
    [
        ("metadata", False, False),
        ("hashed", False, True),
        ("redacted", True, True),
        ("full", True, True),
    ],
)
def test_a_level_keeps_what_it_says(level: Capture, text_kept: bool, hash_kept: bool) -> None:
    kept, digest = Captor(CapturePolicy(level, KEY)).text("content", "hello")

    assert kept == ("hello" if text_kept else None)
    assert digest == (keyed_text_hash(KEY, "hello") if hash_kept else None)


def test_without_a_key_there_is_no_hash() -> None:
    assert Captor(CapturePolicy("full")).text("content", "hello") == ("hello", None)


@pytest.mark.parametrize("level", ["metadata", "hashed", "redacted", "full"])
def test_a_secret_leaves_at_no_level_and_is_reported_at_every_one(level: Capture) -> None:
    captor = Captor(CapturePolicy(level, KEY))
    kept, _ = captor.json("arguments", {"password": "hunter2"})

    assert "hunter2" not in (kept or "")
    (found,) = captor.redactions()
    assert (found["kind"], found["field"]) == ("secret", "arguments")
    assert (found["hmac"] is None) == (level == "metadata")


def test_arguments_hash_alike_as_a_value_and_as_the_text_a_model_wrote() -> None:
    captor = Captor(CapturePolicy("full", KEY))
    value = {"b": 1.0, "a": ["é", None]}

    assert captor.json("arguments", value) == captor.json("arguments", '{"b": 1, "a":["é",null] }')
    assert captor.json("arguments", value)[1] == keyed_hash(KEY, value)


@pytest.mark.parametrize("text", ["NaN", "[1e999]", "1152921504606846976", "{", "\ud800", ""])
def test_a_text_that_is_no_canonical_json_is_kept_as_a_text(text: str) -> None:
    kept, digest = Captor(CapturePolicy("full", KEY)).json("result", text)

    assert kept is not None
    assert kept.startswith('"')
    assert digest is not None


@pytest.mark.parametrize("value", [2**60, float("nan"), object(), {1: 2}, b"x", ["\ud800"]])
def test_a_value_that_json_can_not_hold_is_refused_without_showing_it(value: object) -> None:
    with pytest.raises(Rejected, match="couldn't record arguments: it is no JSON value"):
        Captor(CapturePolicy("full", KEY)).json("arguments", value)


def test_the_users_filter_works_at_level_redacted_only() -> None:
    policy = [
        CapturePolicy(level, KEY, lambda text: text.replace("Ann", "[name]"))
        for level in ("redacted", "full")
    ]
    captors = [Captor(each) for each in policy]
    kept = [captor.text("content", "Ann called")[0] for captor in captors]

    assert kept == ["[name] called", "Ann called"]
    assert [len(captor.redactions()) for captor in captors] == [1, 0]
    assert captors[0].redactions()[0]["kind"] == "policy"


def test_half_a_surrogate_pair_is_no_error() -> None:
    assert Captor(CapturePolicy("full")).text("content", "a\ud800b") == ("a?b", None)
