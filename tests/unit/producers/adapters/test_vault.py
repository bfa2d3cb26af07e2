"""OpenBao and Vault audit lines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trailweave.producers.adapters import vault
from trailweave.schemas.errors import Rejected
from trailweave.schemas.hashing import TenantKey, keyed_text_hash

Reading = Callable[..., list[dict[str, Any]]]
ContextOf = Callable[..., Any]

KEY = TenantKey("k1", b"made-up key")
LEASE = "database/creds/claims/iiRBrOadEy3sY9C8aSWiwLjU"
AT = "2026-11-20T20:00:00Z"
AUTH = {
    "accessor": "acc-1",
    "display_name": "approle",
    "policies": ["db-reader", "default"],
    "policy_results": {"allowed": True, "granting_policies": [{"name": "db-reader"}]},
}


def response(path: str, more: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    request = {"id": "r1", "operation": "update", "path": path, **(more or {})}
    return {"time": AT, "type": "response", "auth": AUTH, "request": request, **fields}


def lifecycle(vectors: Path) -> bytes:
    return (vectors / "vault" / "constructed-openbao-lease-lifecycle.jsonl").read_bytes()


def test_a_lease_is_issued_renewed_and_revoked_as_one_credential(
    vectors: Path, reading: Reading
) -> None:
    found = reading("vault", lifecycle(vectors))

    assert [each["event_type"] for each in found] == [
        "credential_issued",
        "credential_renewed",
        "credential_revoked",
    ]
    assert {each["credential_id"] for each in found} == {keyed_text_hash(KEY, LEASE)}
    assert {each["trace_id"] for each in found} == {"4bf92f3577b34da6a3ce929d0e0e4736"}
    assert found[0]["scopes_granted"] == ["db-reader"]
    assert found[0]["actor"]["assurance"] == "verified"
    assert all(each["expires_at"] is None for each in found if "expires_at" in each)
    assert not any(LEASE in json.dumps(each) for each in found)


def test_the_published_hashes_are_what_an_audit_device_writes(vectors: Path) -> None:
    text = (vectors / "vault" / "constructed-audit-hash.json").read_text("utf-8")
    known = json.loads(text)
    salt = known["salt_utf8"].encode()

    assert {plain: vault.audit_hash(salt, plain) for plain in known["pairs"]} == known["pairs"]


def test_known_audit_hashes_make_the_agents_own_hash_match(
    vectors: Path, reading: Reading, context_of: ContextOf
) -> None:
    text = (vectors / "vault" / "constructed-audit-hash.json").read_text("utf-8")
    hashes = vault.audit_hashes(json.loads(text))
    revocation = lifecycle(vectors).splitlines()[-1]
    (found,) = reading("vault", revocation, context=context_of("vault", audit_hashes=hashes))

    assert found["credential_id"] == keyed_text_hash(KEY, LEASE)
    assert found["parent_credential_id"] == keyed_text_hash(KEY, "acc-constructed-1")


@pytest.mark.parametrize("document", [[], {"a": 1}, {"a": "plain"}, {"pairs": ["x"]}])
def test_what_holds_no_audit_hashes_is_refused(document: object) -> None:
    with pytest.raises(Rejected, match="audit hashes"):
        vault.audit_hashes(document)


def test_the_published_lines_come_through_with_and_without_a_prefix(
    vectors: Path, reading: Reading
) -> None:
    folder = vectors / "vault"
    (plain,) = reading(
        "vault", (folder / "transcribed-openbao-format-json-test.jsonl").read_bytes()
    )
    (prefixed,) = reading("vault", (folder / "transcribed-prefixed-line.txt").read_bytes())

    assert plain == prefixed
    assert (plain["event_type"], plain["status"]) == ("credential_used", "error")
    assert plain["expires_at"] - plain["issued_at"] == 14_400_000_000
    assert plain["correlation"]["how"] == "handle"


def test_a_request_without_a_token_is_the_vaults_own_observation(
    vectors: Path, reading: Reading
) -> None:
    (found,) = reading("vault", (vectors / "vault" / "docs-elided-list-response.json").read_bytes())

    assert (found["event_type"], found["operation"]) == ("downstream_observed", "list")
    assert found["correlation"]["how"] == "uncorrelated"


@pytest.mark.parametrize(
    ("path", "more", "extra", "name", "kind"),
    [
        (
            "auth/approle/login",
            {},
            {"response": {"auth": {"accessor": "new", "token_ttl": 60}}},
            "credential_issued",
            "vault_token",
        ),
        (
            "auth/token/renew-self",
            {},
            {"response": {"auth": {"accessor": "acc-1", "token_ttl": 60}}},
            "credential_renewed",
            "vault_token",
        ),
        ("auth/token/revoke-self", {}, {}, "credential_revoked", "vault_token"),
        (
            "auth/token/revoke-accessor",
            {"data": {"accessor": "acc-2"}},
            {},
            "credential_revoked",
            "vault_token",
        ),
        ("sys/leases/revoke-prefix/database", {}, {}, "credential_revoked", "dynamic_secret"),
        ("database/rotate-root/pg", {}, {}, "credential_rotated", "root_or_role"),
        (
            "kv/data/x",
            {},
            {"response": {"wrap_info": {"accessor": "w", "creation_time": AT, "ttl": 60}}},
            "credential_issued",
            "wrapping_token",
        ),
        ("kv/data/x", {"operation": "read"}, {}, "credential_used", "vault_token"),
    ],
)
def test_a_path_says_what_happened_to_which_credential(
    reading: Reading, path: str, more: Any, extra: Any, name: str, kind: str
) -> None:
    (found,) = reading("vault", response(path, more, **extra))

    assert (found["event_type"], found["credential_kind"]) == (name, kind)
    assert found["credential_id"].startswith("hmac:k1:")


def test_the_scope_exercised_is_the_policy_that_granted_it(reading: Reading) -> None:
    (found,) = reading("vault", response("kv/data/x"))

    assert found["scopes_granted"] == ["db-reader", "default"]
    assert found["scope_exercised"] == "db-reader"


def test_a_token_that_was_made_with_another_knows_its_parent(reading: Reading) -> None:
    made = {"auth": {"accessor": "child", "token_ttl": 60, "token_issue_time": AT}}
    (found,) = reading("vault", response("auth/token/create", response=made))

    assert found["parent_credential_id"] == keyed_text_hash(KEY, "acc-1")
    assert found["expires_at"] == found["issued_at"] + 60_000_000


def test_a_refused_request_is_a_denied_use_by_an_unverified_holder(reading: Reading) -> None:
    (found,) = reading("vault", response("kv/data/x", error="1 error: permission denied"))

    assert (found["status"], found["actor"]["assurance"]) == ("denied", "asserted")


def test_a_request_that_was_never_answered_is_recorded_all_the_same(reading: Reading) -> None:
    request = {**response("kv/data/x"), "type": "request"}
    (found,) = reading("vault", request)

    assert (found["event_type"], found["status"]) == ("credential_used", "unknown")


def test_a_second_audit_device_doubles_nothing(reading: Reading) -> None:
    answered = response("kv/data/x")
    request = {**answered, "type": "request"}

    assert len(reading("vault", request, request, answered, answered, request)) == 1


def test_lines_without_a_trace_share_one_by_their_accessor(reading: Reading) -> None:
    one, other = reading("vault", response("kv/a"), response("kv/b", {"id": "r2"}))

    assert one["trace_id"] == other["trace_id"]
    assert one["correlation"]["how"] == "handle"


def test_without_a_key_nothing_plain_is_hashed_or_shown(
    reading: Reading, context_of: ContextOf
) -> None:
    keyless = context_of("vault", key=None)
    one, other = reading("vault", response("kv/a"), response("kv/b", {"id": "r2"}), context=keyless)

    assert one["correlation"] == {"how": "uncorrelated", "handles": []}
    assert one["credential_id"] != other["credential_id"]
    assert "acc-1" not in json.dumps([one, other])


def test_without_a_key_what_the_vault_hashed_still_ties(
    vectors: Path, reading: Reading, context_of: ContextOf
) -> None:
    found = reading("vault", lifecycle(vectors), context=context_of("vault", key=None))

    assert {each["parent_credential_id"] for each in found} == {
        "hmac-sha256:479953e4069a9455a19959d00ebc63dc7682e281c5fda145d722fad652eafb40"
    }


@pytest.mark.parametrize(
    "record",
    [
        [],
        {},
        {"type": "response"},
        {"type": "login", "request": {}},
        {"type": "response", "request": {}, "time": "yesterday"},
        {"type": "response", "request": {}, "time": "3026-11-20T20:00:00Z"},
    ],
)
def test_what_is_no_audit_line_is_malformed(record: object, context_of: ContextOf) -> None:
    with pytest.raises(Rejected, match="malformed"):
        vault.events_of(record, context_of("vault"))
