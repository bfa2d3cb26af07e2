"""Frames survive being cut anywhere."""

from hypothesis import given
from hypothesis import strategies as st
from trailweave.producers.frames import Stored, read_frame, write_frame

STORED = st.builds(
    Stored,
    topic=st.sampled_from(["trailweave.tools", "trailweave.prompts"]),
    key=st.binary(max_size=40),
    value=st.binary(max_size=200),
    note=st.text(max_size=20),
)


@given(STORED)
def test_what_is_written_is_read_again(stored: Stored) -> None:
    frame = write_frame(stored)

    assert read_frame(frame, 0) == (stored, len(frame))


@given(STORED, st.data())
def test_a_frame_cut_short_is_none(stored: Stored, data: st.DataObject) -> None:
    frame = write_frame(stored)
    cut = data.draw(st.integers(0, len(frame) - 1))

    assert read_frame(frame[:cut], 0) is None


@given(STORED, st.data())
def test_a_changed_byte_of_the_payload_is_noticed(stored: Stored, data: st.DataObject) -> None:
    frame = bytearray(write_frame(stored))
    at = data.draw(st.integers(8, len(frame) - 1))
    frame[at] ^= 1

    assert read_frame(bytes(frame), 0) == (None, len(frame))


def test_zeros_after_a_power_cut_are_no_frame() -> None:
    assert read_frame(bytes(4096), 0) is None
