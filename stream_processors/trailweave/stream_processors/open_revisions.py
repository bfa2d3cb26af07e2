"""Open revisions: a session as it stands, before it closes. Pure.

An alert must not wait until an agent has finished. So a session in which something was denied or
revoked is looked at when more comes for it and it stays open, and one that is open for long is
shown as it grows. Only rules are asked that rest on what is there (`Rule.early`); what is missing,
nobody can say yet.

An open revision takes nothing: recovery passes over it, and the record of the closing has all of
its session again. What it found counts while the newest record of the session is open or finds it
too (`findings_latest`): an approval that comes late takes it back. It goes with the transaction of
its turn. A crash before the commit leaves nothing of it, and the batch that is read again brings
the next look; after the commit a new worker, which does not know what was said, says it once more
under the same finding ids.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from trailweave.stream_processors.chain import Source, read
from trailweave.stream_processors.closing import Closing, records
from trailweave.stream_processors.lanes import Lane, Turn
from trailweave.stream_processors.session import Session
from trailweave.stream_processors.verdict import Circumstances, RulesConfig, judge_early

#: Events that are decoded for looks in one turn, about: 0.1 s. A turn takes that or more, so looks
#: slow a worker down by less than half, however many sessions are watched.
TURN_EVENTS_MAX: Final = 5_000
#: Most sessions give back their credentials at their end: one that closes so soon behind that is
#: not looked at before.
FIRST_LOOK_MS: Final = 1_000
#: A large session is looked at less often: for each of its events so many milliseconds lie between
#: two looks, of which they take a fiftieth.
MS_PER_EVENT: Final = 1


def to_look_at(
    turns: Sequence[tuple[Lane, Turn]], every_ms: int, *, busy: bool
) -> Iterator[tuple[Lane, Turn, Session]]:
    """The sessions of a turn that are looked at before their close, the longest waiting first.

    A worker that is `busy`, for more is to be read, leaves out those that are only long-open.
    """
    left = TURN_EVENTS_MAX
    for lane, turn in turns:
        for session in lane.stirred():
            count = len(session.values)
            since_ms, wait_ms = session.looked_ms, max(every_ms, MS_PER_EVENT * count)
            if since_ms < 0:
                since_ms, wait_ms = session.watched_ms, min(every_ms, FIRST_LOOK_MS)
            if since_ms >= 0 and turn.clock_ms - since_ms < wait_ms:
                continue
            # What is away, or of a schema that may still be published, waits for the close.
            if session.away or session.unknown or (busy and session.watched_ms < 0):
                lane.calm(session)
            elif left > 0:
                left -= count
                lane.calm(session)
                yield lane, turn, session


def revision(session: Session, turn: Turn, source: Source, config: RulesConfig) -> Closing | None:
    """The session's records as it stands; None if there is nothing to say that was not said."""
    grown = len(session.values) >= 2 * session.looked_events
    session.looked_ms, session.looked_events = turn.clock_ms, len(session.values)
    chain = read(session, source).chain
    if not chain.of("session_started"):
        return None  # a fragment, whose chain only `reassess` knows
    verdict = judge_early(chain, config)
    found = frozenset(finding.finding_id for finding in verdict.findings)
    if found == (session.told or frozenset()) and not (session.promoted and grown):
        return None
    session.told = found
    at = Circumstances(
        state="open",
        close_reason="none",
        part=turn.number,
        # Not the clock, which a restart may set back: of two records of a session, the later one
        # must not seem to be judged before the other (`findings_latest`).
        judged_at_ms=chain.times[1],
        # They are dead-lettered with the closing.
        dead_lettered=0,
    )
    return records(session.key, chain, verdict, at, config)
