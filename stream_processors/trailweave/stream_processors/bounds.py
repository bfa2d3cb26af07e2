"""Limits of what a chain record lists, so that it always fits into a Kafka record. Pure.

A record over the broker's limit would be refused again at each try, and stop its lane for good.
`verdict` calls this; the events themselves are neither cut nor lost by it.
"""

import hashlib
from typing import Any, Final

#: Ids and names in records. They come from events of up to 1 MB; an id that a person or a query
#: looks for is shorter by far.
TEXT_CHARS_MAX: Final = 1_000
#: Items of one list. Whoever needs more asks for the events, which are all stored.
LIST_ITEMS_MAX: Final = 1_000
#: All lists of one chain record together. With 2,000 events of evidence (about 108 bytes each) and
#: the record's single texts (5, at most 4 bytes per character), it stays below 900,000 bytes.
LISTS_BYTES_MAX: Final = 640_000
#: Whatever an item of a list may need: four texts, each with its length, and a few numbers.
ITEM_BYTES_MAX: Final = 4 * (4 * TEXT_CHARS_MAX + 4) + 100

#: The chain record's lists whose length events decide; the others are bounded by what they list.
LISTS: Final = (
    "producers",
    "identities",
    "sponsors",
    "agents",
    "models",
    "tools",
    "credentials",
    "pairs",
    "workload_sponsors",
    "approvals",
    "missing",
    "findings",
    "handles",
)

_DIGEST_CHARS: Final = 16


def text(value: str) -> str:
    """The text, or its beginning and a digest of it, so that two long ids stay two."""
    if len(value) <= TEXT_CHARS_MAX:
        return value
    digest = hashlib.sha256(value.encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{value[: TEXT_CHARS_MAX - _DIGEST_CHARS - 1]}…{digest}"


def text_or_none(value: str | None) -> str | None:
    """As `text`, where there may be none."""
    return value if value is None or len(value) <= TEXT_CHARS_MAX else text(value)


def bounded(record: dict[str, Any]) -> dict[str, Any]:
    """The chain record with its lists cut to what fits; `missing` says of which there is more.

    The first items of a list stay. Changes the record it is given.
    """
    lengths = [len(record[name]) for name in LISTS]
    # Of nearly every chain this is the end: so few items fit, whatever is in them.
    if sum(lengths) * ITEM_BYTES_MAX <= LISTS_BYTES_MAX:
        return record
    kept = {name: record[name][:LIST_ITEMS_MAX] for name in LISTS}
    shares = _shares({name: sum(map(_size, items)) for name, items in kept.items()})
    cuts = []
    for name, length in zip(LISTS, lengths, strict=True):
        record[name] = _first(kept[name], shares[name])
        if len(record[name]) < length:
            detail = f"{len(record[name])} of {length} are listed"
            cuts.append({"what": "listing", "subject": name, "detail": detail})
    record["missing"] = cuts + record["missing"]
    return record


def _shares(sizes: dict[str, int]) -> dict[str, int]:
    """The bytes that each list may have: what the short ones leave over is for the long ones."""
    left, shares = LISTS_BYTES_MAX, {}
    for place, (name, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        shares[name] = min(size, left // (len(sizes) - place))
        left -= shares[name]
    return shares


def _first(items: list[Any], bytes_max: int) -> list[Any]:
    size = 0
    for count, item in enumerate(items):
        size += _size(item)
        if size > bytes_max:
            return items[:count]
    return items


def _size(value: object) -> int:
    """At least as many bytes as Avro needs."""
    if isinstance(value, str):
        return len(value.encode()) + 4
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return sum(map(_size, value)) + 4
    return 11
