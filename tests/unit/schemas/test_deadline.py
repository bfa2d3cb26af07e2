"""A timeout that holds, whatever the call does."""

import threading

import pytest
from trailweave.schemas.deadline import LateError, answer_within

LONG_S = 60.0


def test_the_calls_answer_is_returned() -> None:
    assert answer_within(LONG_S, lambda: 7) == 7


def test_what_the_call_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        answer_within(LONG_S, lambda: 1 // 0)


def test_a_call_that_never_answers_is_given_up() -> None:
    end = threading.Event()
    try:
        with pytest.raises(LateError):
            answer_within(0.0, end.wait)
    finally:
        end.set()
