"""A CA, what it signs, and clients that show it."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPSConnection
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import PATIENCE, Running, times_request

from serving.pb import inference_pb2_grpc as pb_grpc


@dataclass(frozen=True)
class Authority:
    """A CA that signs certificates, by `openssl`."""

    directory: Path
    name: str

    @property
    def certificate(self) -> Path:
        return self.directory / f"{self.name}.pem"

    def sign(self, name: str, names: str, expired: bool = False, days: int = 10) -> Path:
        """A certificate for these names and days; its key is beside it, as `.key`."""
        made = self.directory / name
        openssl("req", *new_key(made), "-subj", f"/CN={name}", "-out", f"{made}.csr")
        made.with_suffix(".ext").write_text(f"subjectAltName={names}\n")
        start, end = (-10, -1) if expired else (-1, days)
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


def openssl(*arguments: object) -> str:
    command = ["openssl", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def new_key(made: Path) -> tuple[str, ...]:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    return (*curve, "-nodes", "-keyout", f"{made}.key")


def authority(directory: Path, name: str) -> Authority:
    """A new one; its certificate is good for itself only."""
    made = directory / name
    subject = ("-subj", f"/CN={name}", "-days", "10", "-out", f"{made}.pem")
    openssl("req", "-x509", *new_key(made), *subject)
    return Authority(directory, name)


def files(certificate: Path) -> dict[str, Path]:
    return {"tls_certificate": certificate, "tls_key": certificate.with_suffix(".key")}


@contextmanager
def asking(
    own: Running, ca: Authority, certificate: Path | None = None
) -> Iterator[Callable[[], list[float]]]:
    """Ask a model for 2 x 1 by TLS; it answers [2.0] then."""
    with secure_channel(own.address, ca, certificate) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        yield lambda: answer_of(stub)


def secure_channel(address: str, ca: Authority, certificate: Path | None = None) -> grpc.Channel:
    chain = certificate.read_bytes() if certificate else None
    key = certificate.with_suffix(".key").read_bytes() if certificate else None
    credentials = grpc.ssl_channel_credentials(ca.certificate.read_bytes(), key, chain)
    return grpc.secure_channel(address, credentials)


def answer_of(stub: pb_grpc.GRPCInferenceServiceStub) -> list[float]:
    raw = stub.ModelInfer(times_request(2), timeout=PATIENCE).raw_output_contents[0]
    answer: list[float] = np.frombuffer(raw, np.float32).tolist()
    return answer


def refused(ask: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as failed:
        ask()
    code: grpc.StatusCode = failed.value.code()
    return code


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


def shown(port: int, ca: Authority, protocol: str = "h2") -> bytes:
    """The certificate that a server shows to who connects now, as DER."""
    context = ssl.create_default_context(cafile=ca.certificate)
    context.set_alpn_protocols([protocol])
    with (
        socket.create_connection(("localhost", port), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        found = secure.getpeercert(binary_form=True)
        assert found
        return found


def der(certificate: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.read_text())
