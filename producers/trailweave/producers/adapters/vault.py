"""OpenBao and Vault audit lines -> credential events. Pure.

One event for each answered request, made from its response line: what was issued, renewed, rotated
or revoked, else the use of the token. A request line is passed over, for its response follows;
one that never gets a response is an event all the same (`start`, `step`, `finish`).

Accessors, lease ids and entity ids come out as keyed hashes. A vault hashes most of them itself,
with a salt per audit device. Where `Context.audit_hashes` (from `sys/audit-hash`) knows a hash, the
plain value's keyed hash is used, so that the agent's own events match; otherwise the vault's hash
is hashed again. Renewals show a lease and its hash together, so later lines of the same run are
understood; rotated files should be read in one run, in order. A lease's end is not in these lines
(only the agent knows it); a token's is.
"""

import hashlib
import hmac
import re
from collections import ChainMap, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar, cast

from trailweave.producers.adapters.record import (
    NOBODY,
    Context,
    Place,
    Source,
    Tie,
    Translated,
    checked_time,
    event_id,
    fingerprint,
    handle_hash,
    is_vault_hash,
    listed,
    make,
    malformed,
    named_identity,
    number,
    placed,
    scalar_text,
    table,
    text,
    texts,
    time_us,
)
from trailweave.producers.adapters.spiffe import read_spiffe_id
from trailweave.producers.adapters.trace_ids import header_traceparent
from trailweave.producers.identity import Evidence, Identity
from trailweave.schemas.errors import Rejected
from trailweave.schemas.events import Json

#: Requests that wait for their response; a vault answers within seconds.
PENDING_MAX: Final = 10_000
#: Answered requests (to know the same line from a second audit device) and leases' hashes.
REMEMBERED_MAX: Final = 100_000

T = TypeVar("T")

_HAS_RESPONSE: Final = "a request line: its response line is the event"
_AGAIN: Final = "a line of a request that was read before, from another audit device"

#: What a token's display name starts with -> who logs in by that method.
_HUMAN_METHODS: Final = ("userpass", "ldap", "oidc", "github", "okta", "radius")

_TOKEN_RENEW: Final = re.compile(r"auth/token/renew(?:-self|-accessor)?(?:/.*)?")
_TOKEN_REVOKE: Final = re.compile(r"auth/token/revoke(?:-self|-accessor|-orphan)?(?:/.*)?")
_LEASE_RENEW: Final = re.compile(r"sys/(?:leases/)?renew(?:/(.*))?")
_LEASE_REVOKE: Final = re.compile(r"sys/(?:leases/)?revoke(?:-prefix|-force)?(?:/(.*))?")
_ROTATE: Final = re.compile(r"(?:.*/)?(?:rotate|rotate-root|rotate-role)(?:/.*)?")


def audit_hash(salt: bytes, value: str) -> str:
    """What an audit device with this salt writes for `value`, as `sys/audit-hash` answers."""
    return f"hmac-sha256:{hmac.digest(salt, value.encode(), hashlib.sha256).hex()}"


def audit_hashes(document: object) -> dict[str, str]:
    """`Context.audit_hashes` from plain value -> hash, as `sys/audit-hash` gave them.

    Raises `Rejected` for what is no object of texts.
    """
    pairs = document.get("pairs", document) if isinstance(document, dict) else None
    if not isinstance(pairs, dict) or not all(
        isinstance(hashed, str) and is_vault_hash(hashed) for hashed in pairs.values()
    ):
        raise malformed("audit hashes are an object: plain value -> hmac-sha256:...")
    return {hashed: plain for plain, hashed in pairs.items()}


@dataclass(slots=True)
class Pending:
    """What earlier lines of a log say about later ones, the oldest first."""

    #: Requests whose response has not come yet.
    requests: OrderedDict[str, Json] = field(default_factory=OrderedDict)
    answered: OrderedDict[str, None] = field(default_factory=OrderedDict)
    #: A lease's hash as requests have it -> the lease, learnt from renewals, which show both.
    leases: OrderedDict[str, str] = field(default_factory=OrderedDict)


def step(pending: Pending, record: object, context: Context) -> Translated:
    """Fold one line in; raises `Rejected` for what is no audit line.

    A request line gives nothing yet; what became of it is said with its response, or at the end.
    """
    line = _checked(record)
    _learn(pending, line)
    context = _knowing(pending, context)
    request_id = text(table(line, "request"), "id")
    if request_id is None:
        return events_of(line, context)  # nothing to pair it by
    if request_id in pending.answered:
        return Translated(skipped=(_AGAIN,))
    if line["type"] == "response":
        # First the event: a response that can't be read leaves its request unanswered.
        events = events_of(line, context).events
        asked = pending.requests.pop(request_id, None)
        _keep(pending.answered, request_id, None)
        return Translated(events, (_HAS_RESPONSE,) if asked else ())
    if request_id in pending.requests:
        return Translated(skipped=(_AGAIN,))
    pending.requests[request_id] = line
    if len(pending.requests) <= PENDING_MAX:
        return Translated()
    _, oldest = pending.requests.popitem(last=False)
    return _unanswered(oldest, context)


def finish(pending: Pending, context: Context) -> Iterator[Translated]:
    """What was asked for and never answered."""
    context = _knowing(pending, context)
    while pending.requests:
        _, line = pending.requests.popitem(last=False)
        yield _unanswered(line, context)


def _unanswered(line: Json, context: Context) -> Translated:
    try:
        return events_of(line, context)
    except Rejected as error:
        return Translated(skipped=(f"an unanswered request: {error.reason.detail}",))


def _learn(pending: Pending, line: Json) -> None:
    lease = text(table(table(line, "response"), "secret"), "lease_id")
    hashed = text(table(table(line, "request"), "data"), "lease_id")
    if lease and hashed and is_vault_hash(hashed):
        _keep(pending.leases, hashed, lease)


def _keep(kept: OrderedDict[str, T], key: str, value: T) -> None:
    kept[key] = value
    if len(kept) > REMEMBERED_MAX:
        kept.popitem(last=False)


def _knowing(pending: Pending, context: Context) -> Context:
    if not pending.leases:
        return context
    # Only read from, so that copying it for every line is not needed.
    known = ChainMap(pending.leases, cast("dict[str, str]", context.audit_hashes))
    return replace(context, audit_hashes=known)


def events_of(record: object, context: Context) -> Translated:
    """The event of one line, request or response; raises `Rejected` for what is neither."""
    line = _checked(record)
    what, fields, ties = _what(line, context)
    source = _source(line, ties, context)
    made = make(context, source, what, {**fields, **_issuer(context, what)})
    if "credential_id" in fields and fields["credential_id"] is None:
        # Nothing names the credential without a key; one shared placeholder would make all of
        # them look like one credential in many hands.
        made.record["credential_id"] = f"unkeyed:{event_id(context, source, what)}"
    return Translated((made,))


def _checked(record: object) -> Json:
    if not isinstance(record, dict):
        raise malformed("an audit line is an object")
    if record.get("type") not in ("request", "response"):
        raise malformed("type is neither request nor response")
    if not isinstance(record.get("request"), dict):
        raise malformed("request is missing")
    return record


# --- which event ------------------------------------------------------------------------------


def _what(line: Json, context: Context) -> tuple[str, Json, list[Tie]]:
    """Name, own fields, and what ties it to others, surest first."""
    path = (text(table(line, "request"), "path") or "").strip("/")
    ties = _ties(line, context)
    if text(line, "error") is None and line["type"] == "response":
        changed = _token_change(line, path, context) or _lease_change(line, path, context)
        if changed is not None:
            name, fields, lease = changed
            leases = [Tie("lease_id", _plain(lease, context))] if lease else []
            return name, fields, [*ties[:1], *leases, *ties[1:]]
    return _use(line, path, ties, context)


def _token_change(line: Json, path: str, context: Context) -> tuple[str, Json, str | None] | None:
    response, caller = table(line, "response"), table(line, "auth")
    auth, wrapped = table(response, "auth"), table(response, "wrap_info")
    if _TOKEN_REVOKE.fullmatch(path):
        return "credential_revoked", _token(_revoked_token(line, path), {}, context), None
    if text(auth, "accessor"):
        accessor = _plain(text(auth, "accessor") or "", context)
        name = "credential_renewed" if _TOKEN_RENEW.fullmatch(path) else "credential_issued"
        fields = _token(accessor, auth, context)
        parent = text(caller, "accessor")
        if name == "credential_issued" and path.startswith("auth/token/create") and parent:
            fields["parent_credential_id"] = handle_hash(context, _plain(parent, context))
        return name, fields, None
    if text(wrapped, "accessor"):
        accessor = _plain(text(wrapped, "accessor") or "", context)
        fields = _token(accessor, {}, context)
        issued, ttl = time_us(wrapped.get("creation_time")), number(wrapped, "ttl")
        expires = checked_time(issued + ttl * 1_000_000) if issued is not None and ttl else None
        kind = {"credential_kind": "wrapping_token", "issued_at": issued, "expires_at": expires}
        return "credential_issued", {**fields, **kind}, None
    return None


def _revoked_token(line: Json, path: str) -> str | None:
    """What names the token that was revoked: an accessor, or the vault's hash of the token."""
    data, caller = table(table(line, "request"), "data"), table(line, "auth")
    if path.endswith("revoke-self"):
        return text(caller, "accessor")
    named = text(data, "accessor", "token")
    # A plain token here is a secret that an unhashed audit device wrote down.
    return named if named and (text(data, "accessor") or is_vault_hash(named)) else None


def _token(accessor: str | None, auth: Json, context: Context) -> Json:
    hashed = handle_hash(context, _plain(accessor, context)) if accessor else None
    issued, ttl = time_us(auth.get("token_issue_time")), number(auth, "token_ttl")
    expires = checked_time(issued + ttl * 1_000_000) if issued is not None and ttl else None
    return {
        "credential_id": hashed,
        "credential_kind": "vault_token",
        "subject": text(auth, "display_name"),
        "scopes_granted": texts(listed(auth, "policies")),
        "issued_at": issued,
        # A TTL of 0 is a token that never ends, and null says that too.
        "expires_at": expires,
        "handles": [{"kind": "accessor", "hash": hashed}] if hashed else [],
    }


def _lease_change(line: Json, path: str, context: Context) -> tuple[str, Json, str | None] | None:
    request, response = table(line, "request"), table(line, "response")
    lease = text(table(response, "secret"), "lease_id")
    asked = text(table(request, "data"), "lease_id")
    for name, pattern in (
        ("credential_renewed", _LEASE_RENEW),
        ("credential_revoked", _LEASE_REVOKE),
    ):
        found = pattern.fullmatch(path)
        if found:
            lease = lease or asked or found.group(1)
            return name, _lease(lease, line, context), lease
    if lease is not None:
        fields = {"issued_at": time_us(line.get("time")), **_lease(lease, line, context)}
        return "credential_issued", fields, lease
    if _ROTATE.fullmatch(path) and text(request, "operation") in ("update", "create"):
        rotated = {"credential_id": handle_hash(context, path), "credential_kind": "root_or_role"}
        return "credential_rotated", {**rotated, "reason": path}, None
    return None


def _lease(lease: str | None, line: Json, context: Context) -> Json:
    hashed = handle_hash(context, _plain(lease, context)) if lease else None
    accessor = text(table(line, "auth"), "accessor")
    asked = text(table(table(line, "request"), "data"), "lease_id")
    # A renewal's line shows both names of its lease: the pair is what ties a revocation to it.
    names = [hashed, handle_hash(context, asked) if asked else None]
    return {
        "credential_id": hashed,
        "credential_kind": "dynamic_secret",
        "lease_id": hashed,
        "subject": text(table(line, "auth"), "display_name"),
        # Revoking a token revokes the leases it took out.
        "parent_credential_id": (
            handle_hash(context, _plain(accessor, context)) if accessor else None
        ),
        "scopes_granted": _granting(line),
        "handles": [{"kind": "lease_id", "hash": name} for name in dict.fromkeys(names) if name],
    }


def _use(line: Json, path: str, ties: list[Tie], context: Context) -> tuple[str, Json, list[Tie]]:
    """The use of a token; what was asked for without one is the vault's own observation."""
    request, auth = table(line, "request"), table(line, "auth")
    accessor = text(auth, "accessor") or text(request, "client_token_accessor")
    operation = text(request, "operation") or "unknown"
    request_id = text(request, "id")
    if accessor is None:
        fields: Json = {
            "system": "vault",
            "operation": operation,
            "resource": path or None,
            "request_id": handle_hash(context, request_id) if request_id else None,
            "status": _status(line),
            "source_address": text(request, "remote_address"),
        }
        return "downstream_observed", fields, ties
    granted = _granting(line)
    fields = {
        **_token(accessor, auth, context),
        "scope_exercised": granted[0] if granted else None,
        "resource": path or None,
        "status": _status(line),
        "reason": operation,
    }
    return "credential_used", fields, ties


def _granting(line: Json) -> list[str]:
    """The policies that allowed the request: the part of the token's scope that was exercised."""
    results = table(table(line, "auth"), "policy_results")
    found = [
        text(each, "name")
        for each in listed(results, "granting_policies")
        if isinstance(each, dict)
    ]
    return [name for name in found if name]


def _status(line: Json) -> str:
    error = text(line, "error")
    if table(table(line, "auth"), "policy_results").get("allowed") is False:
        return "denied"
    if error is not None:
        return "denied" if "permission denied" in error else "error"
    return "ok" if line["type"] == "response" else "unknown"


# --- the envelope -----------------------------------------------------------------------------


def _plain(value: str, context: Context) -> str:
    return context.audit_hashes.get(value, value)


def _ties(line: Json, context: Context) -> list[Tie]:
    request, auth = table(line, "request"), table(line, "auth")
    given = table(table(line, "response"), "auth")
    values = (
        ("accessor", text(auth, "accessor") or text(request, "client_token_accessor")),
        ("accessor", text(given, "accessor")),
        ("entity_id", text(auth, "entity_id") or text(given, "entity_id")),
        ("request_id", text(request, "id")),
    )
    return [Tie(kind, _plain(value, context)) for kind, value in values if value]


def _source(line: Json, ties: list[Tie], context: Context) -> Source:
    request = table(line, "request")
    mark = fingerprint(line)
    request_id = text(request, "id")
    original_id = f"{request_id}:{line['type']}" if request_id else mark
    occurred_at = time_us(line.get("time"))
    listing = {
        "vault.path": request.get("path"),
        "vault.operation": request.get("operation"),
        "vault.mount_type": request.get("mount_type"),
        "vault.namespace": table(request, "namespace").get("path"),
        "vault.remote_address": request.get("remote_address"),
    }
    return Source(
        original_id=original_id,
        fingerprint=mark,
        place=_place(line, ties, original_id, context),
        occurred_at=context.default_time_us if occurred_at is None else occurred_at,
        actor=_actor(line, context),
        attributes={k: v for k, raw in listing.items() if (v := scalar_text(raw)) is not None},
    )


def _place(line: Json, ties: list[Tie], original_id: str, context: Context) -> Place:
    parent = header_traceparent(table(table(line, "request"), "headers"))
    place = placed(context, parent.trace_id if parent else None, ties, original_id)
    if parent is None:
        return place
    return Place(
        place.trace_id,
        place.how,
        place.handles,
        parent_span_id=parent.span_id,
        parent_remote=True,
    )


def _actor(line: Json, context: Context) -> Identity:
    """Whom the vault knows the token's holder as; it verified that, unless it refused."""
    auth = table(line, "auth") or table(table(line, "response"), "auth")
    name = text(auth, "display_name")
    if name is None:
        return NOBODY
    values = texts(list(table(auth, "metadata").values()))
    spiffe = next((value for value in values if read_spiffe_id(value)), None)
    human = name.split("-")[0] in _HUMAN_METHODS
    who = named_identity("human" if human else "workload", spiffe or name)
    if _status(line) != "ok":
        return who
    verifier = context.reporter.subject
    return replace(
        who,
        issuer=who.issuer or verifier,
        assurance="verified",
        evidence=Evidence("vault_token", verified_by=verifier),
    )


def _issuer(context: Context, name: str) -> Json:
    return {} if name == "downstream_observed" else {"issuer": context.reporter.subject}
