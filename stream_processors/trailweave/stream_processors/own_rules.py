"""The user's own rules, asked of every chain in a process of their own. Edge.

`[own]` in rules.toml names a module with `RULES`, made with the same decorator as ours
(`rules.rule`). Whoever closes sessions holds an `OwnRules`, and so a process of its own:

- each chain is sent there and its answer waited for, `deadline_s` at the most;
- a rule that raises is not evaluable for that chain;
- without an answer in time, or with none that can be read, the process is killed, all own rules are
  not evaluable for that chain, and another process is started; after `FAILURES_MAX` of these within
  `PAUSE_S` not before `PAUSE_S` have passed. So a bad rule costs the join a bounded part of its
  time, and never a session.

What a finding of theirs rests on is decided by content, as with ours, but whether a process was
there is not: the verdict names what was not evaluable, and `reassess` asks again.
"""

import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Final

from trailweave.stream_processors.chain import Chain
from trailweave.stream_processors.rules import Hit, Rule
from trailweave.stream_processors.verdict import OwnConfig, OwnVerdict, RulesConfig

log = logging.getLogger(__name__)

#: The first chain waits so long for the module's import.
START_S: Final = 20.0
FAILURES_MAX: Final = 3
PAUSE_S: Final = 60.0
#: A rule that fails is named in the log so often at the most.
SAY_INTERVAL_S: Final = 60.0
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
#: Both ends of the pipe.
_PIPE_BYTES: Final = 1024 * 1024


class _FailedError(Exception):
    """The process gave no answer that can be used."""


class OwnRules:
    """One process with the user's rules. Not thread-safe."""

    def __init__(
        self, own: OwnConfig, config: RulesConfig, on_failed: Callable[[], None] = lambda: None
    ) -> None:
        """Starts it; `on_failed` is called for every rule that raised and every lost process."""
        self._own, self._config, self._on_failed = own, config, on_failed
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        #: By name; empty until the module was imported for the first time.
        self._rules: dict[str, Rule] = {}
        self._ready = False
        self._failures: deque[float] = deque(maxlen=FAILURES_MAX)
        self._start_at = 0.0
        self._say_at: dict[str, float] = {}
        self._start()

    def __call__(self, chain: Chain) -> OwnVerdict:
        """What the rules say of a chain."""
        if self._pipe is None and time.monotonic() >= self._start_at:
            self._start()
        if self._pipe is None:
            return self._nothing()
        try:
            if not self._ready:
                self._meet(self._pipe)
            return self._answer(self._pipe, chain)
        except (_FailedError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
            self._lost(str(error) if isinstance(error, _FailedError) else type(error).__name__)
            return self._nothing()

    def close(self) -> None:
        """End the process; it holds nothing."""
        process, self._process = self._process, None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _nothing(self) -> OwnVerdict:
        return OwnVerdict([], sorted(self._rules) or [self._own.module])

    # --- one chain ---

    def _answer(self, pipe: Connection, chain: Chain) -> OwnVerdict:
        asked = (
            chain.tenant, chain.trace_id, chain.records, chain.duplicates, chain.conflicts,
            chain.times, chain.ahead,
        )  # fmt: skip
        pipe.send_bytes(pickle.dumps(asked, pickle.HIGHEST_PROTOCOL))
        said = self._received(pipe, self._own.deadline_s)
        for name, why in said["failed"].items():
            self._on_failed()
            self._say(name, f"couldn't ask the own rule {name}: {why}; it is not evaluable")
        found: dict[str, list[Hit]] = {}
        for name, subject, summary, events in said["hits"]:
            records = tuple(chain.records[index] for index in events)
            found.setdefault(name, []).append(Hit(str(subject), str(summary), records))
        lacking = {*map(str, said["not_evaluable"]), *said["failed"]}
        return OwnVerdict(
            [(self._rules[name], hits) for name, hits in found.items()],
            sorted(lacking),
            frozenset(self._rules.keys() - lacking),
        )

    def _received(self, pipe: Connection, timeout_s: float) -> Any:
        if not pipe.poll(timeout_s):
            raise _FailedError(f"no answer within {timeout_s:g} s")
        return json.loads(pipe.recv_bytes(ANSWER_BYTES_MAX))

    # --- the process's life ---

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            limit_s = max(1, int(self._own.deadline_s + 0.999))
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                # Neither a chain nor the rest of an answer is waited for without end.
                ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", limit_s, 0))
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIPE_BYTES)
            pipe = Connection(ours.detach())
            command = "trailweave.stream_processors.own_rules_process"
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", command, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    # What rules print is no line of ours; it goes to standard error.
                    stdout=2,
                    start_new_session=True,
                )
            except OSError as error:
                pipe.close()
                self._lost(error.strerror or "it can't be started")
                return
        self._pipe, self._ready = pipe, False
        told = (self._own.module, self._own.memory_mb * 1024 * 1024, self._config)
        with contextlib.suppress(OSError):  # noticed when the first answer is waited for
            pipe.send_bytes(pickle.dumps(told, pickle.HIGHEST_PROTOCOL))

    def _meet(self, pipe: Connection) -> None:
        said = self._received(pipe, START_S)
        if "error" in said:
            raise _FailedError(str(said["error"]))
        self._rules = {one["name"]: _rule(one) for one in said["rules"]}
        self._ready = True

    def _lost(self, why: str) -> None:
        self._on_failed()
        self.close()
        now = time.monotonic()
        self._failures.append(now)
        often = len(self._failures) == FAILURES_MAX and now - self._failures[0] < PAUSE_S
        # A module that can't be imported now can't be at once, either.
        pause = often or not self._ready
        self._start_at = now + PAUSE_S if pause else now
        after = f"in {PAUSE_S:.0f} s" if pause else "at once"
        self._say(
            "", f"lost the process of the own rules in {self._own.module}: {why}; they are not"
            f" evaluable for this chain, and asked again {after}"
        )  # fmt: skip

    def _say(self, about: str, text: str) -> None:
        now = time.monotonic()
        if now >= self._say_at.get(about, 0.0):
            self._say_at[about] = now + SAY_INTERVAL_S
            log.error("%s", text)


def _rule(said: dict[str, Any]) -> Rule:
    """Their rule as findings name it; it is asked elsewhere."""
    return Rule(
        said["name"],
        said["severity"],
        tuple(said["controls"]),
        (),
        (),
        said["expected"],
        said["next_step"],
        said["doc"],
        _elsewhere,
        limited=False,
        when=None,
        early=False,
    )


def _elsewhere(_: Chain) -> Iterator[Hit]:
    raise AssertionError("the rule runs in another process")


@contextlib.contextmanager
def own_rules(
    config: RulesConfig, on_failed: Callable[[], None] = lambda: None
) -> Iterator[OwnRules | None]:
    """The rules that a configuration names, if it names any, until the end of the block."""
    if config.own is None:
        yield None
        return
    with contextlib.closing(OwnRules(config.own, config, on_failed)) as rules:
        yield rules
