"""Write the complete schema of every type to a folder: what producers in other languages compile.

python -m trailweave.schemas.export DIR
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from trailweave.schemas import events
from trailweave.schemas.errors import Fatal


def export(directory: Path) -> list[Path]:
    """Write `<name>.avsc` for every type; the files, in the order of the types.

    Raises `Fatal` if the folder can't be written to.
    """
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for kind in events.all_types():
            path = directory / f"{kind.name}.avsc"
            path.write_text(json.dumps(kind.schema, indent=1, ensure_ascii=False) + "\n", "utf-8")
            written.append(path)
    except OSError as error:
        raise Fatal(f"couldn't write schemas to {directory}: {error.strerror}") from None
    return written


def main(arguments: Sequence[str]) -> int:
    """The command; its exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m trailweave.schemas.export DIR", file=sys.stderr)  # noqa: T201 - a command
        return 2
    try:
        export(Path(arguments[0]))
    except Fatal as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
