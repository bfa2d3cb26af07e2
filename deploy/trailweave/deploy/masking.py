"""Takes secrets out of text that a person or a log will see.

Works on any text, without knowing which secrets there are: an error of a library may quote an
address that nobody here put together.
"""

import logging
import re
from collections.abc import Mapping
from typing import Final

MASK: Final = "***"

#: `//user:password@`, up to the last "@" before the path: a password may hold one unescaped.
_PASSWORD_IN_ADDRESS: Final = re.compile(r"(//[^/\s:@]*:)[^/\s]+@")
_PASSWORD_IN_QUERY: Final = re.compile(
    r"((?:password|access_token|secret)=)[^&\s,;'\"]+", re.IGNORECASE
)
#: The librdkafka settings, and ours, whose value is a secret.
_SECRET_NAME: Final = re.compile(
    r"password|secret|\.key\.pem$|oauthbearer\.config$|jaas|token$|basic\.auth", re.IGNORECASE
)


def masked(text: str) -> str:
    """The text with the passwords of addresses and queries replaced."""
    return _PASSWORD_IN_QUERY.sub(rf"\1{MASK}", _PASSWORD_IN_ADDRESS.sub(rf"\1{MASK}@", text))


def masked_values(values: Mapping[str, object]) -> dict[str, object]:
    """The same settings, with the values of secret ones replaced."""
    return {
        name: MASK if value and _SECRET_NAME.search(name) else _masked_value(value)
        for name, value in values.items()
    }


def _masked_value(value: object) -> object:
    return masked(value) if isinstance(value, str) else value


class MaskingFormatter(logging.Formatter):
    """A log formatter whose lines, tracebacks included, hold no password of an address."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))
