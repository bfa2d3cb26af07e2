from collections.abc import Mapping, Sequence
from typing import Any

class Plan:
    columns: list[tuple[str, str]]
    def __init__(
        self,
        types: Mapping[str, tuple[dict[str, Any], Mapping[tuple[str, ...], str]]],
        columns: Sequence[tuple[str, str]],
    ) -> None: ...

class Columns:
    rows: int
    def __init__(self, plan: Plan, topic: str, frames: list[tuple[bytes, str]]) -> None: ...
    def take(
        self, records: Sequence[tuple[Any, ...]], at: int, from_ms: int, until_ms: int
    ) -> int: ...
    def block(self, shared: Sequence[tuple[str, str, bytes]]) -> list[bytes]: ...
