"""Findings about the record itself: gaps, and who or what is not named."""

from collections.abc import Iterator

from trailweave.stream_processors.chain import Chain, Record
from trailweave.stream_processors.ranges import ProducerRange
from trailweave.stream_processors.rules.rule import Hit, rule


@rule(
    "high",
    controls=("AU-5", "AU-12", "NIST CSF DE.CM-1"),
    expected="every sequence number of every producer, and as many events as the end announced",
    next_step="look for the producer's spool and heartbeats; ask its host for the missing events",
)
def seq_gap(chain: Chain) -> Iterator[Hit]:
    """Events of a producer are missing: numbers skipped, or fewer than the session's end says."""
    expected, counts = chain.expected or {}, chain.counts
    for producer, ranges in chain.flawed.items():
        missing = sum([part.missing for part in ranges])
        short = expected.get(producer, 0) - counts.get(producer, 0)
        if missing > 0 or short > 0:
            count = max(missing, short)
            events = tuple(r for r in chain.records if r["producer_id"] == producer)[:20]
            yield Hit(producer, f"{count} events of {producer} are missing", events)


@rule(
    "critical",
    controls=("AU-10", "AU-9", "NIST CSF PR.DS-1"),
    expected="one event for every event id, and for every sequence of a producer",
    next_step="compare the two; find out who else can write in the producer's name",
    early=True,
)
def dup_conflict(chain: Chain) -> Iterator[Hit]:
    """Two different events have one id, or one sequence of one producer. Both are kept.

    A producer that sends an event again sends the same bytes, which is a duplicate and no finding.
    """
    for event_id in chain.conflicts:
        events = tuple(r for r in chain.records if r["event_id"] == event_id)
        yield Hit(event_id, "two different events have this id", events)
    for producer, ranges in chain.flawed.items():
        for part in ranges:
            for number in part.conflicts:
                name = f"{producer}/{part.epoch}/{number}"
                yield Hit(
                    name, "two different events have this sequence", _numbered(chain, part, number)
                )


def _numbered(chain: Chain, part: ProducerRange, number: int) -> tuple[Record, ...]:
    return tuple(
        r
        for r in chain.records
        if (r["producer_id"], r["producer_epoch"]) == (part.producer_id, part.epoch)
        and r["trace_seq"] == number
    )


@rule(
    "medium",
    controls=("AU-3", "AI RMF MEASURE 2.8"),
    about=("model_responded",),
    expected="the model or its version in every response",
    next_step="have the recorder set gen_ai.response.model from the provider's answer",
)
def model_version_missing(chain: Chain) -> Iterator[Hit]:
    """A model answered, and neither the responding model nor its version is known."""
    for response in chain.of("model_responded"):
        if response["status"] == "ok" and not response["model"] and not response["model_version"]:
            asked = response["request_model"] or "a model"
            yield Hit(
                response["event_id"], f"which model answered for {asked} is not known", (response,)
            )


@rule(
    "high",
    controls=("AU-3", "IA-9", "T9", "OWASP NHI-09"),
    expected="a verified workload or agent identity, and the human on whose behalf it acts",
    next_step="give the workload a SPIFFE identity or token, and pass the sponsor on",
)
def identity_missing(chain: Chain) -> Iterator[Hit]:
    """No event shows a verified workload identity, or none names a human sponsor.

    One event with a verified actor is enough, and one with a sponsor. An owner is not a sponsor:
    who answers for an agent need not have asked for what it does.
    """
    verified = sponsored = False
    for record in chain.records:
        actor = record["actor"]
        verified = verified or (actor["assurance"] == "verified" and actor["kind"] != "human")
        sponsored = sponsored or record["sponsor"] is not None
        if verified and sponsored:
            return
    what = "sponsor" if verified else "verified workload identity"
    yield Hit("session", f"the session shows no {what}", tuple(chain.of("session_started")))
