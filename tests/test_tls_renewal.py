"""Certificates that change without a restart: who is shown which, whom it takes, what is said."""

from __future__ import annotations

import logging
import re
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime
from http.client import HTTPSConnection
from pathlib import Path

import grpc
import pytest
from certificates import (
    Authority,
    answer_of,
    asking,
    authority,
    der,
    openssl,
    over_https,
    refused,
    secure_channel,
    shown,
)
from conftest import PATIENCE, Running, publish_times, server_process, until

from serving.config import ServerConfig
from serving.doctor import OK, WARN, examine
from serving.families import Exported
from serving.pb import inference_pb2_grpc as pb_grpc
from serving.series import SeriesWriter
from serving.tls import TlsFiles, expiry
from serving.tls_watch import TlsWatch

Serve = Callable[..., AbstractContextManager[Running]]
METRIC = "inference_tls_certificate_expiry_timestamp_seconds"


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


class Secret:
    """A volume as Kubernetes mounts a secret: what it holds changes all at once, by a link."""

    def __init__(self, directory: Path, certificate: Path, client_ca: Path | None = None) -> None:
        self._directory = directory
        self._count = 0
        self.options = {
            "tls_certificate": directory / "tls.crt",
            "tls_key": directory / "tls.key",
            "tls_client_ca": directory / "ca.crt" if client_ca else None,
        }
        for name in ("tls.crt", "tls.key", "ca.crt"):
            (directory / name).symlink_to(Path("..data") / name)
        self.hold(certificate, client_ca)

    def hold(
        self, certificate: Path, client_ca: Path | None = None, key: Path | None = None
    ) -> None:
        self._count += 1
        version = self._directory / f"..{self._count}"
        version.mkdir()
        (version / "tls.crt").write_bytes(certificate.read_bytes())
        (version / "tls.key").write_bytes((key or certificate.with_suffix(".key")).read_bytes())
        if client_ca:
            (version / "ca.crt").write_bytes(client_ca.read_bytes())
        link = self._directory / "..new"
        link.symlink_to(version.name)
        link.rename(self._directory / "..data")

    def arguments(self) -> list[str]:
        given = {name: path for name, path in self.options.items() if path}
        return [part for n, p in given.items() for part in (f"--{n.replace('_', '-')}", str(p))]


@contextmanager
def load(own: Running, ca: Authority) -> Iterator[Callable[[], tuple[int, int, int]]]:
    """Ask all the time: by one channel that is kept, and by a connection of its own for each
    question, over gRPC and over HTTP; how many were answered each way. One that fails is raised."""
    stopping = threading.Event()
    answered = [0, 0, 0]
    failed: list[BaseException] = []

    def keep(which: int, ask: Callable[[], object]) -> None:
        try:
            while not stopping.is_set():
                ask()
                answered[which] += 1
        except BaseException as error:
            failed.append(error)

    def anew() -> None:
        with asking(own, ca) as once:
            assert once() == [2.0]

    with asking(own, ca) as kept:
        ways = (kept, anew, lambda: over_https(own, ca))
        threads = [threading.Thread(target=keep, args=each) for each in enumerate(ways)]
        for each in threads:
            each.start()
        try:
            yield lambda: (answered[0], answered[1], answered[2])
        finally:
            stopping.set()
            for each in threads:
                each.join(PATIENCE)
    assert failed == []


def grpc_port(own: Running) -> int:
    return int(own.address.rpartition(":")[2])


def shows(own: Running, ca: Authority, certificate: Path) -> bool:
    """Whether it is what new connections are shown, by gRPC and by HTTP."""
    by_grpc = shown(grpc_port(own), ca)
    return by_grpc == shown(own.server.http_port, ca, "http/1.1") == der(certificate)


def test_a_new_certificate_is_taken_under_load_and_nobody_notices(
    serve: Serve, models: Path, ours: Authority, transport: str, tmp_path: Path
) -> None:
    first = ours.sign("first", "DNS:localhost")
    secret = Secret(tmp_path, first)
    options = {**secret.options, "allow_http": True}
    with (
        serve(models, transport=transport, **options) as own,
        kept_open(own, ours) as kept,
        load(own, ours) as answered,
    ):
        until(lambda: min(answered()) > 0)
        assert shows(own, ours, first)
        assert live(kept)
        for name in ("second", "third"):
            renewed = ours.sign(name, "DNS:localhost")
            secret.hold(renewed)
            until(lambda renewed=renewed: shows(own, ours, renewed))  # type: ignore[misc]
        before = answered()
        until(lambda: all(now > then for now, then in zip(answered(), before, strict=True)))
        assert live(kept)
        assert kept.sock.getpeercert(binary_form=True) == der(first)  # it is still that connection


@contextmanager
def kept_open(own: Running, ca: Authority) -> Iterator[HTTPSConnection]:
    context = ssl.create_default_context(cafile=ca.certificate)
    port = own.server.http_port
    with closing(HTTPSConnection("localhost", port, timeout=PATIENCE, context=context)) as kept:
        yield kept


def live(connection: HTTPSConnection) -> bool:
    connection.request("GET", "/v2/health/live")
    answer = connection.getresponse()
    answer.read()
    return answer.status == 200


def test_clients_of_a_ca_that_was_replaced_are_refused_and_those_of_the_new_one_taken(
    serve: Serve,
    models: Path,
    ours: Authority,
    theirs: Authority,
    transport: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    certificate = ours.sign("mutual", "DNS:localhost")
    old, new = ours.sign("old", "DNS:c.example"), theirs.sign("new", "DNS:c.example")
    secret = Secret(tmp_path, certificate, ours.certificate)
    options = {**secret.options, "allow_http": True}
    with serve(models, transport=transport, **options) as own, asking(own, ours, old) as kept:
        assert kept() == [2.0]
        with asking(own, ours, new) as ask:
            assert refused(ask) == grpc.StatusCode.UNAVAILABLE
        sessions = [session(own, ours, old, protocol) for protocol in ("h2", "http/1.1")]
        secret.hold(certificate, theirs.certificate)
        until(lambda: taken(own, ours, new))
        assert kept() == [2.0]
        with asking(own, ours, old) as ask:
            assert refused(ask) == grpc.StatusCode.UNAVAILABLE
        with asking(own, ours, new) as ask:
            assert ask() == [2.0]
        with pytest.raises((ssl.SSLError, ConnectionError)):
            over_https(own, ours, old)
        # What they agreed on before is not a way around it.
        for protocol, (context, before) in zip(("h2", "http/1.1"), sessions, strict=True):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                resume(own, context, protocol, before)
    assert [each.getMessage() for each in caplog.records if each.levelno > logging.WARNING] == []


def taken(own: Running, ca: Authority, certificate: Path) -> bool:
    """Whether HTTP, which is the last to take what is new, takes this client."""
    try:
        return over_https(own, ca, certificate) in (200, 404)
    except (ssl.SSLError, ConnectionError):
        return False


def session(
    own: Running, ca: Authority, certificate: Path, protocol: str
) -> tuple[ssl.SSLContext, ssl.SSLSession]:
    """What a client may show to be known again; of TLS 1.2, which hands it out at once."""
    context = ssl.create_default_context(cafile=ca.certificate)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    context.set_alpn_protocols([protocol])
    found, reused = resume(own, context, protocol, None)
    assert not reused
    again, reused = resume(own, context, protocol, found)
    assert reused  # so that a refusal later is not for want of trying
    return context, again


def resume(
    own: Running, context: ssl.SSLContext, protocol: str, before: ssl.SSLSession | None
) -> tuple[ssl.SSLSession, bool]:
    port = grpc_port(own) if protocol == "h2" else own.server.http_port
    with (
        socket.create_connection(("localhost", port), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=before) as secure,
    ):
        assert secure.session
        return secure.session, bool(secure.session_reused)


def test_all_workers_take_what_is_new(
    models: Path, ours: Authority, transport: str, tmp_path: Path
) -> None:
    first, second = ours.sign("one", "DNS:localhost"), ours.sign("two", "DNS:localhost", days=60)
    secret = Secret(tmp_path, first)
    arguments = ["--model-repository", str(models), "--workers", "2", "--transport", transport]
    with server_process(*arguments, *secret.arguments()) as process:
        metrics = process.wait_for(r"metrics on (\S+)")[1]
        port = int(process.wait_for(r"workers listen on \S+:(\d+)")[1])
        process.wait_for("all 2 workers are ready")
        drained = threading.Thread(target=process.log.extend, args=(process.popen.stderr,))
        drained.start()
        assert earliest(metrics) == expiry(first.read_bytes())
        secret.hold(second)
        until(lambda: earliest(metrics) == expiry(second.read_bytes()))
        assert {shown(port, ours) for _ in range(20)} == {der(second)}
        with secure_channel(f"localhost:{port}", ours) as channel:
            assert answer_of(pb_grpc.GRPCInferenceServiceStub(channel)) == [2.0]
        process.popen.terminate()
        drained.join(PATIENCE)
    log = "".join(process.log)
    assert log.count("new connections go by the TLS files that are there now") == 2
    assert log.count(f"--tls-certificate: {tmp_path}/tls.crt: expires on") == 2  # of the first


def earliest(metrics: str) -> datetime:
    """When the first certificate of all workers' ends, as the metrics have it."""
    with urllib.request.urlopen(metrics, timeout=PATIENCE) as answer:
        found = re.search(rf"(?m)^{METRIC} (\S+)$", answer.read().decode())
    assert found
    return datetime.fromtimestamp(float(found[1]), UTC)


@pytest.fixture
def watched(
    tmp_path: Path, ours: Authority
) -> tuple[Secret, TlsWatch, SeriesWriter, list[TlsFiles]]:
    """A watch that looks when it is told to, and what it has handed on."""
    directory, counters = tmp_path / "secret", tmp_path / "counters"
    directory.mkdir()
    counters.mkdir()
    good = ours.sign("good", "DNS:localhost")
    secret = Secret(directory, good, ours.certificate)
    config = ServerConfig(**secret.options)  # type: ignore[arg-type]
    metrics = SeriesWriter(counters)
    watch = TlsWatch(config, metrics)
    taken: list[TlsFiles] = []
    watch.follow(taken.append)
    return secret, watch, metrics, taken


Watched = tuple[Secret, TlsWatch, SeriesWriter, list[TlsFiles]]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_files_that_are_no_good_are_not_taken_and_each_fault_is_said_once(
    watched: Watched, ours: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret, watch, _, taken = watched
    certificate, other = ours.sign("next", "DNS:localhost"), ours.sign("other", "DNS:localhost")
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("-----BEGIN CERTIFICATE-----\nhalf of i")
    before = watch.files
    secret.hold(certificate, ours.certificate, key=other.with_suffix(".key"))
    watch.look()
    watch.look()
    secret.hold(certificate, rubbish)
    watch.look()
    watch.look()
    (secret.options["tls_key"] or tmp_path).unlink()
    watch.look()
    watch.look()
    paths = secret.options
    assert warnings(caplog) == [
        f"TLS goes on with the files that it had: --tls-key: {paths['tls_key']}:"
        " not the certificate's",
        f"TLS goes on with the files that it had: --tls-client-ca: {paths['tls_client_ca']}:"
        " not a certificate in PEM",
        f"TLS goes on with the files that it had: --tls-key: {paths['tls_key']}:"
        " No such file or directory",
    ]
    assert (watch.files, taken) == (before, [])
    (secret.options["tls_key"] or tmp_path).symlink_to("..data/tls.key")
    secret.hold(certificate, ours.certificate)
    watch.look()
    watch.look()
    assert [each.certificate for each in taken] == [certificate.read_bytes()]
    assert watch.files == taken[0]


def test_files_that_come_one_by_one_are_taken_when_they_fit(
    watched: Watched, ours: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    secret, watch, _, taken = watched
    certificate = ours.sign("piecemeal", "DNS:localhost")
    text = certificate.read_bytes()
    path, key = secret.options["tls_certificate"], secret.options["tls_key"]
    assert path
    assert key
    for content in (b"", text[: len(text) // 2], text):
        path.write_bytes(content)
        watch.look()
        assert taken == []
    key.write_bytes(certificate.with_suffix(".key").read_bytes())
    watch.look()
    assert [each.certificate for each in taken] == [text]


def test_a_fault_that_went_away_and_comes_again_is_said_again(
    watched: Watched, ours: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    secret, watch, _, taken = watched
    good = ours.directory / "good.pem"
    wrong = ours.sign("wrong", "DNS:localhost").with_suffix(".key")
    for _ in range(2):
        secret.hold(good, ours.certificate, key=wrong)
        watch.look()
        secret.hold(good, ours.certificate)
        watch.look()
    assert len(warnings(caplog)) == 2
    assert taken == []  # what is there again was never given up


def test_a_certificate_that_ends_soon_or_has_ended_is_warned_of(
    watched: Watched, ours: Authority, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret, watch, metrics, _ = watched
    path = secret.options["tls_certificate"]
    cases = (
        (ours.sign("late", "DNS:localhost", expired=True), rf"--tls-certificate: {path}: expired"),
        (
            ours.sign("soon", "DNS:localhost", days=13),
            rf"{path}: expires on .* UTC, in 1[23]\.\d d",
        ),
        (ours.sign("long", "DNS:localhost", days=15), None),
        (ours.sign("longest", "DNS:localhost", days=40000), None),  # its year has four digits
    )
    for certificate, said in cases:
        caplog.clear()
        secret.hold(certificate, ours.certificate)
        watch.look()
        assert len(warnings(caplog)) == (said is not None)
        assert said is None or re.search(said, warnings(caplog)[0])
        config = ServerConfig(model_repository=models, **secret.options)  # type: ignore[arg-type]
        found = [each.status for each in examine(config) if each.subject == "--tls-certificate"]
        assert found == [OK] + [WARN] * (said is not None)
        told = metrics.slots(Exported.tls_certificate_expiry)[0]
        assert told == pytest.approx(end_by_openssl(certificate).timestamp(), abs=1e-3)


def end_by_openssl(certificate: Path) -> datetime:
    said = openssl("x509", "-in", certificate, "-noout", "-enddate")
    end = datetime.strptime(said.strip(), "notAfter=%b %d %H:%M:%S %Y GMT")
    return end.replace(tzinfo=UTC)


def test_what_somebody_cannot_take_is_logged_once_and_the_next_is_tried(
    watched: Watched, ours: Authority
) -> None:
    secret, watch, _, taken = watched

    def take(files: TlsFiles) -> None:
        if files.certificate == strange.read_bytes():
            raise RuntimeError("no start line")

    watch.follow(take)
    strange, next_one = ours.sign("strange", "DNS:localhost"), ours.sign("fine", "DNS:localhost")
    secret.hold(strange, ours.certificate)
    with pytest.raises(RuntimeError):
        watch.look()
    watch.look()
    secret.hold(next_one, ours.certificate)
    watch.look()
    assert [each.certificate for each in taken] == [
        each.read_bytes() for each in (strange, next_one)
    ]
    assert watch.files == taken[-1]


def test_without_tls_nobody_looks(tmp_path: Path) -> None:
    watch = TlsWatch(ServerConfig(), SeriesWriter(tmp_path))
    before = threading.active_count()
    watch.start()
    assert watch.files is None
    assert threading.active_count() == before
    watch.stop()
