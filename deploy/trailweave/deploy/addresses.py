"""The file through which other commands find a running `trailweave up`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

FILE: Final = "trailweave-up.json"


def write_addresses(data: Path, addresses: Mapping[str, object]) -> None:
    """Put the addresses into the data directory, whole or not at all."""
    beside = data / f"{FILE}.new"
    beside.write_text(json.dumps(dict(addresses)) + "\n", "utf-8")
    # Only its owner: an address may one day carry a password.
    beside.chmod(0o600)
    beside.replace(data / FILE)


def remove_addresses(data: Path) -> None:
    """The engines stop: nobody shall look for them there."""
    (data / FILE).unlink(missing_ok=True)


def found_settings(data: Path) -> dict[str, str]:
    """The addresses as settings; empty when nothing runs on the directory.

    A file left behind by a kill names ports on which nothing answers, or the next `up` on the same
    directory does: engines keep their ports.
    """
    try:
        known = json.loads((data / FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    names = {"kafka": "kafka.bootstrap.servers", "clickhouse": "clickhouse.dsn"}
    return {names[key]: str(value) for key, value in known.items() if key in names and value}
