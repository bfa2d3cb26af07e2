"""Secrets leave neither texts nor JSON values."""

import time

import pytest
from trailweave.producers.redact import HASHES_PER_FIELD_MAX, Redactor, may_hold_secret
from trailweave.schemas.hashing import TenantKey, keyed_text_hash

KEY = TenantKey("k1", b"a key for tests")
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEabc\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("use AKIAIOSFODNN7EXAMPLE now", "AKIAIOSFODNN7EXAMPLE"),
        ("token ghp_" + "a1" * 18 + ".", "ghp_" + "a1" * 18),
        ("github_pat_" + "A1" * 20, "github_pat_" + "A1" * 20),
        (f"sent {JWT} there", JWT),
        (f"key:\n{PEM}\n", PEM),
        ("-----BEGIN PRIVATE KEY-----\ncut short", "cut short"),
        ("slack xoxb-123456789012-abcdefghij", "xoxb-123456789012-abcdefghij"),
        ("Authorization: Bearer abcdef0123456789abcdef", "abcdef0123456789abcdef"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA=="),
        ("postgresql://app:s3cret@db:5432/crm", "s3cret"),
        ("https://user:pw@example.com/x", "pw"),
        ("Server=db;Password=hunter2;Timeout=5", "hunter2"),
        ("hvs.CAESIJ1234567890abcdefghij", "hvs.CAESIJ1234567890abcdefghij"),
        ("vault s.abcdefghijklmnopqrstuvwx", "s.abcdefghijklmnopqrstuvwx"),
        ("curl 'https://x/?api_key=abc123&y=1'", "abc123"),
        ("DB_PASSWORD=s3cr3t", "s3cr3t"),
        ('{"client_secret": "two words"}', "two words"),
        ("sk-ant-api03-" + "x" * 30, "sk-ant-api03-" + "x" * 30),
        ("İ password=hunter2", "hunter2"),
    ],
)
def test_a_secret_is_taken_out_of_a_text_and_hashed(text: str, secret: str) -> None:
    redactor = Redactor(KEY)
    kept = redactor.text("content", text)

    assert secret not in kept
    assert "[redacted:" in kept
    (found,) = redactor.redactions()
    assert (found["field"], found["kind"], found["count"]) == ("content", "secret", 1)


def test_the_hash_of_a_redaction_is_the_secrets_keyed_hash() -> None:
    redactor = Redactor(KEY)
    redactor.text("content", "password=hunter2")

    assert redactor.redactions()[0]["hmac"] == keyed_text_hash(KEY, "hunter2")


@pytest.mark.parametrize(
    "text",
    [
        "password: please reset it",
        "max_tokens=4096 and next_token=abcdefgh",
        "basic responsibilities are shared",
        "at 12:30 write to user:name@example.com",
        "see http://example.com:8080/path@2x",
        "the keyboard, passengers and secretaries",
        "s.o.s. and b.c.",
        "risk-averse tasks-",
    ],
)
def test_prose_stays_as_it_is(text: str) -> None:
    redactor = Redactor(KEY)

    assert redactor.text("content", text) == text
    assert redactor.redactions() == []


def test_what_stands_under_a_secret_name_goes_whatever_it_looks_like() -> None:
    redactor = Redactor()
    kept = redactor.value(
        "arguments",
        {
            "password": "a b",
            "n": [{"accessToken": "zz", "Authorization": "x", "X-Api-Key": 12345}],
            "token": None,
            "secret": True,
            "max_tokens": 5,
            "nextPageToken": "page2",
            "key": "order-1",
        },
    )

    assert kept == {
        "password": "[redacted:named]",
        "n": [
            {
                "accessToken": "[redacted:named]",
                "Authorization": "[redacted:named]",
                "X-Api-Key": "[redacted:named]",
            }
        ],
        "token": None,
        "secret": True,
        "max_tokens": 5,
        "nextPageToken": "page2",
        "key": "order-1",
    }
    assert redactor.redactions() == [
        {"field": "arguments", "kind": "secret", "count": 4, "hmac": None}
    ]


def test_a_secret_in_a_nested_text_or_a_name_goes() -> None:
    redactor = Redactor()
    kept = redactor.value("arguments", {"AKIAIOSFODNN7EXAMPLE": [("x", "password=hunter2")]})

    assert kept == {"[redacted:aws_access_key]": [["x", "password=[redacted:assigned]"]]}


def test_values_nested_without_end_are_taken_out() -> None:
    loop: list[object] = []
    loop.append(loop)
    redactor = Redactor()
    redactor.value("arguments", loop)

    assert redactor.redactions()[0]["count"] == 1


def test_many_secrets_in_one_field_give_a_bounded_list_and_a_true_sum() -> None:
    redactor = Redactor(KEY)
    redactor.text("content", " ".join(f"password=hunter{n:04}" for n in range(100)))
    found = redactor.redactions()

    assert len(found) == HASHES_PER_FIELD_MAX + 1
    assert sum(each["count"] for each in found) == 100


@pytest.mark.parametrize(
    "text",
    [
        "eyJ" * 40_000, "password" * 15_000, "token" * 20_000, "://" * 40_000,
        "a" * 100_000 + " token", "://" + "a:" * 50_000, "-----BEGIN PRIVATE KEY-----" * 4_000,
        "bearer " * 15_000, "ghp_" * 30_000, "token: " * 15_000, "token" + " " * 100_000 + "=",
    ],
)  # fmt: skip
def test_a_text_made_to_be_slow_is_not(text: str) -> None:
    began = time.thread_time()
    Redactor().text("content", text)

    assert time.thread_time() - began < 1.0


def test_a_text_without_any_trigger_is_passed_at_once() -> None:
    assert not may_hold_secret('{"query":"select 1","limit":10}')
