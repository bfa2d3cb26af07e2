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


def test_while_a_call_waits_something_else_is_done_as_long_as_there_is_any() -> None:
    end, done = threading.Event(), list[None]()

    def meanwhile() -> bool:
        done.append(None)
        if len(done) == 3:
            end.set()
        return len(done) < 3

    assert answer_within(LONG_S, end.wait, meanwhile)
    assert len(done) == 3


def test_what_is_done_meanwhile_takes_no_more_time_than_the_call() -> None:
    end = threading.Event()

    def meanwhile() -> bool:
        asking.wait(LONG_S)
        end.set()
        return True

    asking = threading.Event()

    def call() -> bool:
        asking.set()
        return end.wait()

    assert answer_within(LONG_S, call, meanwhile)


def test_a_call_that_never_answers_is_given_up_although_there_is_more_to_do() -> None:
    end = threading.Event()
    try:
        with pytest.raises(LateError):
            answer_within(0.0, end.wait, lambda: True)
    finally:
        end.set()
