"""Avro's variable-length numbers, held against fastavro's."""

from io import BytesIO

import fastavro
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from trailweave.schemas.varint import read_varint, write_varint

LONG_MIN, LONG_MAX = -(1 << 63), (1 << 63) - 1


def by_fastavro(number: int) -> bytes:
    out = BytesIO()
    fastavro.schemaless_writer(out, "long", number)
    return out.getvalue()


@given(st.integers(0, 63).flatmap(lambda bits: st.integers(-(1 << bits), (1 << bits) - 1)))
@example(LONG_MIN)
@example(LONG_MAX)
def test_a_number_of_any_size_is_written_as_by_fastavro_and_read_back(number: int) -> None:
    written = write_varint(number)
    assert written == by_fastavro(number)
    assert read_varint(written, 0) == ((number << 1) ^ (number >> 63), len(written))


@pytest.mark.parametrize("bits", range(1, 64))
def test_the_numbers_at_every_change_of_length_are_written_as_by_fastavro(bits: int) -> None:
    for number in (1 << bits, (1 << bits) - 1, -(1 << bits), -(1 << bits) - 1):
        if LONG_MIN <= number <= LONG_MAX:
            assert write_varint(number) == by_fastavro(number)


@pytest.mark.parametrize("number", [LONG_MAX + 1, LONG_MIN - 1, 1 << 64, -(1 << 65), 1 << 200])
def test_what_does_not_fit_in_64_bits_is_an_error(number: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        write_varint(number)
