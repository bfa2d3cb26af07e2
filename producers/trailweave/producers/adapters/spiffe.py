"""SPIFFE IDs, read strictly: what is not exactly one is rejected, never repaired. Pure."""

import re
from dataclasses import dataclass
from typing import Final

#: The specification's limits, in bytes.
ID_BYTES_MAX: Final = 2048
TRUST_DOMAIN_BYTES_MAX: Final = 255

_ID: Final = re.compile(r"spiffe://([a-z0-9._-]+)((?:/[A-Za-z0-9._-]+)*)")


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A workload's name: `spiffe://<trust domain><path>`."""

    trust_domain: str
    path: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}{self.path}"


def read_spiffe_id(text: str) -> SpiffeId | None:
    """The id that `text` is, or None: another case, an escape or an empty segment makes it none."""
    found = _ID.fullmatch(text)
    if found is None or len(text) > ID_BYTES_MAX:
        return None
    trust_domain, path = found.groups()
    if len(trust_domain) > TRUST_DOMAIN_BYTES_MAX:
        return None
    if any(segment in (".", "..") for segment in path.split("/")):
        return None
    return SpiffeId(trust_domain, path)
