"""TLS: who may speak with whom, and how a server says what is wrong with its files."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import (
    Authority,
    answer_of,
    asking,
    authority,
    files,
    openssl,
    over_https,
    refused,
)
from conftest import (
    PATIENCE,
    Running,
    publish_times,
)

from serving import healthcheck
from serving.async_client import AsyncClient
from serving.client import Client, Tls
from serving.client_commands import main as client_command
from serving.config import ServerConfig
from serving.doctor import FAIL, examine
from serving.errors import StartupError
from serving.pb import inference_pb2_grpc as pb_grpc
from serving.server import Server

Serve = Callable[..., AbstractContextManager[Running]]
# A client's preface, and its settings: none.
HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("theirs"), "theirs")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    publish_times(path)
    return path


@pytest.fixture(scope="module")
def by_tls(serve: Serve, models: Path, ours: Authority, transport: str) -> Iterator[Running]:
    """A server whose certificate ours has signed, for localhost."""
    own_files = files(ours.sign("server", "DNS:localhost"))
    with serve(models, **own_files, allow_http=True, transport=transport) as own:
        yield own


@pytest.fixture(scope="module")
def mutual(serve: Serve, models: Path, ours: Authority, transport: str) -> Iterator[Running]:
    """One that takes only clients whose certificates ours has signed."""
    own_files = files(ours.sign("mutual", "DNS:*.example,DNS:localhost"))
    own_files["tls_client_ca"] = ours.certificate
    with serve(models, **own_files, allow_http=True, transport=transport) as own:
        yield own


def test_a_client_that_trusts_its_ca_is_answered(by_tls: Running, ours: Authority) -> None:
    with asking(by_tls, ours) as ask:
        assert ask() == [2.0]


def test_a_client_that_trusts_another_ca_speaks_with_nobody(
    by_tls: Running, theirs: Authority
) -> None:
    with asking(by_tls, theirs) as ask:
        assert refused(ask) == grpc.StatusCode.UNAVAILABLE


def test_a_client_without_tls_is_not_answered(by_tls: Running) -> None:
    with grpc.insecure_channel(by_tls.address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        assert refused(lambda: answer_of(stub)) == grpc.StatusCode.UNAVAILABLE


def test_only_clients_with_a_certificate_of_the_ca_are_answered(
    mutual: Running, ours: Authority, theirs: Authority
) -> None:
    with asking(mutual, ours, ours.sign("client", "DNS:client.example")) as ask:
        assert ask() == [2.0]
    with asking(mutual, ours) as ask:
        assert refused(ask) == grpc.StatusCode.UNAVAILABLE
    with asking(mutual, ours, theirs.sign("stranger", "DNS:client.example")) as ask:
        assert refused(ask) == grpc.StatusCode.UNAVAILABLE


def test_http_speaks_the_same_tls(by_tls: Running, ours: Authority, theirs: Authority) -> None:
    assert over_https(by_tls, ours) in (200, 404)
    with pytest.raises(ssl.SSLCertVerificationError):
        over_https(by_tls, theirs)
    with socket.create_connection(("localhost", by_tls.server.http_port), PATIENCE) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert not plain.recv(1 << 16).startswith(b"HTTP/")


def test_http_too_asks_clients_for_a_certificate_of_the_ca(
    mutual: Running, ours: Authority, theirs: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    assert over_https(mutual, ours, ours.sign("https", "DNS:client.example")) in (200, 404)
    stranger = theirs.sign("https", "DNS:client.example")
    late = ours.sign("late-https", "DNS:client.example", expired=True)
    for certificate in (None, stranger, late):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            over_https(mutual, ours, certificate)
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == []


def test_a_client_whose_certificate_has_expired_is_not_answered(
    mutual: Running, ours: Authority
) -> None:
    with asking(mutual, ours, ours.sign("late", "DNS:client.example", expired=True)) as ask:
        assert refused(ask) == grpc.StatusCode.UNAVAILABLE


def test_a_server_whose_certificate_has_expired_is_not_spoken_with(
    serve: Serve, models: Path, ours: Authority, transport: str
) -> None:
    expired = ours.sign("expired", "DNS:localhost", expired=True)
    with serve(models, **files(expired), transport=transport) as own, asking(own, ours) as ask:
        assert refused(ask) == grpc.StatusCode.UNAVAILABLE


def test_health_is_checked_by_the_servers_own_certificate(
    by_tls: Running, mutual: Running, ours: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    for own, name in ((by_tls, "server"), (mutual, "mutual")):
        certificate = ours.directory / f"{name}.pem"
        argv = ["--grpc-port", own.address.rpartition(":")[2], "--tls-certificate"]
        argv += [str(certificate), "--tls-key", str(certificate.with_suffix(".key"))]
        assert healthcheck.main(argv, {}) == 0
    assert capsys.readouterr().out == "SERVING\n" * 2
    other = ours.sign("other", "DNS:localhost")
    argv = ["--grpc-port", by_tls.address.rpartition(":")[2]]
    argv += ["--tls-certificate", str(other), "--tls-key", str(other.with_suffix(".key"))]
    assert healthcheck.main(argv, {}) == 1
    assert "UNAVAILABLE: [SSL: CERTIFICATE_VERIFY_FAILED]" in capsys.readouterr().err


def test_the_client_and_its_commands_go_by_tls(
    by_tls: Running, ours: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    credentials = grpc.ssl_channel_credentials(ours.certificate.read_bytes())
    with Client(by_tls.address, credentials=credentials) as client:
        assert client.ready(PATIENCE)
    where = ["quality", "--address", by_tls.address]
    assert client_command([*where, "--tls-ca", str(ours.certificate)]) == 0
    assert client_command([*where, "--timeout", "1"]) == 1
    assert capsys.readouterr().out == "no model with labels\n"


def test_either_client_goes_by_tls_as_its_files_say(mutual: Running, ours: Authority) -> None:
    certificate = ours.sign("teller", "DNS:client.example")
    tls = Tls(ours.certificate, certificate, certificate.with_suffix(".key"))

    async def ask() -> bool:
        async with AsyncClient(mutual.address, tls=tls, token="s3cret") as client:
            return await client.ready(PATIENCE)

    assert asyncio.run(ask())
    with Client(mutual.address, tls=tls) as client:
        assert client.ready(PATIENCE)
    with Client(mutual.address, tls=Tls(ours.certificate)) as client:
        assert not client.ready(PATIENCE)
    arguments = ["models", "--address", mutual.address, "--tls-ca", str(ours.certificate)]
    own = ["--tls-certificate", str(certificate)]
    key = ["--tls-key", str(certificate.with_suffix(".key"))]
    assert client_command([*arguments, *own, *key]) == 0
    assert client_command(arguments) == 1
    assert client_command([*arguments, *own]) == 2


def test_tls_is_given_in_one_way() -> None:
    with pytest.raises(ValueError, match="either credentials or tls, not both"):
        Client(credentials=grpc.ssl_channel_credentials(), tls=True)
    with pytest.raises(FileNotFoundError, match="missing"):
        Client(tls=Tls(ca="missing.pem"))


def test_a_file_that_is_no_good_is_named_before_anything_starts(
    models: Path, ours: Authority, theirs: Authority, tmp_path: Path
) -> None:
    good = files(ours.sign("good", "DNS:localhost"))
    missing, rubbish = tmp_path / "missing.pem", tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish\n")
    locked = tmp_path / "locked.key"
    openssl("ec", "-in", good["tls_key"], "-aes128", "-passout", "pass:x", "-out", locked)
    stranger = files(theirs.sign("another", "DNS:localhost"))["tls_key"]
    for change, text in (
        ({"tls_certificate": missing}, f"--tls-certificate: {missing}: No such file or directory"),
        ({"tls_certificate": rubbish}, f"--tls-certificate: {rubbish}: not a certificate in PEM"),
        ({"tls_key": missing}, f"--tls-key: {missing}: No such file or directory"),
        ({"tls_key": rubbish}, f"--tls-key: {rubbish}: not a key in PEM without a passphrase"),
        ({"tls_key": stranger}, f"--tls-key: {stranger}: not the certificate's"),
        ({"tls_key": locked}, f"--tls-key: {locked}: not a key in PEM without a passphrase"),
        ({"tls_client_ca": rubbish}, f"--tls-client-ca: {rubbish}: not a certificate in PEM"),
    ):
        given: dict[str, Any] = {**good, **change}
        config = ServerConfig(model_repository=models, **given)
        with pytest.raises(StartupError) as refusal:
            Server(config)
        assert str(refusal.value).startswith(text)
        subject, _, reason = str(refusal.value).partition(": ")
        found = [each for each in examine(config) if each.subject == subject]
        assert [(each.status, each.text) for each in found] == [(FAIL, reason)]


def test_a_server_of_another_name_is_not_spoken_with(
    serve: Serve, models: Path, ours: Authority, transport: str
) -> None:
    other = files(ours.sign("elsewhere", "DNS:elsewhere.example"))
    with serve(models, **other, allow_http=True, transport=transport) as own:
        with asking(own, ours) as ask:
            assert refused(ask) == grpc.StatusCode.UNAVAILABLE
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            over_https(own, ours)


def ports(own: Running) -> tuple[int, int]:
    """gRPC's and HTTP's."""
    return int(own.address.rpartition(":")[2]), own.server.http_port


@pytest.mark.parametrize(("version", "spoken"), [("-tls1_1", False), ("-tls1_2", True)])
def test_nothing_older_than_tls_1_2_is_spoken(by_tls: Running, version: str, spoken: bool) -> None:
    for port, protocol in zip(ports(by_tls), ("h2", "http/1.1"), strict=True):
        command = ["openssl", "s_client", "-connect", f"localhost:{port}", "-alpn", protocol]
        # Of its own accord, OpenSSL would not ask for it.
        command += [version, "-cipher", "DEFAULT:@SECLEVEL=0"]
        done = subprocess.run(command, input=b"", capture_output=True, timeout=PATIENCE)
        assert (done.returncode == 0) == spoken
        assert (f"ALPN protocol: {protocol}".encode() in done.stdout) == spoken


def spoken_with(port: int, context: ssl.SSLContext) -> bool:
    """Whether who speaks HTTP/2, whatever was agreed on, gets a word back."""
    with socket.create_connection(("localhost", port), PATIENCE) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as secure:
                secure.sendall(HTTP_2)
                return secure.recv(1) != b""
        except (ssl.SSLError, ConnectionError):
            return False


def test_grpc_is_for_those_who_agree_on_http_2(by_tls: Running, ours: Authority) -> None:
    for protocols, spoken in (([], False), (["http/1.1"], False), (["http/1.1", "h2"], True)):
        context = ssl.create_default_context(cafile=ours.certificate)
        if protocols:
            context.set_alpn_protocols(protocols)
        assert spoken_with(ports(by_tls)[0], context) == spoken


def ends(port: int, text: bytes) -> bytes:
    """What comes from who is sent that, until he ends the connection."""
    said = b""
    with socket.create_connection(("localhost", port), PATIENCE) as plain:
        plain.sendall(text)
        with suppress(ConnectionResetError):
            while data := plain.recv(1 << 16):
                said += data
    return said


def test_who_speaks_tls_to_a_plain_port_or_not_to_that_of_tls_is_closed(
    serve: Serve,
    by_tls: Running,
    models: Path,
    transport: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hello = b"\x16\x03\x01\x00\x02\x01\x00" + bytes(64)
    with serve(models, allow_http=True, transport=transport) as plain:
        for port in ports(plain):
            assert not ends(port, hello).startswith(b"\x16")
    for port in ports(by_tls):
        for text in (HTTP_2, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
            assert b"HTTP/1.1 2" not in ends(port, text)
    assert [each.getMessage() for each in caplog.records if each.levelno > logging.INFO] == []


def test_a_client_that_is_refused_is_nothing_to_log(
    mutual: Running, ours: Authority, theirs: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    expired = ours.sign("late-2", "DNS:client.example", expired=True)
    stranger = theirs.sign("stranger-2", "DNS:client.example")
    for certificate in (None, expired, stranger):
        with asking(mutual, ours, certificate) as ask:
            assert refused(ask) == grpc.StatusCode.UNAVAILABLE
    assert [each.getMessage() for each in caplog.records if each.levelno > logging.DEBUG] == []
