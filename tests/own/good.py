"""A rule of one's own, as it should be."""

from collections.abc import Iterator

from trailweave.stream_processors.chain import Chain
from trailweave.stream_processors.rules import Hit, Limits
from trailweave.stream_processors.rules.rule import rule


@rule(
    "medium",
    controls=("ACME-7",),
    about=("tool_requested",),
    expected="no transfers by night",
    next_step="ask treasury",
)
def transfer_tool(chain: Chain) -> Iterator[Hit]:
    """Somebody transferred money."""
    for request in chain.of("tool_requested"):
        if request["tool"] == "transfer":
            yield Hit(request["call_id"], "a transfer", (request,))


@rule("low", controls=(), needs=("vault",), expected="nothing", next_step="nothing")
def needs_a_vault(chain: Chain, limits: Limits) -> Iterator[Hit]:
    """Not evaluable unless a vault was promised."""
    yield Hit("session", f"a vault is there for {chain.trace_id} and {limits.tries}")


RULES = (transfer_tool, needs_a_vault)
