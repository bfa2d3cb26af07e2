"""Rules of one's own as they should not be: which, the environment of the session says."""

import os
import sys
import threading
from collections.abc import Iterator

from trailweave.stream_processors.chain import Chain
from trailweave.stream_processors.rules import Hit
from trailweave.stream_processors.rules.rule import rule

sys.stdout.write("a module may print\n")


@rule("low", controls=(), expected="nothing", next_step="nothing")
def misbehaves(chain: Chain) -> Iterator[Hit]:
    """Does what the session asks for."""
    how = chain.of("session_started")[0]["environment"]
    sys.stdout.write("a rule may print\n")
    if how == "raise":
        yield Hit("session", "found before it failed")
        raise ValueError("secret-in-the-text")
    if how == "endless":
        while True:
            pass
    if how == "slow":
        threading.Event().wait()
    if how == "huge memory":
        yield Hit("session", "x" * len(bytearray(8 << 30)))
    if how == "huge answer":
        for number in range(10_000):
            yield Hit(f"{number}", "x" * 100_000)
    if how == "exit":
        os._exit(3)


@rule("high", controls=(), expected="nothing", next_step="nothing")
def beside_it(chain: Chain) -> Iterator[Hit]:
    """Always finds something."""
    yield Hit("session", "beside it", (chain.records[0], chain.records[0].copy()))


RULES = [misbehaves, beside_it]
