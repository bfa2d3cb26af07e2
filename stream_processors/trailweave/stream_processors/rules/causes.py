"""What an event was made from: producers name it in `derived_from`."""

from collections.abc import Set as AbstractSet

from trailweave.stream_processors.chain import Chain, Record


def causes_of(chain: Chain, call_id: str, wanted: AbstractSet[str]) -> list[Record]:
    """Events of `wanted` (event ids) from which a call comes, directly or not, in their order.

    A call comes from what its request or execution names, and from the response that proposed it.
    """
    known = {record["event_id"]: record for record in chain.records}
    before = [*chain.requests.get(call_id, ()), *chain.executions.get(call_id, ())]
    if call_id in chain.proposals:
        before.append(chain.proposals[call_id])
    seen = {record["event_id"] for record in before}
    for record in before:  # grows while it is walked
        for event_id in record.get("derived_from", ()):
            if event_id in known and event_id not in seen:
                seen.add(event_id)
                before.append(known[event_id])
    return [record for record in chain.records if record["event_id"] in seen & wanted]


def changed(chain: Chain) -> list[tuple[str, Record]]:
    """Calls with a side effect that went well: (call id, execution)."""
    return [
        (call_id, record)
        for call_id, ran in chain.runs.items()
        for record in ran[:1]
        if record["status"] == "ok"
        and (
            record["side_effect"]
            or any(request["side_effect"] for request in chain.requests.get(call_id, ()))
        )
    ]
