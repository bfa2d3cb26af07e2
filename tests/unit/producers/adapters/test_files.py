"""Records of a file: found whatever its layout, and a broken one spoils no other."""

import json
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trailweave.producers.adapters import files
from trailweave.producers.adapters.files import Piece, decode_prefixed, split


def pieces(text: str) -> list[Piece]:
    return list(split(BytesIO(text.encode())))


def values(text: str) -> list[object]:
    return [piece.value if piece.problem is None else "broken" for piece in pieces(text)]


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ("lines", '{"a":1}\n{"a":2}\n'),
        ("lines with blanks and CRLF", '\r\n{"a":1}\r\n\r\n{"a":2}\r\n'),
        ("array on a line", '[{"a":1},{"a":2}]'),
        ("array over lines", '[\n {\n  "a": 1\n },\n {"a":2}\n]\n'),
        ("an array on each line", '[{"a":1}]\n[{"a":2}]\n'),
        ("byte order mark", '\ufeff{"a":1}\n{"a":2}'),
    ],
)
def test_layouts_are_told_apart_by_looking(layout: str, text: str) -> None:
    assert values(text) == [{"a": 1}, {"a": 2}], layout


def test_a_document_over_many_lines_is_one_record() -> None:
    assert values(json.dumps({"a": [1, {"b": 2}]}, indent=1)) == [{"a": [1, {"b": 2}]}]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a":1}\n{"a":\n{"a":2}\n', [{"a": 1}, "broken", {"a": 2}]),
        ('{"a":\n{"a":1}\n{"a":2}\n', ["broken", {"a": 1}, {"a": 2}]),
        ('[{"a":1},{"a" 5},{"a":2}]', [{"a": 1}, "broken", {"a": 2}]),
        ('[\n{"a":"]},{"},\n{"a":nope},\n{"a":2}\n]', [{"a": "]},{"}, "broken", {"a": 2}]),
        ('[{"a":1},{"a":2}', [{"a": 1}, {"a": 2}, "broken"]),
        ('[{"a":1}] and more', [{"a": 1}, "broken"]),
        ('{"a": 1,\n "b":\n', ["broken"]),
        ("not json\n", ["broken"]),
    ],
)
def test_a_broken_record_spoils_no_other(text: str, found: list[object]) -> None:
    assert values(text) == found


def test_a_broken_record_says_on_which_line_it_starts() -> None:
    broken = [p.line for p in pieces('[\n{"a":1},\n\n{"a":nope},\n{"a":2}]') if p.problem]

    assert broken == [4]


def test_a_line_over_the_limit_is_broken_and_the_next_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "LINE_BYTES_MAX", 50)

    assert values('{"a":1}\n"' + "x" * 300 + '"\n{"a":2}\n') == [{"a": 1}, "broken", {"a": 2}]


@pytest.mark.parametrize(
    "text", ['{"a":NaN}', '{"a":"\\ud800"}', "[" * 70 + "]" * 70, "[" * 5000, '{"a":1e999999}x']
)
def test_what_no_record_may_hold_is_broken(text: str) -> None:
    assert all(piece.problem for piece in split(BytesIO(b'{"k": ' + text.encode() + b"}")))


def test_bytes_that_are_no_text_are_broken() -> None:
    assert [p.problem for p in split(BytesIO(b'{"a":"\xff"}'))] == ["not UTF-8 at byte 6"]


def test_what_stands_before_a_line_is_passed_over_where_a_writer_puts_something_there() -> None:
    assert decode_prefixed(b'@cee: {"a":1}') == {"a": 1}


@given(st.binary(max_size=60))
def test_any_bytes_end_as_records_or_as_broken(raw: bytes) -> None:
    for piece in split(BytesIO(raw)):
        assert piece.line >= 1


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=8), max_size=3), max_size=5))
def test_every_array_comes_out_as_its_elements(rows: list[dict[str, str]]) -> None:
    assert values(json.dumps(rows, indent=1)) == rows
    assert values(json.dumps(rows, ensure_ascii=False)) == rows
