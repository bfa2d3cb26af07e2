from array import array
from collections.abc import Mapping, Sequence
from typing import Any

Found = tuple[
    list[dict[str, Any]],
    dict[tuple[str, int], list[dict[str, Any]]],
    bytes,
    list[bytes],
    list[tuple[dict[str, Any], int]],
]

class SessionReader:
    def __init__(
        self,
        parts: Sequence[tuple[str, int, bytes, bytes]],
        types: Mapping[bytes, tuple[str, str, Any]],
        ahead_us: int,
    ) -> None: ...
    def __call__(
        self, key: bytes, places: array[int], times: array[int], values: list[bytes]
    ) -> Found | None: ...
