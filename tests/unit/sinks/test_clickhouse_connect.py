"""Connecting to ClickHouse by DSN, over TLS made here; and that no password gets out."""

from __future__ import annotations

import datetime as dt
import ipaddress
import logging
import ssl
import threading
import traceback
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from trailweave.schemas.errors import Fatal, Retryable, TrailError
from trailweave.sinks import clickhouse

x509 = pytest.importorskip("cryptography.x509", reason="makes the throw-away certificates")

SECRET = "s3cret-pass"


@dataclass
class Pems:
    """A throw-away authority, and one certificate of it for server and client."""

    authority: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Pems:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("pems")
    now = dt.datetime.now(dt.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        for name in ("authority", "localhost")
    ]

    def made(subject: int, *extensions: Any) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[subject]).issuer_name(names[0])
            .public_key(keys[subject].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
        )  # fmt: skip
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        signed = builder.sign(keys[0], hashes.SHA256())
        return bytes(signed.public_bytes(serialization.Encoding.PEM))

    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    found = Pems(folder / "authority.pem", folder / "certificate.pem", folder / "key.pem")
    found.authority.write_bytes(made(0, x509.BasicConstraints(ca=True, path_length=None)))
    found.certificate.write_bytes(made(1, x509.SubjectAlternativeName([address])))
    found.key.write_bytes(
        keys[1].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return found


@dataclass
class Front:
    """Refuses everybody as ClickHouse refuses a wrong password, and keeps what was sent."""

    address: str = ""
    seen: list[dict[str, str]] = field(default_factory=list)


def served(context: ssl.SSLContext | None) -> Iterator[Front]:
    front = Front()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            front.seen.append(dict(self.headers.items()))
            self.send_response(403)
            self.send_header("X-ClickHouse-Exception-Code", "516")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815 - the base class asks for this name

        def log_message(self, *_: object) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    front.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield front
    server.shutdown()
    thread.join()
    server.server_close()


class Quiet(ThreadingHTTPServer):
    """A client that distrusts the certificate goes away; nothing is to be said about that."""

    def handle_error(self, *_: object) -> None:
        pass


def server_context(pems: Pems) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pems.certificate, pems.key)
    return context


@pytest.fixture
def plain() -> Iterator[Front]:
    yield from served(None)


@pytest.fixture
def tls(pems: Pems) -> Iterator[Front]:
    yield from served(server_context(pems))


@pytest.fixture
def mutual(pems: Pems) -> Iterator[Front]:
    context = server_context(pems)
    context.load_verify_locations(pems.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    yield from served(context)


def refusal(dsn: str) -> TrailError:
    with pytest.raises(TrailError) as caught:
        clickhouse.connect(dsn, 5)
    return caught.value


def dsn_of(front: Front, scheme: str = "https", **options: object) -> str:
    return f"{scheme}://ann:{SECRET}@{front.address}/db?{urlencode(options)}"


BASIC = "Basic " + b64encode(f"ann:{SECRET}".encode()).decode()


@pytest.mark.parametrize("scheme", ["https", "clickhouses"])
def test_https_is_spoken_on_any_port(tls: Front, pems: Pems, scheme: str) -> None:
    error = refusal(dsn_of(tls, scheme, ca_cert=pems.authority))

    assert isinstance(error, Fatal)
    assert "user or the password" in str(error)
    assert [headers["Authorization"] for headers in tls.seen] == [BASIC]


def test_http_stays_plain(plain: Front) -> None:
    refusal(dsn_of(plain, "http"))

    assert [headers["Authorization"] for headers in plain.seen] == [BASIC]


def test_a_certificate_of_an_unknown_authority_is_not_talked_to(tls: Front) -> None:
    error = refusal(dsn_of(tls))

    assert isinstance(error, Retryable)
    assert "certificate is not trusted" in str(error)
    assert tls.seen == []


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_verify_false_in_the_dsn_passes_through(tls: Front) -> None:
    refusal(dsn_of(tls, verify="false"))

    assert len(tls.seen) == 1


def test_the_host_name_to_check_for_passes_through(tls: Front, pems: Pems) -> None:
    error = refusal(dsn_of(tls, ca_cert=pems.authority, server_host_name="elsewhere.test"))

    assert "certificate is not trusted" in str(error)


def test_a_client_certificate_in_the_dsn_passes_through(mutual: Front, pems: Pems) -> None:
    files: dict[str, Any] = {"ca_cert": pems.authority}
    own: dict[str, Any] = {"client_cert": pems.certificate, "client_cert_key": pems.key}
    refusal(dsn_of(mutual, **files))
    assert mutual.seen == []

    refusal(dsn_of(mutual, **files, **own))
    assert [headers["X-ClickHouse-SSL-Certificate-Auth"] for headers in mutual.seen] == ["on"]


@pytest.mark.parametrize(
    ("dsn", "kind"),
    [
        (f"https://ann:{SECRET}@127.0.0.1:1/db", Retryable),
        (f"http://ann:{SECRET}/x@127.0.0.1:1/db", Fatal),
        (f"http://ann:{SECRET}@[127.0.0.1:1/db", Fatal),
        (f"http://ann@127.0.0.1:1/db?password={SECRET}", Fatal),
        (f"http://ann@127.0.0.1:1/db?no_such_option={SECRET}", Fatal),
        (f"http://ann@127.0.0.1:1/db?query_limit={SECRET}", Fatal),
        (f"https://ann:{SECRET}@127.0.0.1:1/db?interface=http", Fatal),
        (f"ftp://ann:{SECRET}@127.0.0.1:1/db", Fatal),
    ],
)
def test_no_password_is_in_an_error_or_a_log(
    dsn: str, kind: type[TrailError], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    error = refusal(dsn)

    assert type(error) is kind
    assert SECRET not in "".join(traceback.format_exception(error)) + caplog.text


def test_a_refused_password_is_not_quoted(
    tls: Front, pems: Pems, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    error = refusal(dsn_of(tls, ca_cert=pems.authority))
    told = "".join(traceback.format_exception(error)) + caplog.text

    assert SECRET not in told
    assert BASIC not in told
