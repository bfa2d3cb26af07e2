"""A trail on the terminal, and as JSON."""

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree
from trailweave.deploy.output import SEVERITY_STYLES, STATE_STYLES, table
from trailweave.deploy.terminal import plain, shortened
from trailweave.deploy.trail import MISSING, Header, Node, Trail, header, tree, walk

#: Rows of a tree on the terminal; a longer one says how many it leaves out, `--json` has all.
ROWS_MAX: Final = 2_000
DETAIL_CHARACTERS_MAX: Final = 120
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def print_trail(console: Console, trail: Trail) -> None:
    """Header, tree, findings."""
    parts: list[RenderableType] = [_header(header(trail)), _tree(trail)]
    if trail.chain and trail.chain.get("missing"):
        rows = [(m["what"], m["subject"], m["detail"]) for m in trail.chain["missing"]]
        parts.append(table("Missing", ("what", "of", "detail"), rows))
    if trail.findings:
        parts.append(_findings(trail.findings))
    console.print(Group(*parts))


def trail_document(trail: Trail) -> dict[str, Any]:
    """The same, whole, for `--json`."""
    top = dataclasses.asdict(header(trail))
    for key in ("started_at", "ended_at"):
        top[key] = _time(top[key])
    roots = tree(trail)
    # Children first, so that each node's document holds the finished documents of its children.
    documents: dict[int, dict[str, Any]] = {}
    for node in reversed(list(walk(roots))):
        below = [documents[id(child)] for child in node.children]
        documents[id(node)] = _document(node, below)
    return {
        **top,
        "identities": list(top["identities"]),
        "sponsors": list(top["sponsors"]),
        "agents": list(top["agents"]),
        "chain": _hex(trail.chain) if trail.chain else None,
        "tree": [documents[id(node)] for node in roots],
        "findings": _hex(list(trail.findings)),
    }


def _document(node: Node, children: list[dict[str, Any]]) -> dict[str, Any]:
    event = node.event
    return {
        "kind": node.kind,
        "title": node.title,
        "detail": node.detail,
        "at": _time(node.at),
        "findings": list(node.findings),
        "place": None if event is None else f"{event.topic}/{event.partition}@{event.offset}",
        "recorded_at": None if event is None else event.recorded_at,
        "record": None if event is None else _hex(event.record),
        "children": children,
    }


def _hex(value: Any) -> Any:
    """Hashes as people write them."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {key: _hex(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_hex(part) for part in value]
    return value


def _time(micros: int | None) -> datetime | None:
    if micros is None:
        return None
    try:
        return _EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        # A producer may claim any number; the year 300,000 is none that Python can write.
        return None


def _header(top: Header) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    rows: list[tuple[str, Text]] = [
        ("trace", Text(plain(f"{top.trace_id}  (tenant {top.tenant})"))),
        ("who", _names(top.identities)),
        ("on behalf of", _names(top.sponsors)),
        ("agent", _names(top.agents)),
        ("task", Text(shortened(top.task or "-"))),
        ("outcome", Text(shortened(" ".join(filter(None, (top.status, top.outcome))) or "-"))),
        ("started", Text(_clock(top.started_at, "%Y-%m-%d %H:%M:%S UTC"))),
        ("state", _styled(top.state)),
        ("record is", _styled(top.completeness)),
        ("severity", _styled(top.highest_severity)),
    ]
    for name, text in rows:
        grid.add_row(Text(name, style="bold"), text)
    return grid


def _names(names: Iterable[str]) -> Text:
    return Text(shortened(", ".join(names)) or "-")


def _styled(word: str) -> Text:
    return Text(plain(word), style=STATE_STYLES.get(word, ""))


def _tree(trail: Trail) -> RenderableType:
    roots = tree(trail)
    top = Tree(Text(f"{len(trail.events)} events", style="bold"))
    branches: dict[int, Tree] = {}
    places = {id(child): id(node) for node in walk(roots) for child in node.children}
    for shown, node in enumerate(walk(roots)):
        if shown == ROWS_MAX:
            top.add(Text("… the rest is left out; --json has all of it", style="dim"))
            break
        parent = branches[places[id(node)]] if id(node) in places else top
        branches[id(node)] = parent.add(_row(node))
    return top


def _row(node: Node) -> Text:
    if node.kind == MISSING:
        row = Text(f"{'':12} ")
        row.append(f"⚠ {plain(node.title)}", style="bold red")
        row.append(f"  {shortened(node.detail, DETAIL_CHARACTERS_MAX)}", style="red")
        return row
    row = Text(_clock(node.at, "%H:%M:%S.%f")[:12], style="dim")
    row.append(f" {shortened(node.title, DETAIL_CHARACTERS_MAX)}", style="not dim bold")
    if node.detail:
        row.append(f"  {shortened(node.detail, DETAIL_CHARACTERS_MAX)}", style="not dim")
    for rule in node.findings:
        row.append(f"  ◀ {plain(rule)}", style="not dim bold red")
    return row


def _clock(micros: int | None, form: str) -> str:
    at = _time(micros)
    return at.strftime(form) if at else "-"


def _findings(findings: Iterable[Mapping[str, Any]]) -> RenderableType:
    made = Table(title="Findings", title_justify="left", header_style="bold")
    for name in ("severity", "rule", "about", "summary", "evidence"):
        made.add_column(name, overflow="fold")
    for finding in findings:
        severity = str(finding["severity"])
        evidence = "\n".join(
            plain(f"{ref['topic']}/{ref['partition']}@{ref['offset']}")
            for ref in finding.get("evidence") or ()
        )
        made.add_row(
            Text(plain(severity), style=SEVERITY_STYLES.get(severity, "")),
            Text(plain(finding["rule"])),
            Text(shortened(finding["subject"])),
            Text(shortened(finding.get("summary") or "")),
            Text(evidence),
        )
    return made
