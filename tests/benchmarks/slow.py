"""`make bench-peers`: the slow comparisons. Prints tables, writes a JSON result.

`peers`: the same join by other stream processors. `loads`: our load beside ClickHouse's own Kafka
engine. `delays`: from the last event to the queryable chain. `growth`: more events, more
partitions. `recovery`: SIGKILL of the join with many events in open sessions. `memory`: an hour at
one rate, only when asked for.

Machines are noisy and shared: compare what stands in one table, and see the load average beside it.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks import delays, feed, growth, loads, memory, peers, recovery, report
from tests.benchmarks.peers import Figures, WrongError
from tests.benchmarks.run import consume, hot_path, note

PER_TRACE = 12
PARTITIONS = 4
#: Sizes of `growth`, in events at four partitions, and in partitions at the number of events.
EVENTS = (100_000, 1_000_000)
LANES = (1, 4, 16)
LANES_EVENTS = 200_000
RATES = (1_000, 2_500, 5_000, 10_000, 15_000, 20_000, 30_000, 40_000, 60_000)


def measure_peers(options: argparse.Namespace) -> dict[str, Any]:
    """Every program on the same events, in several rounds; of each the round in the middle."""
    rounds = [_round_of_peers(options, number) for number in range(options.rounds)]
    names = [peer.name for peer in peers.peers()]
    return {
        "events": options.traces * PER_TRACE,
        "carry": options.carry,
        "rounds": options.rounds,
        "consume_per_s": statistics.median(consumed for consumed, _ in rounds),
        "peers": [asdict(peers.middle([found[name] for _, found in rounds])) for name in names],
    }


def _round_of_peers(options: argparse.Namespace, number: int) -> tuple[float, dict[str, Figures]]:
    """Plain consuming before and after, and the programs: each round begins with another one.

    Whoever is first meets a broker whose code is not compiled yet.
    """
    with feed.engines(PARTITIONS) as both:
        address = both.kafka.address
        sent = feed.produce(address, feed.sessions(options.traces, PER_TRACE))
        field = peers.Field(address, both.kafka.pid, sent, PER_TRACE, options.carry, PARTITIONS)
        before = consume(address, field.total, "bench-before")
        found, turned = {}, peers.peers()
        for peer in turned[number % len(turned) :] + turned[: number % len(turned)]:
            found[peer.name] = peers.measure(peer, field)
            note(f"{found[peer.name]}")
        after = consume(address, field.total, "bench-after")
    return (before + after) / 2, found


def measure_loads(options: argparse.Namespace) -> dict[str, Any]:
    """Our load and ClickHouse's engine."""
    found = loads.measure(options.traces, PER_TRACE, PARTITIONS)
    events = options.traces * PER_TRACE
    return {"events": events, "loads": [asdict(figures) for figures in found]}


def measure_delays(options: argparse.Namespace) -> dict[str, Any]:
    """Rates until one is too high."""
    found = delays.measure(RATES, options.seconds, PER_TRACE)
    return {"seconds": options.seconds, "rates": [delay.as_dict() for delay in found]}


def measure_growth(options: argparse.Namespace) -> dict[str, Any]:
    """More events, then more partitions."""
    sizes = [(events, PARTITIONS) for events in (*EVENTS, *(10_000_000,) * options.huge)]
    sizes += [(LANES_EVENTS, lanes) for lanes in LANES]
    found = []
    for events, lanes in sizes:
        found.append(growth.measure(events // PER_TRACE, PER_TRACE, lanes))
        note(f"{found[-1]}")
    return {"sizes": [asdict(size) for size in found]}


def measure_recovery(options: argparse.Namespace) -> dict[str, Any]:
    """One kill for each number of events in open sessions."""
    found = [recovery.measure(held, PER_TRACE) for held in options.held]
    return {"kills": [asdict(kill) for kill in found]}


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    """A long time at one rate."""
    found = memory.measure(options.rate, options.minutes, PER_TRACE)
    programs = [
        asdict(program) | {"quarters": [program.quarter(number) for number in range(4)]}
        for program in found
    ]
    return {"rate": options.rate, "minutes": options.minutes, "programs": programs}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "peers": measure_peers,
    "loads": measure_loads,
    "delays": measure_delays,
    "growth": measure_growth,
    "recovery": measure_recovery,
    "memory": measure_memory,
}
#: What takes an hour is measured when it is asked for.
USUAL = [part for part in PARTS if part != "memory"]


def main() -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=USUAL)
    parser.add_argument("--traces", type=int, default=30_000, help="of peers and loads")
    parser.add_argument("--rounds", type=int, default=3, help="of peers")
    parser.add_argument("--carry", choices=("bytes", "ids"), default="bytes")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each rate of delays")
    parser.add_argument("--held", type=int, nargs="+", default=[100_000], help="of recovery")
    parser.add_argument("--rate", type=float, default=1_000.0, help="of memory")
    parser.add_argument("--minutes", type=float, default=60.0, help="of memory")
    parser.add_argument("--huge", action="store_true", help="growth up to 10,000,000 events")
    parser.add_argument("--out", type=Path, default=Path("build/bench-peers.json"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # Parts that are not measured anew stay: each says for itself how busy the machine was.
    result = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    cores = len(os.sched_getaffinity(0))
    machine = (
        f"{cores} cores, {platform.machine()}, Python {platform.python_version()}, {hot_path()}"
    )
    wrong = 0
    for part in options.only:
        note(f"measuring {part}")
        before = os.getloadavg()[0]
        try:
            found = PARTS[part](options)
        except WrongError as error:
            note(f"couldn't measure {part}: {error}")
            wrong = 1
            continue
        loaded = {"load_before": before, "load_after": os.getloadavg()[0], "machine": machine}
        result[part] = found | loaded
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print("\n".join(report.table(part, result[part])), flush=True)  # noqa: T201 - a command
    return wrong


if __name__ == "__main__":
    sys.exit(main())
