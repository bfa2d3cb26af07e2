"""An agent of one's own, to copy: restricted data that nobody asked for.

    [watch]
    module = "trailweave.stream_processors.own_agents_example"

A session that touched restricted or secret data, and that no human sponsor stands behind, is a
finding about its agents. Their names are its subject, so the next such session says it again.
"""

from typing import Any, Final

from trailweave.stream_processors.own_agents import Trail

_CAREFUL: Final = ("restricted", "secret")


def register(trail: Trail) -> None:
    """Define the agents; `watch` calls this once, before anything is read."""

    async def unattended(stream: Any) -> None:
        async for event in stream.events():
            chain = trail.chain_of(event)
            if chain is None or chain["sponsors"] or chain["data_class"] not in _CAREFUL:
                continue
            agents = ", ".join(chain["agents"]) or "an agent without a name"
            await trail.say(
                "restricted_unattended",
                tenant=chain["tenant"],
                subject=agents,
                summary=f"{agents} used {chain['data_class']} data on nobody's behalf;"
                f" latest in {chain['trace_id']}",
                severity="high",
                expected="a human sponsor of every session that uses restricted data",
                next_step="ask the agents' owner who wanted it",
            )

    trail.app.agent(trail.sessions, name="unattended")(unattended)
