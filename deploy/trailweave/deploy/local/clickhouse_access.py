"""Who may talk to the embedded ClickHouse: by which name, from which page, with which password.

Pure. The front listens on the loopback address, where every program of this machine can reach it,
a web page in a browser included; so a page's requests are refused, with or without a password.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from trailweave.deploy.local.clickhouse_errors import ClickHouseError, own
from trailweave.deploy.local.errors import UnsafeBindingError

#: The password reaches the engine's process by the environment, not the arguments: those can be
#: read by everybody on the machine.
PASSWORD_VARIABLE = "TRAILWEAVE_EMBEDDED_CLICKHOUSE_PASSWORD"  # noqa: S105  (a name, no password)
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Access:
    """What a request must bring. Without a password, anybody on this machine may ask."""

    host: str = "127.0.0.1"
    user: str = "default"
    password: str = ""

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.password:
            raise UnsafeBindingError(
                f"couldn't listen on {self.host}: other machines could read and write all data;"
                f" set a user and a password, or listen on 127.0.0.1"
            )

    def check(self, headers: Mapping[str, str], query: Mapping[str, str]) -> ClickHouseError | None:
        """Why the request is refused; None if it isn't."""
        named = host_of("//" + headers.get("host", ""))
        # A page on evil.example whose name was rebound to 127.0.0.1 sends its own name here. With
        # a password, the page fails for want of it, and other machines may use any name of ours.
        if not self.password and named not in LOCAL_NAMES | {self.host}:
            return own(497, "ACCESS_DENIED", f"the host {named!r} isn't a name of this machine")
        origin = headers.get("origin")
        cross = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if cross or (origin is not None and origin.rpartition("//")[2] != headers.get("host")):
            return own(497, "ACCESS_DENIED", "web pages may not query the embedded ClickHouse")
        user, password = _credentials(headers, query)
        right_user = hmac.compare_digest(user.encode(), self.user.encode())
        right_password = hmac.compare_digest(password.encode(), self.password.encode())
        if not (right_user and right_password):
            return own(
                516,
                "AUTHENTICATION_FAILED",
                f"{user}: Authentication failed: password is incorrect, or there is no user with"
                f" such name.",
            )
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(url: str) -> str:
    """The host in a URL or a Host header, in lower case, without port and brackets."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _credentials(headers: Mapping[str, str], query: Mapping[str, str]) -> tuple[str, str]:
    if "x-clickhouse-user" in headers or "x-clickhouse-key" in headers:
        return headers.get("x-clickhouse-user", "default"), headers.get("x-clickhouse-key", "")
    kind, _, coded = headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            user, _, password = base64.b64decode(coded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return user or "default", password
    return query.get("user") or "default", query.get("password", "")
