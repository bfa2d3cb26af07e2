"""Layouts change no answer: what is remembered reads as the compiled reader reads."""

import random

import pytest
from trailweave.schemas import events, layouts
from trailweave.schemas.compiled import Reader, compile_reader
from trailweave.schemas.compiled_write import compile_writer
from trailweave.schemas.errors import Rejected
from trailweave.schemas.examples import example
from trailweave.schemas.layouts import remembering

TYPES = events.event_types()
WANTED = {name: tuple(f["name"] for f in kind.schema["fields"]) for name, kind in TYPES.items()}
PLAIN = {name: compile_reader(TYPES[name].schema, WANTED[name]) for name in TYPES}
WRITE = {name: compile_writer(TYPES[name].schema) for name in TYPES}


def remembered(name: str) -> Reader:
    return remembering(TYPES[name].schema, WANTED[name], PLAIN[name])


def taught(name: str, value: bytes) -> Reader:
    """A reader that has met the layout of `value` often enough to know it."""
    read = remembered(name)
    for _ in range(5):
        read(value, 0)
    return read


def answer(read: Reader, value: bytes) -> object:
    """What a reader says: the record, or why there is none."""
    try:
        return read(value, 0)
    except Rejected as error:
        return error.reason.code


@pytest.mark.parametrize("name", TYPES)
def test_a_known_layout_reads_as_the_plain_reader_does(name: str) -> None:
    value = WRITE[name](example(name), b"")

    assert taught(name, value)(value, 0) == PLAIN[name](value, 0)


@pytest.mark.parametrize("name", ["tool_requested", "model_responded", "session_ended"])
def test_any_change_of_a_known_record_is_read_as_the_plain_reader_reads_it(name: str) -> None:
    value = WRITE[name](example(name), b"")
    read = taught(name, value)
    chance = random.Random(name)
    for _ in range(1_500):
        changed = bytearray(value)
        for _ in range(chance.choice((1, 1, 2))):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        other = bytes(changed)

        assert answer(read, other) == answer(PLAIN[name], other), other.hex()


def test_every_single_bit_of_a_known_record_matters_or_is_read() -> None:
    value = WRITE["policy_decided"](example("policy_decided"), b"")
    read = taught("policy_decided", value)
    for place in range(len(value)):
        for bit in range(8):
            other = value[:place] + bytes([value[place] ^ 1 << bit]) + value[place + 1 :]

            assert answer(read, other) == answer(PLAIN["policy_decided"], other), (place, bit)


def test_a_text_beyond_ascii_is_no_layout() -> None:
    record = {**example("tool_requested"), "tool": "zahlung.prüfen"}
    value = WRITE["tool_requested"](record, b"")

    assert taught("tool_requested", value)(value, 0)["tool"] == "zahlung.prüfen"


def test_a_layout_holds_where_the_record_begins() -> None:
    value = WRITE["tool_executed"](example("tool_executed"), b"")
    read = taught("tool_executed", value)

    assert read(b"prefix" + value, 6) == PLAIN["tool_executed"](value, 0)


def test_what_never_repeats_is_not_learned_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[int] = []
    real = layouts._Walk.layout

    def counted(walk: layouts._Walk) -> object:
        walked.append(1)
        return real(walk)

    monkeypatch.setattr(layouts, "_FREE", 4)
    monkeypatch.setattr(layouts._Walk, "layout", counted)
    read = remembered("prompt_submitted")
    for size in range(200):
        for _ in range(4):
            record = {**example("prompt_submitted"), "content": "x" * size}
            read(WRITE["prompt_submitted"](record, b""), 0)

    assert len(walked) == 4
