"""Calls into librdkafka with a timeout that holds. Edge.

Some of its calls wait for ever: without a timeout of their own (`commit`), or in spite of it, when
the coordinator's broker was missing from the metadata for a moment, as while a broker starts
(librdkafka issues 5456 and 5511).
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class LateError(Exception):
    """No answer in time; whether the call still takes effect, nobody knows."""


def answer_within(
    timeout_s: float, call: Callable[[], T], meanwhile: Callable[[], bool] = lambda: False
) -> T:
    """What the call returns or raises; `LateError` when it does neither within `timeout_s` seconds.

    Until it does, `meanwhile` is called as long as it says that it has more to do.

    It runs in a thread of its own. Who still waits there is left behind with its client: never use
    that client again, not even to close it, which would wait for the same answer; and take over its
    place in the group or its transactional id with a new one, so that whatever the old one may
    still send is refused.
    """
    answers: list[T] = []
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            failed.append(error)

    asking = threading.Thread(target=ask, name="kafka-call", daemon=True)
    until_s = time.monotonic() + timeout_s
    asking.start()
    while asking.is_alive() and time.monotonic() < until_s and meanwhile():
        pass
    asking.join(max(0.0, until_s - time.monotonic()))
    if asking.is_alive():
        raise LateError
    if failed:
        raise failed[0]
    return answers[0]
