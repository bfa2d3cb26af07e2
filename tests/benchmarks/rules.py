"""What all rules together cost per event: judging with them less judging with none, in one thread.

Each session is read and judged at once, as when it closes: chains keep what a rule has looked up,
and one that was read long before would have to come from memory. The two take turns, and the best
round of each counts.
"""

import time
from typing import Final

from trailweave.deploy.fleet.synthetic import synthetic_events
from trailweave.schemas import events
from trailweave.schemas.codec import Decoder
from trailweave.schemas.garbage import rare_collections
from trailweave.stream_processors.chain import Source, event_decoder, read
from trailweave.stream_processors.lanes import FOLD_READ, Lane
from trailweave.stream_processors.rules.ruleset import RuleSet
from trailweave.stream_processors.session import ClosingTimes, Session
from trailweave.stream_processors.verdict import ALL, RulesConfig, judge

TRACES: Final = 1_500
ROUNDS: Final = 7


def rules_us(per_trace: int) -> float:
    """Microseconds per event."""
    sessions = _sessions(per_trace)
    source = Source(events.event_topics(), 0, event_decoder(), lambda _key, _recorded_ms: False)
    none = RuleSet(())
    with_all, without = [], []
    with rare_collections():
        for _ in range(ROUNDS):
            with_all.append(_seconds(sessions, source, ALL))
            without.append(_seconds(sessions, source, none))
    return (min(with_all) - min(without)) / (TRACES * per_trace) * 1e6


def _sessions(per_trace: int) -> list[Session]:
    lane = Lane(0, [0] * len(events.event_topics()), ClosingTimes(), Decoder(FOLD_READ))
    now_us = time.time_ns() // 1000
    for sent in synthetic_events(TRACES, now_us, per_trace):
        topic = events.event_topics().index(sent.topic)
        lane.fold(topic, lane.positions[topic], now_us // 1000, sent.key, sent.value)
    return list(lane.sessions.values())


def _seconds(sessions: list[Session], source: Source, rules: RuleSet) -> float:
    config = RulesConfig()
    began = time.thread_time()
    for session in sessions:
        judge(read(session, source).chain, config, rules)
    return time.thread_time() - began
