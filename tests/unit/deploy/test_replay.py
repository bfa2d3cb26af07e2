"""What a replay would take, and how a place is written."""

import pytest
from trailweave.deploy.replay import Place, check, read_place
from trailweave.schemas.codec import Encoder, event_checker
from trailweave.schemas.errors import Fatal, Rejected
from trailweave.schemas.events import event_types
from trailweave.schemas.examples import example

NAME = "tool_requested"
TOPIC = event_types()[NAME].topic
RECORD = example(NAME)
KEY = RECORD["trace_id"].encode()
VALUE = Encoder().encode(NAME, RECORD)


def test_a_place_is_read_back_as_it_is_written() -> None:
    place = Place("trailweave.prompts", 3, 1234567)

    assert read_place(str(place)) == place


@pytest.mark.parametrize("text", ["", "topic/1", "topic@2", "t/x@1", "t/1@x", "t/1@-1"])
def test_a_text_that_is_no_place_says_how_to_write_one(text: str) -> None:
    with pytest.raises(Fatal, match="topic/partition@offset"):
        read_place(text)


def test_a_whole_event_under_its_key_is_taken() -> None:
    assert check(event_checker(), TOPIC, KEY, VALUE).event_id == RECORD["event_id"]


@pytest.mark.parametrize(
    ("topic", "key", "value", "code"),
    [
        (TOPIC, KEY, VALUE[:-3], "truncated"),
        (TOPIC, KEY, VALUE + b"x", "trailing_bytes"),
        (TOPIC, b"0" * 32, VALUE, "wrong_key"),
        ("trailweave.prompts", KEY, VALUE, "kind_mismatch"),
        (TOPIC, KEY, b"hello", "not_framed"),
    ],
)
def test_what_would_be_refused_again_is_not_taken(
    topic: str, key: bytes, value: bytes, code: str
) -> None:
    with pytest.raises(Rejected) as caught:
        check(event_checker(), topic, key, value)

    assert caught.value.reason.code == code
