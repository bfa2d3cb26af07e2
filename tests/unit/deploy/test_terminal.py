"""What an attacker wrote must not drive the terminal of whoever reads it."""

import io
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from trailweave.deploy.output import cell, json_text, table
from trailweave.deploy.terminal import plain, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("line\r\nother", "line\\x0d\\x0aother"),
        ("abc\u202edcb", "abc\\u202edcb"),
        ("\U000e0041", "\\U000e0041"),
        ("half \ud800", "half \\ud800"),
        ("Zürich 日本 🙂", "Zürich 日本 🙂"),
    ],
)
def test_controls_are_written_and_not_obeyed(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(st.text(st.characters()))
def test_nothing_unprintable_comes_through(text: str) -> None:
    shown = plain(text)

    assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in shown)
    assert shown.encode().decode() == shown


def test_a_long_text_is_cut_before_it_is_escaped() -> None:
    assert len(shortened("\x1b" * 1_000_000)) < 2_000


def test_content_is_never_read_as_markup() -> None:
    screen = io.StringIO()
    hostile = "[bold red]x[/] [link=http://evil]y[/link] :skull:"
    Console(file=screen, width=200).print(table(None, ("a",), [(hostile,)]))

    assert hostile in screen.getvalue()


def test_a_cell_holds_no_control_even_in_a_list() -> None:
    assert cell(["a\x1b[2J", "b"]).plain == "a\\x1b[2J, b"


def test_json_is_ascii_whatever_it_holds() -> None:
    text = json_text({"a": "\x1b \u202e \ud800 é", "b": b"\xff"})

    assert set(text) <= set(string.printable)
    assert "\x1b" not in text
