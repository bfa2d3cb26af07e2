"""Findings about credentials: issued, used, renewed, rotated, revoked."""

from collections.abc import Iterator

from trailweave.stream_processors.chain import Chain, Record
from trailweave.stream_processors.rules.rule import Hit, rule


@rule(
    "high",
    controls=("NHI4:2025", "IA-5", "OWASP NHI-02"),
    expected="no successful use after the expiry of the credential's last issue or renewal",
    next_step="find the service that accepts expired credentials; rotate this one",
)
def cred_after_expiry(chain: Chain) -> Iterator[Hit]:
    """A credential was used, with success, after it had expired.

    The expiry is the last one that an issue or a renewal gave before the use; a use may carry its
    own. A credential without a known expiry is not judged, nor is a use without a time. An issue or
    renewal without a time may have come before the use: an expiry that it gave makes no use late
    that another one covers, and excuses one that it covers itself.
    """
    given = chain.of("credential_issued") + chain.of("credential_renewed")
    for use in chain.of("credential_used"):
        if use["status"] != "ok" or not use["occurred_at"]:
            continue
        before = [
            g
            for g in given
            if g["credential_id"] == use["credential_id"]
            and g["occurred_at"] <= use["occurred_at"]
            and g["expires_at"] is not None
        ]
        last = _latest(before, use)
        if last["expires_at"] is not None and use["occurred_at"] > last["expires_at"]:
            late_s = (use["occurred_at"] - last["expires_at"]) // 1_000_000
            events = (last, use) if last is not use else (use,)
            summary = f"a credential was used {late_s} s after it had expired"
            yield Hit(use["credential_id"], summary, events)


def _latest(given: list[Record], use: Record) -> Record:
    """Whatever gave the expiry that holds for a use: the last with a time, or a longer one."""
    last = max((g for g in given if g["occurred_at"]), key=_occurred_at, default=use)
    longer = [g for g in given if not g["occurred_at"]]
    if last["expires_at"] is not None:
        longer.append(last)
    return max(longer, key=lambda g: g["expires_at"], default=use)


def _occurred_at(record: Record) -> int:
    return int(record["occurred_at"])
