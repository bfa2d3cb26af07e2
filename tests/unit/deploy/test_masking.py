"""No password in anything that is shown."""

import logging

import pytest
from trailweave.deploy.masking import MaskingFormatter, masked, masked_values


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host:8123/db", "http://me:***@host:8123/db"),
        ("at http://me:p@w@host/", "at http://me:***@host/"),
        ("http://:pw@host", "http://:***@host"),
        ("http://host/?user=me&password=pw&x=1", "http://host/?user=me&password=***&x=1"),
        ("http://host:8123/db", "http://host:8123/db"),
        ("mail me@example.org", "mail me@example.org"),
    ],
)
def test_passwords_of_addresses_are_replaced(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_values_of_secret_names_are_replaced() -> None:
    values = {"sasl.password": "a", "ssl.key.pem": "b", "sasl.oauthbearer.client.secret": "c"}

    assert set(masked_values(values).values()) == {"***"}


def test_a_log_line_with_its_traceback_holds_no_password() -> None:
    try:
        raise ValueError("http://me:pw@host")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "at %s", ("http://a:pw@b",), info)

    assert "pw" not in MaskingFormatter("%(message)s").format(record)
