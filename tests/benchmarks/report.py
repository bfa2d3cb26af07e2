"""Tables in Markdown and the chart, from the JSON result of `make bench-peers`.

    python -m tests.benchmarks.report RESULT.json CHART.svg

prints the tables and writes the chart. Pure but for `main`.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

Json = dict[str, Any]

WIDTH, LEFT, RIGHT, BAR, TOP = 760, 250, 150, 30, 64


def table(part: str, result: Json) -> list[str]:
    """Lines of one part's table, with how busy the machine was."""
    head, rows = _TABLES[part](result)
    align = ["---"] + ["---:"] * (len(head) - 1)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, align, *rows)]
    busy = f"{result['load_before']:.1f} before, {result['load_after']:.1f} after"
    return [*lines, "", f"Load average: {busy}; {result['machine']}.", ""]


Table = tuple[Sequence[str], Iterable[Sequence[str]]]


def _peers(result: Json) -> Table:
    head = ("", "events/s", "of plain consume", "CPU µs/event", "broker's CPU", "peak MB")
    plain = result["consume_per_s"]
    rows: list[Sequence[str]] = [("plain consume (the limit)", f"{plain:,.0f}", "1", "", "", "")]
    for one in result["peers"]:
        share = f"{one['events_per_s'] / plain:.3f}"
        cells = (share, f"{one['cpu_us']:.1f}", f"{one['broker_cpu_us']:.1f}")
        rows.append(_row(one, (*cells, f"{one['peak_mb']:,.0f}")))
    return head, rows


def _loads(result: Json) -> Table:
    head = ("", "rows/s", "CPU µs/row", "peak MB")
    cells = (
        _row(one, (f"{one['cpu_us']:.1f}", f"{one['peak_mb']:,.0f}")) for one in result["loads"]
    )
    return head, cells


def _row(one: Json, cells: Sequence[str]) -> Sequence[str]:
    if one["why_not"]:
        return (one["name"], one["why_not"].replace("|", "/"), *("" for _ in cells))
    return (one["name"], f"{one['events_per_s']:,.0f}", *cells)


def _delays(result: Json) -> Table:
    head = ("events/s asked for", "reached", "p50 s", "p99 s", "last chain after s", "kept up")
    rows = [
        (
            f"{one['rate']:,.0f}",
            f"{one['reached']:,.0f}",
            f"{one['p50_s']:.2f}",
            f"{one['p99_s']:.2f}",
            f"{one['behind_s']:.1f}",
            "yes" if one["kept_up"] else "no",
        )
        for one in result["rates"]
    ]
    return head, rows


def _growth(result: Json) -> Table:
    head = ("events", "partitions", "events/s", "of plain consume", "CPU µs/event", "peak MB")
    rows = []
    for size in result["sizes"]:
        one = size["join"] | {"name": f"{size['events']:,}"}
        name, rate, *cells = _row(
            one,
            (
                f"{one['events_per_s'] / size['consume_per_s']:.3f}",
                f"{one['cpu_us']:.1f}",
                f"{one['peak_mb']:,.0f}",
            ),
        )
        rows.append((name, str(size["partitions"]), rate, *cells))
    return head, rows


def _recovery(result: Json) -> Table:
    head = ("events in open sessions", "s from SIGKILL to where it was", "CPU s", "peak MB")
    rows = [
        (
            f"{one['held']:,}",
            one["why_not"] or f"{one['seconds']:.1f}",
            f"{one['cpu_s']:.1f}",
            f"{one['peak_mb']:,.0f}",
        )
        for one in result["kills"]
    ]
    return head, rows


def _memory(result: Json) -> Table:
    head = ("MB, mean of each quarter", "first", "second", "third", "last", "last of second")
    rows = []
    for one in result["programs"]:
        quarters = one["quarters"]
        cells = (f"{size:,.0f}" for size in quarters)
        rows.append((one["name"], *cells, f"{quarters[3] / quarters[1]:.2f}"))
    return head, rows


_TABLES: dict[str, Callable[[Json], Table]] = {
    "peers": _peers,
    "loads": _loads,
    "delays": _delays,
    "growth": _growth,
    "recovery": _recovery,
    "memory": _memory,
}


def chart(result: Json) -> str:
    """The peers as bars, events per second; the CPU of an event stands beside each."""
    ran = [one for one in result["peers"] if not one["why_not"]]
    ran.sort(key=lambda one: -float(one["events_per_s"]))
    most = max(float(one["events_per_s"]) for one in ran)
    height = TOP + BAR * len(ran) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        # A background of its own: the page behind may be dark.
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="15" fill="#111111">Joined events per second,'
        f" {result['events']:,} events, the middle of {result['rounds']} rounds</text>",
        '<text x="12" y="44" fill="#555555">Trailweave decodes, judges and hashes; the others only'
        " group bytes. Behind the bars: CPU of an event.</text>",
    ]
    for number, one in enumerate(ran):
        parts += _bar(one, most, TOP + BAR * number)
    return "\n".join([*parts, "</svg>", ""])


def _bar(one: Json, most: float, y: int) -> list[str]:
    rate = float(one["events_per_s"])
    width = max(1.0, (WIDTH - LEFT - RIGHT) * rate / most)
    fill = "#0b6e99" if one["name"].startswith("Trailweave") else "#9aa5ad"
    middle = y + BAR / 2 + 4
    text = f"{rate:,.0f}/s, {one['cpu_us']:.0f} µs"
    return [
        f'<text x="{LEFT - 10}" y="{middle}" text-anchor="end" fill="#111111">'
        f"{escape(one['name'])}</text>",
        f'<rect x="{LEFT}" y="{y + 5}" width="{width:.1f}" height="{BAR - 10}" fill="{fill}"/>',
        f'<text x="{LEFT + width + 8:.1f}" y="{middle}" fill="#111111">{text}</text>',
    ]


def main() -> None:
    """The command."""
    source, target = map(Path, sys.argv[1:3])
    result = json.loads(source.read_text("utf-8"))
    for part in _TABLES:
        if part in result:
            print("\n".join([f"## {part}", "", *table(part, result[part])]))  # noqa: T201 - a command
    target.write_text(chart(result["peers"]), "utf-8")


if __name__ == "__main__":
    main()
