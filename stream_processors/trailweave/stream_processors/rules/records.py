"""Findings about the record itself: gaps, and who or what is not named."""

from collections.abc import Iterator

from trailweave.stream_processors.chain import Chain
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
    for producer, ranges in chain.ranges.items():
        missing = sum([part.missing for part in ranges])
        short = expected.get(producer, 0) - counts.get(producer, 0)
        if missing > 0 or short > 0:
            count = max(missing, short)
            events = tuple(r for r in chain.records if r["producer_id"] == producer)[:20]
            yield Hit(producer, f"{count} events of {producer} are missing", events)


@rule(
    "medium",
    controls=("AU-3", "AI RMF MEASURE 2.8"),
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
    verified = any(
        r["actor"]["assurance"] == "verified" and r["actor"]["kind"] != "human"
        for r in chain.records
    )
    sponsored = any(r["sponsor"] is not None for r in chain.records)
    if not (verified and sponsored):
        what = "sponsor" if verified else "verified workload identity"
        yield Hit("session", f"the session shows no {what}", tuple(chain.of("session_started")))
