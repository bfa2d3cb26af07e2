"""Findings about credentials: issued, used, renewed, rotated, revoked."""

from collections.abc import Iterator

from trailweave.stream_processors.chain import Chain
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
    own. A credential without a known expiry is not judged.
    """
    given = chain.of("credential_issued") + chain.of("credential_renewed")
    for use in chain.of("credential_used"):
        if use["status"] != "ok":
            continue
        before = [
            g
            for g in given
            if g["credential_id"] == use["credential_id"]
            and g["occurred_at"] <= use["occurred_at"]
            and g["expires_at"] is not None
        ]
        last = max(before, key=lambda g: g["occurred_at"], default=use)
        if last["expires_at"] is not None and use["occurred_at"] > last["expires_at"]:
            late_s = (use["occurred_at"] - last["expires_at"]) // 1_000_000
            events = (last, use) if last is not use else (use,)
            summary = f"a credential was used {late_s} s after it had expired"
            yield Hit(use["credential_id"], summary, events)
