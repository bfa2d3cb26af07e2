"""Stored and dead-lettered are all there is: join and load refuse the same bytes.

Load asks `validity`, join asks `group_key` and `chain.read`. An offset on which they disagree would
stand in a table and in the dead letters, or in neither.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import example, given, settings
from hypothesis import strategies as st
from trailweave.schemas import events
from trailweave.schemas.codec import event_checker
from trailweave.schemas.errors import Rejected
from trailweave.schemas.examples import example as example_of
from trailweave.schemas.validity import validity
from trailweave.stream_processors.chain import read
from trailweave.stream_processors.closing import close
from trailweave.stream_processors.verdict import RulesConfig

from tests.unit.stream_processors.builders import DECODER, ENCODER, TOPICS, TRACE, lane, source

CHECKER = event_checker()
EXAMPLES = {
    kind.name: ENCODER.encode(kind.name, example_of(kind.name)) for kind in events.all_types()
}
TRACE_IDS = {name: example_of(name).get("trace_id", TRACE).encode() for name in EXAMPLES}
EVENT_NAMES = events.event_names()


def load_accepts(topic: str, key: bytes | None, value: bytes | None) -> bool:
    try:
        validity(topic, key, value, CHECKER)
    except Rejected:
        return False
    return True


def join_accepts(topic: str, key: bytes | None, value: bytes | None) -> bool:
    """As a lane's only record: in a chain, or refused, and never neither or both."""
    held = lane()
    held.fold(TOPICS.index(topic), 0, 1, key, value)
    if held.refused:
        assert not held.sessions
        return False
    (session,) = held.sessions.values()
    found = read(session, source())
    assert len(found.chain.records) + len(found.refused) == 1
    return not found.refused


def mutations(value: bytes, chance: random.Random) -> Iterator[bytes]:
    """One to three damages: bits, bytes, lengths, cuts, additions, foreign heads and texts."""
    found = bytearray(value)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(found) + 1)
        match chance.randrange(9):
            case 0 if at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(found):
                found[at] = chance.choice((0, 1, 2, 3, 0x7F, 0x80, 0xC3, 0xFF))
            case 2:
                del found[at:]
            case 3:
                del found[at : at + chance.randint(1, 3)]
            case 4:
                found[at:at] = chance.randbytes(chance.randint(1, 3))
            case 5:
                found += chance.choice((b"\0", bytes(value), chance.randbytes(4)))
            case 6:
                found[:10] = chance.choice(list(EXAMPLES.values()))[:10]
            case 7:
                found[:10] = chance.choice((b"\0\0\0\0\1", b"\xc3\x01" + chance.randbytes(8), b""))
            case _:
                found[at : at + 2] = chance.choice(("é".encode(), b"\xc3\x28", b"\xed\xa0"))
        yield bytes(found)


def keys(own: bytes, chance: random.Random) -> bytes | None:
    return chance.choice((own, own, own, own, None, b"", own[:-1], own.upper(), b"f" * 32))


def agree(topic: str, key: bytes | None, value: bytes | None) -> bool:
    accepted = load_accepts(topic, key, value)
    assert accepted is join_accepts(topic, key, value), (topic, key, value)
    return accepted


@settings(max_examples=8 * settings().max_examples)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(EXAMPLES)))
def test_join_and_load_agree_on_damaged_events(seed: int, name: str) -> None:
    chance = random.Random(seed)
    topics = events.event_types()[name].topic if name in EVENT_NAMES else TOPICS[0]
    for value in mutations(EXAMPLES[name], chance):
        topic = topics if chance.random() < 0.8 else chance.choice(TOPICS)
        agree(topic, keys(TRACE_IDS[name], chance), value)


@settings(max_examples=4 * settings().max_examples)
@given(st.sampled_from(TOPICS), st.none() | st.binary(max_size=40), st.none() | st.binary())
@example(TOPICS[0], None, None)
@example(TOPICS[0], b"", b"")
def test_join_and_load_agree_on_any_bytes(
    topic: str, key: bytes | None, value: bytes | None
) -> None:
    agree(topic, key, value)


def test_every_example_is_accepted_in_its_topic_and_in_no_other() -> None:
    for name in EVENT_NAMES:
        accepted = [t for t in TOPICS if agree(t, TRACE_IDS[name], EXAMPLES[name])]
        assert accepted == [events.event_types()[name].topic]


def test_every_byte_of_every_event_may_be_changed_without_a_disagreement() -> None:
    chance = random.Random(11)
    for name in EVENT_NAMES:
        value = EXAMPLES[name]
        for at in chance.sample(range(len(value)), 40):
            for byte in (0x00, 0x80, 0xFF, value[at] ^ 2):
                changed = value[:at] + bytes([byte]) + value[at + 1 :]
                agree(events.event_types()[name].topic, TRACE_IDS[name], changed)


def test_records_that_are_no_events_are_refused_by_both() -> None:
    for name in events.RECORD_NAMES:
        assert not any(agree(topic, TRACE_IDS[name], EXAMPLES[name]) for topic in TOPICS)


@settings(max_examples=5 * settings().max_examples)
@given(seed=st.integers(0, 2**32))
def test_whatever_is_accepted_can_be_judged_and_stored(seed: int) -> None:
    chance = random.Random(seed)
    held = lane()
    for _ in range(4):
        name = chance.choice(EVENT_NAMES)
        topic = TOPICS.index(events.event_types()[name].topic)
        # Numbers and texts within the record change, and it stays an event now and then.
        value = bytearray(EXAMPLES[name])
        at = chance.randrange(120, len(value))
        value[at] = chance.randrange(256)
        stored = TRACE_IDS[name], bytes(value)
        held.fold(topic, held.positions[topic], 1, *stored)
    for session in list(held.sessions.values()):
        closing = close(session, "idle", held.turn(), source(DECODER), RulesConfig())
        assert closing is not None
        ENCODER.encode("chain", closing.chain)
        for finding in closing.findings:
            ENCODER.encode("finding", finding)
