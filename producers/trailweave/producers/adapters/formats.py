"""The four formats by name: how a file of each is taken apart and folded. Pure."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from trailweave.producers.adapters import files, mcp, opa, otlp, vault
from trailweave.producers.adapters.files import Decode, Piece
from trailweave.producers.adapters.record import Context, Translated
from trailweave.schemas.errors import Rejected


@dataclass(frozen=True, slots=True)
class Format:
    """One outside format. `state` is what earlier records of a file say about later ones."""

    name: str
    decode: Decode
    #: A piece of a file -> its records; an export request holds many.
    explode: Callable[[Piece], Iterator[Piece]]
    start: Callable[[], Any]
    #: (state, record, settings, position) -> events; raises `Rejected` for a malformed record.
    step: Callable[[Any, Any, Context, int], Translated]
    #: What is left at the end, a record at a time.
    finish: Callable[[Any, Context], Iterator[Translated]]
    #: The files of one run are one log in order (rotated, or of several audit devices).
    one_log: bool = False


def _whole(piece: Piece) -> Iterator[Piece]:
    yield piece


def _spans(piece: Piece) -> Iterator[Piece]:
    if piece.problem is not None:
        yield piece
        return
    for part in otlp.records(piece.value):
        if isinstance(part, Rejected):
            yield Piece(piece.line, piece.raw, problem=part.reason.detail)
        else:
            yield Piece(piece.line, b"", part)


def _nothing_left(_state: object, _context: Context) -> Iterator[Translated]:
    return iter(())


def raw_bytes(piece: Piece) -> bytes:
    """What a record looked like: its bytes, or those of an export request with it alone."""
    if isinstance(piece.value, otlp.Part) and not piece.raw:
        return json.dumps(piece.value.as_json(), ensure_ascii=False).encode()
    return piece.raw


FORMATS: Final = {
    found.name: found
    for found in (
        Format(
            "otlp",
            files.decode_json,
            _spans,
            lambda: None,
            lambda _state, part, context, _position: otlp.events_of(part, context),
            _nothing_left,
        ),
        Format(
            "opa",
            files.decode_json,
            _whole,
            lambda: None,
            lambda _state, record, context, _position: opa.events_of(record, context),
            _nothing_left,
        ),
        Format(
            "vault",
            files.decode_prefixed,
            _whole,
            vault.Pending,
            lambda state, record, context, _position: vault.step(state, record, context),
            vault.finish,
            one_log=True,
        ),
        Format(
            "mcp",
            files.decode_json,
            _whole,
            mcp.Conversation,
            mcp.step,
            _nothing_left,
        ),
    )
}
