"""Keyed hashes that must match across authors, and the leaves of the evidence tree.

A plain hash of a short text can be guessed; values that have to be compared across systems are
HMAC-SHA256 with a tenant key over RFC 8785 canonical JSON, the key's id in front.
"""

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

import rfc8785

try:
    from trailweave.schemas.native import hashing as native
except ImportError:  # a checkout, or a wheel that was built without a C compiler
    native = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class TenantKey:
    """A secret shared by the producers and adapters of one tenant."""

    kid: str
    secret: bytes

    def __repr__(self) -> str:
        return f"TenantKey(kid={self.kid!r})"


def _plain(value: Any) -> bool:
    """Whether the C encoder's sorted output is already RFC 8785: ASCII, no floats, small ints."""
    if isinstance(value, str):
        return value.isascii()
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int):
        return -(2**53) < value < 2**53
    if isinstance(value, dict):
        return all(isinstance(k, str) and k.isascii() and _plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return False


def canonical_json(value: Any) -> bytes:
    """RFC 8785 bytes of a JSON value; raises ValueError for what JSON can't hold."""
    if _plain(value):
        # 0x7f apart, which json escapes nowhere and RFC 8785 writes as it is.
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return rfc8785.dumps(value)


def keyed_hash(key: TenantKey, value: Any) -> str:
    """`hmac:<kid>:<64 hex>` of a JSON value."""
    return f"hmac:{key.kid}:{hmac.digest(key.secret, canonical_json(value), 'sha256').hex()}"


def keyed_text_hash(key: TenantKey, text: str) -> str:
    """`hmac:<kid>:<64 hex>` of a text's UTF-8 bytes: ids, accessors, contents."""
    return f"hmac:{key.kid}:{hmac.digest(key.secret, text.encode(), 'sha256').hex()}"


def leaf(topic: str, partition: int, offset: int, key: bytes, value: bytes) -> bytes:
    """SHA-256(0x00 ‖ d), d = the fixed encoding of where a record lies and of its bytes' hashes.

    d = length of the topic (2 bytes), topic, partition (4), offset (8), SHA-256(key),
    SHA-256(value), all big endian.
    """
    key_digest = hashlib.sha256(key).digest()
    return leaf_behind(leaf_prefix(topic, partition), offset, key_digest, value)


def leaf_prefix(topic: str, partition: int) -> bytes:
    """What the leaves of one topic partition begin with, 0x00 included."""
    name = topic.encode()
    return b"\x00" + len(name).to_bytes(2, "big") + name + partition.to_bytes(4, "big")


def leaf_behind(prefix: bytes, offset: int, key_digest: bytes, value: bytes) -> bytes:
    """`leaf` with what many records share computed once."""
    tail = prefix + offset.to_bytes(8, "big") + key_digest + hashlib.sha256(value).digest()
    return hashlib.sha256(tail).digest()


def merkle_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 tree hash over leaf hashes in order; SHA-256("") for none."""
    root = None if native is None else native.merkle_root(leaves)
    return _merkle_root(leaves) if root is None else root


def _merkle_root(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = leaves
    while len(level) > 1:
        # Pairing neighbours and carrying an odd last one up gives the RFC's tree, whose left
        # subtree is the largest full one.
        pairs = [
            hashlib.sha256(b"\x01" + level[i] + level[i + 1]).digest()
            for i in range(0, len(level) - 1, 2)
        ]
        level = [*pairs, level[-1]] if len(level) % 2 else pairs
    return level[0]
