"""Whether a call ran with the arguments that were proposed, decided and approved."""

from collections.abc import Iterator

from trailweave.stream_processors.chain import Chain, Record
from trailweave.stream_processors.rules.rule import Hit, rule

#: A hash of arguments and the event that says it.
Told = tuple[str, Record]


@rule(
    "high",
    controls=("ASI01", "SI-10", "AU-10", "OWASP Agentic A1"),
    about=("tool_executed",),
    expected="the same arguments proposed, decided, approved and executed",
    next_step="compare the arguments; find out who changed them on the way",
)
def args_drift(chain: Chain) -> Iterator[Hit]:
    """A call ran with other arguments than were proposed, requested, decided or approved.

    Hashes under one key are compared with each other. A decision or an approval that changes the
    arguments says to what: those are then what has to run.
    """
    for call_id, executed in chain.runs.items():
        if _plain(chain, call_id, executed):
            continue
        ran = [(r["arguments_hash"], r) for r in executed if r["arguments_hash"]]
        for scheme in dict.fromkeys(_scheme(one) for one in ran):
            modified = _of(scheme, _modified(chain, call_id))
            changed = {digest for digest, _ in modified}
            before = [one for one in _of(scheme, _before(chain, call_id)) if one[0] not in changed]
            meant = {digest for digest, _ in before}
            run = _of(scheme, ran)
            wanted = changed or meant
            if len(meant) > 1 or (wanted and any(digest not in wanted for digest, _ in run)):
                tool = run[0][1]["tool"] or "a tool"
                summary = f"{tool} ran with other arguments than were proposed or decided"
                yield Hit(call_id, summary, tuple(record for _, record in before + modified + run))


def _plain(chain: Chain, call_id: str, executed: list[Record]) -> bool:
    """Whether all say the same, as they mostly do."""
    digest = executed[0]["arguments_hash"]
    same = (digest, None)
    for records in (executed, chain.requests.get(call_id, ())):
        for record in records:
            if record["arguments_hash"] not in same:
                return False
    for record in chain.decisions.get(call_id, ()):
        if record["arguments_hash"] not in same or record["effect"] == "modify":
            return False
    response = chain.proposals.get(call_id)
    for call in response["proposed"] if response is not None else ():
        if call["call_id"] == call_id and call["arguments_hash"] not in same:
            return False
    return call_id not in chain.approvals


def _scheme(told: Told) -> str:
    """Kind and key of a hash: only those of one can be compared."""
    return told[0].rpartition(":")[0]


def _of(scheme: str, told: list[Told]) -> list[Told]:
    return [one for one in told if _scheme(one) == scheme]


def _before(chain: Chain, call_id: str) -> list[Told]:
    """What was proposed, requested, decided and approved."""
    response = chain.proposals.get(call_id)
    proposed = [
        (call["arguments_hash"], response)
        for call in (response["proposed"] if response is not None else ())
        if call["call_id"] == call_id
    ]
    told = [*chain.requests.get(call_id, ()), *chain.decisions.get(call_id, ())]
    told += [r for r in chain.approvals.get(call_id, ()) if r["effect"] == "allow"]
    found = [*proposed, *((record["arguments_hash"], record) for record in told)]
    return [(digest, record) for digest, record in found if digest and record is not None]


def _modified(chain: Chain, call_id: str) -> list[Told]:
    """What a decision or an approval put in its place."""
    decided = [
        (record["modified_arguments_hash"], record)
        for record in chain.decisions.get(call_id, ())
        if record["effect"] == "modify"
    ]
    approved = [
        (record["arguments_hash"], record)
        for record in chain.approvals.get(call_id, ())
        if record["effect"] == "modify"
    ]
    return [(digest, record) for digest, record in decided + approved if digest]
