"""The errors of Trailweave, one class per reaction.

    TrailError
    ├── Retryable   the loop backs off and tries again
    ├── Rejected    the record goes to the dead letters; carries where it lay and why
    └── Fatal       stop without committing

Edges translate the exceptions of libraries into these; nothing else crosses a room's door.
Messages never hold a record's content or a secret.
"""

from dataclasses import dataclass


class TrailError(Exception):
    """Every error that Trailweave raises on purpose."""


class Retryable(TrailError):
    """A service is away or busy: the same work may succeed later."""


class Fatal(TrailError):
    """Going on could lose, double or forge a record; a person has to look."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why bytes can't be used: a short `code` for counting and one sentence for a person."""

    code: str
    detail: str


class Rejected(TrailError):
    """Bytes that can't be used. The holder adds the place and sends them to the dead letters."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.reason = Reason(code, detail)
