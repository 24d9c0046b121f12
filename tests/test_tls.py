"""TLS: who may speak with whom, and how a server says what is wrong with its files."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import (
    PATIENCE,
    Running,
    publish_times,
    server_process,
    times_request,
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


@dataclass(frozen=True)
class Authority:
    """A CA that signs certificates, by `openssl`."""

    directory: Path
    name: str

    @property
    def certificate(self) -> Path:
        return self.directory / f"{self.name}.pem"

    def sign(self, name: str, names: str, expired: bool = False) -> Path:
        """A certificate for these names; its key is beside it, as `.key`."""
        made = self.directory / name
        openssl("req", *new_key(made), "-subj", f"/CN={name}", "-out", f"{made}.csr")
        made.with_suffix(".ext").write_text(f"subjectAltName={names}\n")
        start, end = (-10, -1) if expired else (-1, 10)
        # `x509 -req` of OpenSSL 3.0 knows no dates, and `ca` keeps books.
        openssl(
            *("ca", "-batch", "-notext", "-config", self._books(), "-in", f"{made}.csr"),
            *("-extfile", f"{made}.ext", "-startdate", date(start), "-enddate", date(end)),
            *("-out", f"{made}.pem"),
        )
        return made.with_suffix(".pem")

    def _books(self) -> Path:
        directory = self.directory
        (directory / f"{self.name}.index").touch()
        lines = [
            "[ca]\ndefault_ca = own\n[own]",
            f"database = {directory / self.name}.index\nnew_certs_dir = {directory}",
            f"certificate = {self.certificate}",
            f"private_key = {self.certificate.with_suffix('.key')}",
            "rand_serial = yes\ndefault_md = sha256\npolicy = any\nunique_subject = no",
            "[any]\ncommonName = supplied\n",
        ]
        path = directory / f"{self.name}.cnf"
        path.write_text("\n".join(lines))
        return path


def date(days: int) -> str:
    return f"{datetime.now(UTC) + timedelta(days=days):%Y%m%d%H%M%SZ}"


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def new_key(made: Path) -> tuple[str, ...]:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    return (*curve, "-nodes", "-keyout", f"{made}.key")


def authority(directory: Path, name: str) -> Authority:
    """A new one; its certificate is good for itself only."""
    made = directory / name
    subject = ("-subj", f"/CN={name}", "-days", "10", "-out", f"{made}.pem")
    openssl("req", "-x509", *new_key(made), *subject)
    return Authority(directory, name)


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("theirs"), "theirs")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    publish_times(path)
    return path


def files(certificate: Path) -> dict[str, Path]:
    return {"tls_certificate": certificate, "tls_key": certificate.with_suffix(".key")}


@pytest.fixture(scope="session")
def by_tls(serve: Serve, models: Path, ours: Authority, transport: str) -> Iterator[Running]:
    """A server whose certificate ours has signed, for localhost."""
    own_files = files(ours.sign("server", "DNS:localhost"))
    with serve(models, **own_files, allow_http=True, transport=transport) as own:
        yield own


@pytest.fixture(scope="session")
def mutual(serve: Serve, models: Path, ours: Authority, transport: str) -> Iterator[Running]:
    """One that takes only clients whose certificates ours has signed."""
    own_files = files(ours.sign("mutual", "DNS:*.example,DNS:localhost"))
    own_files["tls_client_ca"] = ours.certificate
    with serve(models, **own_files, allow_http=True, transport=transport) as own:
        yield own


@contextmanager
def asking(
    own: Running, ca: Authority, certificate: Path | None = None
) -> Iterator[Callable[[], list[float]]]:
    """Ask a model for 2 x 1 by TLS; it answers [2.0] then."""
    chain = certificate.read_bytes() if certificate else None
    key = certificate.with_suffix(".key").read_bytes() if certificate else None
    credentials = grpc.ssl_channel_credentials(ca.certificate.read_bytes(), key, chain)
    with grpc.secure_channel(own.address, credentials) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        yield lambda: answer_of(stub)


def answer_of(stub: pb_grpc.GRPCInferenceServiceStub) -> list[float]:
    raw = stub.ModelInfer(times_request(2), timeout=PATIENCE).raw_output_contents[0]
    answer: list[float] = np.frombuffer(raw, np.float32).tolist()
    return answer


def refused(ask: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as failed:
        ask()
    code: grpc.StatusCode = failed.value.code()
    return code


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


def over_https(own: Running, ca: Authority, certificate: Path | None = None) -> int:
    """The status of an answer; what a client says of a server that it does not trust, or that does
    not trust it, is an SSLError, or that the connection was reset."""
    context = ssl.create_default_context(cafile=ca.certificate)
    if certificate:
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    port = own.server.http_port
    connection = HTTPSConnection("localhost", port, timeout=PATIENCE, context=context)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status
    finally:
        connection.close()


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


def test_workers_share_one_certificate(models: Path, ours: Authority, transport: str) -> None:
    certificate = ours.sign("workers", "DNS:localhost")
    arguments = ["--model-repository", str(models), "--workers", "2"]
    arguments += ["--tls-certificate", str(certificate)]
    arguments += ["--tls-key", str(certificate.with_suffix(".key"))]
    arguments += ["--transport", transport]
    with server_process(*arguments) as process:
        address = process.wait_for(r"workers listen on (\S+)")[1]
        process.wait_for("all 2 workers are ready")
        credentials = grpc.ssl_channel_credentials(ours.certificate.read_bytes())
        options = [("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(address, credentials, options) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            raw = stub.ModelInfer(times_request(2), timeout=PATIENCE, wait_for_ready=True)
            assert np.frombuffer(raw.raw_output_contents[0], np.float32).tolist() == [2.0]
