"""Files of outside records -> events on Kafka. The edge: files, the clock, sending.

`trailweave ingest` calls `ingest`, or `dry_run`, which sends nothing. Every record of a file ends
in one of three places, and the report adds up: translated to events, passed over for a counted
reason, or in the dead letters with its position. A broken record stops nothing. The caller
publishes the schemas and waits for the transport. An error of `send` ends the run, and the files
may be read again: with the same settings the same records give the same ids and bytes, and the
join leaves out what it had. With other settings (a key, a capture level) the bytes differ, and the
join reports a conflict.
"""

import gzip
import io
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from trailweave.producers.adapters.files import Piece, split
from trailweave.producers.adapters.formats import FORMATS, Format, raw_bytes
from trailweave.producers.adapters.record import Context, Translated
from trailweave.producers.redact import Redactor
from trailweave.producers.transport import default_encoder
from trailweave.schemas.codec import EVENT_BYTES_MAX, Encoder
from trailweave.schemas.errors import Rejected
from trailweave.schemas.events import DEAD_LETTERS_TOPIC, Event, Json, event_types

#: topic, key, value. Raises what the transport raises.
Send = Callable[[str, bytes, bytes], None]

#: What a report names one by one; the rest is counted.
LISTED_MAX: Final = 1_000
#: Records between two calls of `on_progress`: some ten a second.
PROGRESS_RECORDS: Final = 2_000
#: Of a malformed record, this much goes to the dead letters: a record larger than Kafka's limit
#: couldn't.
DEAD_LETTER_VALUE_MAX: Final = 900_000
#: Longer than any secret that is recognised, so that none is cut in two before it is recognised.
_REDACTION_MARGIN: Final = 16_384

_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Malformed:
    """A record that couldn't be read, and where it lies."""

    file: str
    #: Number of the record in its file, from 0.
    position: int
    #: Line on which it starts, from 1.
    line: int
    code: str
    reason: str
    raw: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        return f"{self.file}, line {self.line} (record {self.position}): {self.reason}"


@dataclass(slots=True)
class Report:
    """What was read and what became of it: records = translated + passed over + malformed."""

    files: int = 0
    #: Outside records: spans, decisions, lines, messages.
    records: int = 0
    translated: int = 0
    #: Records that were passed over, by reason.
    skipped: Counter[str] = field(default_factory=Counter)
    malformed: int = 0
    #: Events sent, by type.
    events: Counter[str] = field(default_factory=Counter)
    #: The same events by how surely they are tied to a trace.
    correlation: Counter[str] = field(default_factory=Counter)
    #: Events that couldn't be sent: larger than Kafka takes, or with a value Avro can't hold.
    unsendable: int = 0
    #: The first of what went to the dead letters: malformed records and unsendable events.
    problems: list[Malformed] = field(default_factory=list)

    def as_json(self) -> Json:
        """The report as one JSON object."""
        return {
            "files": self.files,
            "records": self.records,
            "translated": self.translated,
            "skipped": dict(sorted(self.skipped.items())),
            "malformed": self.malformed,
            "events": dict(sorted(self.events.items())),
            "correlation": dict(sorted(self.correlation.items())),
            "unsendable": self.unsendable,
            "problems": [
                {"file": p.file, "record": p.position, "line": p.line, "reason": p.reason}
                for p in self.problems
            ],
        }


def ingest(
    files: Sequence[Path],
    name: str,
    context: Context,
    send: Send,
    on_progress: Callable[[Report], None] = lambda _: None,
    *,
    encoder: Encoder | None = None,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> Report:
    """Translate and send every record of the files.

    Raises `Rejected` for an unknown format or a file that can't be read, before anything is sent.
    """
    report = Report()
    outlet = _Outlet(context, name, send, encoder or default_encoder(), now_ms, report)
    for outcome in outcomes(files, name, context, report):
        outlet.take(outcome)
        if report.records % PROGRESS_RECORDS == 0:
            on_progress(report)
    on_progress(report)
    return report


def dry_run(files: Sequence[Path], name: str, context: Context) -> Iterator[Json]:
    """Each event as an object with its type under `event_type`, each malformed record as one.

    Raises `Rejected` as `ingest` does.
    """
    for outcome in outcomes(files, name, context, Report()):
        if isinstance(outcome, Malformed):
            yield {"malformed": str(outcome), "code": outcome.code}
            continue
        for event in outcome.translated.events:
            yield event.record
        for reason in outcome.translated.skipped:
            yield {"skipped": reason}


@dataclass(frozen=True, slots=True)
class Read:
    """A record that was read, and where from."""

    translated: Translated
    file: str
    position: int
    piece: Piece


Outcome = Read | Malformed


def outcomes(
    files: Sequence[Path], name: str, context: Context, report: Report
) -> Iterator[Outcome]:
    """What becomes of each record of the files; counts files and records in `report`.

    Raises `Rejected` for an unknown format or a file that can't be read, before the first record.
    """
    form = _format(name)
    for path in files:
        with _opened(path):
            pass  # all or none: a misspelt name shouldn't show after an hour
    state = form.start()
    for index, path in enumerate(files):
        report.files += 1
        file = path.name.removesuffix(".gz")
        with _opened(path) as stream:
            for outcome in read(stream, file, form, state, context):
                report.records += 1
                yield outcome
        if not form.one_log or index == len(files) - 1:
            for left in form.finish(state, context):
                yield Read(left, file, report.records, Piece(0, b""))
            state = form.start()


def read(
    stream: BinaryIO, file: str, form: Format, state: Any, context: Context
) -> Iterator[Outcome]:
    """What becomes of each record of one file; a function of its bytes, `state` and settings."""
    own = replace(context, conversation=context.conversation or file)
    for position, piece in enumerate(_pieces(stream, form)):
        yield _step(form, state, piece, Read(Translated(), file, position, piece), own)


def _step(form: Format, state: Any, piece: Piece, place: Read, context: Context) -> Outcome:
    code, reason = "malformed", piece.problem
    if reason is None:
        try:
            made = form.step(state, piece.value, context, place.position)
            return replace(place, translated=made)
        except Rejected as error:
            code, reason = error.reason.code, error.reason.detail
    return Malformed(place.file, place.position, piece.line, code, reason, raw_bytes(piece))


def _pieces(stream: BinaryIO, form: Format) -> Iterator[Piece]:
    line = 1
    try:
        for piece in split(stream, form.decode):
            line = piece.line
            yield from form.explode(piece)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        # What came before the break was whole, and has been read.
        yield Piece(line, b"", problem=f"the gzip stream is broken: {type(error).__name__}")


def _format(name: str) -> Format:
    found = FORMATS.get(name)
    if found is None:
        known = ", ".join(sorted(FORMATS))
        raise Rejected("unknown_format", f"couldn't read the format {name!r}; there are: {known}")
    return found


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked if they begin as gzip does."""
    try:
        with path.open("rb") as plain:
            if plain.peek(2)[:2] != _GZIP:
                yield plain
                return
            with gzip.GzipFile(fileobj=plain) as packed:
                yield cast("BinaryIO", io.BufferedReader(packed))
    except gzip.BadGzipFile:
        raise
    except OSError as error:
        raise Rejected("unreadable", f"couldn't read {path}: {error.strerror}") from None


@dataclass(slots=True)
class _Outlet:
    """Sends what was read, and counts it."""

    context: Context
    name: str
    send: Send
    encoder: Encoder
    now_ms: Callable[[], int]
    report: Report

    def take(self, outcome: Outcome) -> None:
        if isinstance(outcome, Malformed):
            self.report.malformed += 1
            self._dead_letter(outcome)
            return
        self.report.skipped.update(outcome.translated.skipped)
        self.report.translated += bool(outcome.translated.events)
        for event in outcome.translated.events:
            self._event(event, outcome)

    def _event(self, event: Event, read: Read) -> None:
        try:
            value = self.encoder.encode(event.name, event.record)
            if len(value) > EVENT_BYTES_MAX:
                size = f"{event.name} has {len(value)} bytes, the limit is {EVENT_BYTES_MAX}"
                raise Rejected("too_large", size)
        except Rejected as error:
            why, piece = error.reason, read.piece
            self.report.unsendable += 1
            self._dead_letter(
                Malformed(
                    read.file, read.position, piece.line, why.code, why.detail, raw_bytes(piece)
                )
            )
            return
        self.send(event_types()[event.name].topic, event.record["trace_id"].encode(), value)
        self.report.events[event.name] += 1
        self.report.correlation[event.record["correlation"]["how"]] += 1

    def _dead_letter(self, problem: Malformed) -> None:
        if len(self.report.problems) < LISTED_MAX:
            self.report.problems.append(replace(problem, raw=b""))
        record = dead_letter(problem, self.name, self.context, self.now_ms())
        key = f"{problem.file}|-1|{problem.position}".encode()
        self.send(DEAD_LETTERS_TOPIC, key, self.encoder.encode("dead_letter", record))


def dead_letter(problem: Malformed, name: str, context: Context, now_ms: int) -> Json:
    """The dead letter of a record: its place, why, and its text without secrets."""
    raw = problem.raw[: DEAD_LETTER_VALUE_MAX + _REDACTION_MARGIN]
    safe = Redactor(context.key).text("value", raw.decode("utf-8", "replace"))
    return {
        "topic": problem.file,
        "partition": -1,
        "offset": problem.position,
        "stage": f"ingest:{name}",
        "code": problem.code,
        "reason": f"line {problem.line}: {problem.reason}",
        "recorded_at": now_ms,
        "tenant": context.tenant,
        "key": None,
        "value": safe.encode()[:DEAD_LETTER_VALUE_MAX],
    }
