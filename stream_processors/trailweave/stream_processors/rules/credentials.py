"""Findings about credentials: issued, used, renewed, rotated, revoked."""

from collections.abc import Iterator

from trailweave.stream_processors.chain import Chain, Record
from trailweave.stream_processors.rules.limits import Limits
from trailweave.stream_processors.rules.rule import Hit, rule
from trailweave.stream_processors.rules.times import SKEW_US, occurred_at


@rule(
    "high",
    controls=("NHI4:2025", "IA-5", "OWASP NHI-02"),
    about=("credential_used",),
    expected="no successful use after the expiry of the credential's last issue or renewal",
    next_step="find the service that accepts expired credentials; rotate this one",
    early=True,
)
def cred_after_expiry(chain: Chain) -> Iterator[Hit]:
    """A credential was used, with success, after it had expired.

    The expiry is the last one that an issue or a renewal gave before the use; a use may carry its
    own. A credential without a known expiry is not judged, nor is a use without a time. An issue or
    renewal without a time may have come before the use: an expiry that it gave makes no use late
    that another one covers, and excuses one that it covers itself.
    """
    given = chain.of("credential_issued") + chain.of("credential_renewed")
    uses = chain.of("credential_used")
    expiries = [r["expires_at"] for r in given + uses if r["expires_at"] is not None]
    if not expiries or uses[-1]["occurred_at"] <= min(expiries):
        return
    for use in uses:
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


@rule(
    "critical",
    controls=("NHI1:2025", "AC-2", "IA-5", "PCI DSS 8.2.5", "OWASP NHI-01"),
    about=("credential_revoked", "credential_used"),
    expected="no successful use after the credential, or the one it was issued under, was revoked",
    next_step="find the service that does not ask about revocations; see what the use has done",
    early=True,
)
def cred_after_revoke(chain: Chain) -> Iterator[Hit]:
    """A credential was used, with success, after it had been revoked.

    Whoever revokes a credential revokes those that were issued under it. A use within five seconds
    is not judged, for clocks differ; nor is a use or a revocation without a time.
    """
    revoked: dict[str, Record] = {}
    for record in chain.of("credential_revoked"):
        if record["occurred_at"]:
            revoked.setdefault(record["credential_id"], record)  # they are in the order of time
    uses = chain.of("credential_used")
    if not revoked or uses[-1]["occurred_at"] <= min(map(occurred_at, revoked.values())) + SKEW_US:
        return
    parents = {r["credential_id"]: r["parent_credential_id"] for r in chain.of("credential_issued")}
    for use in uses:
        if use["status"] != "ok" or not use["occurred_at"]:
            continue
        line = [use["credential_id"]]
        for one in line:  # grows while it is walked
            above = parents.get(one)
            if above is not None and above not in line:
                line.append(above)
        ends = [revoked[one] for one in line if one in revoked]
        end = min(ends, key=occurred_at, default=None)
        if end is not None and use["occurred_at"] > end["occurred_at"] + SKEW_US:
            late_s = (use["occurred_at"] - end["occurred_at"]) // 1_000_000
            summary = f"a credential was used {late_s} s after it had been revoked"
            yield Hit(use["credential_id"], summary, (end, use))


@rule(
    "medium",
    controls=("NHI7:2025", "IA-5", "OWASP NHI-06"),
    needs=("vault",),
    about=("credential_used",),
    expected="an issue of every credential that the session uses",
    next_step="find out where the credential comes from; have the vault issue one for each task",
)
def cred_not_issued(chain: Chain) -> Iterator[Hit]:
    """A credential was used, with success, that was not issued in this session.

    Not if the use says in which other trace it was issued. What a rotation puts in the place of
    another credential counts as issued. Evaluated when a vault is promised to report.
    """
    uses = chain.of("credential_used")
    if not uses:
        return
    known = {r["credential_id"] for r in chain.of("credential_issued")}
    known |= {r["successor_credential_id"] for r in chain.of("credential_rotated")}
    for use in uses:
        elsewhere = use["issued_trace_id"] not in (None, chain.trace_id)
        if use["status"] == "ok" and use["credential_id"] not in known and not elsewhere:
            kind = use["credential_kind"]
            summary = f"a credential ({kind}) was used that the session was not issued"
            yield Hit(use["credential_id"], summary, (use,))


@rule(
    "medium",
    controls=("NHI7:2025", "IA-5(1)", "OWASP NHI-06"),
    expected="credentials that end by themselves, soon after the task",
    next_step="give the role a time to live; replace the credential by short-lived ones",
    early=True,
)
def standing_cred(chain: Chain, limits: Limits) -> Iterator[Hit]:
    """A credential was issued or used that lives for too long, or for ever.

    Too long: more than `limits.credential_ttl_s`. One without an expiry lives for ever if whoever
    reports it knows when it was issued; else its expiry is not known.
    """
    most_us = int(limits.credential_ttl_s * 1_000_000)
    for name in ("credential_issued", "credential_used"):
        for record in chain.of(name):
            issued, expires = record["issued_at"], record["expires_at"]
            if issued is None or (expires is not None and expires - issued <= most_us):
                continue
            for_long = "for ever" if expires is None else f"{(expires - issued) // 3_600_000_000} h"
            kind = record["credential_kind"]
            yield Hit(record["credential_id"], f"a credential ({kind}) lives {for_long}", (record,))


@rule(
    "medium",
    controls=("NHI1:2025", "AC-2(3)", "OWASP NHI-02"),
    needs=("vault",),
    about=("credential_issued", "session_ended"),
    expected="an end, by expiry or revocation, of every credential that was issued for the task",
    next_step="revoke the credential; have the agent give its leases back when it is done",
)
def cred_left_alive(chain: Chain, limits: Limits) -> Iterator[Hit]:
    """A credential that was issued for the task is still good when the root session has ended.

    For the task: its issue names one. Good: neither revoked nor rotated, and its last expiry is
    more than `limits.credential_alive_s` after the end. Not judged without a root end that has a
    time, nor where the expiry is not known. Evaluated when a vault is promised to report.
    """
    issued = [r for r in chain.of("credential_issued") if r["task_id"] is not None]
    ends = [r for r in chain.of("session_ended") if r["root"] and r["occurred_at"]]
    if not issued or not ends:
        return
    late = ends[-1]["occurred_at"] + int(limits.credential_alive_s * 1_000_000)
    over = {r["credential_id"] for r in chain.of("credential_revoked")}
    over |= {r["credential_id"] for r in chain.of("credential_rotated")}
    renewed = chain.by("credential_renewed", "credential_id")
    for issue in issued:
        credential_id = issue["credential_id"]
        expiries = [issue["expires_at"], *(r["expires_at"] for r in renewed.get(credential_id, ()))]
        known = [expiry for expiry in expiries if expiry is not None]
        if credential_id not in over and known and max(known) > late:
            seconds = (max(known) - ends[-1]["occurred_at"]) // 1_000_000
            summary = f"a credential outlives its task by {seconds} s"
            yield Hit(credential_id, summary, (issue, ends[-1]))


def _latest(given: list[Record], use: Record) -> Record:
    """Whatever gave the expiry that holds for a use: the last with a time, or a longer one."""
    last = max((g for g in given if g["occurred_at"]), key=occurred_at, default=use)
    longer = [g for g in given if not g["occurred_at"]]
    if last["expires_at"] is not None:
        longer.append(last)
    return max(longer, key=lambda g: g["expires_at"], default=use)
