"""The server's certificate, its key, and whose clients it takes: read and checked.

Each file is read once, and what was checked is what is used. Knows no transport; `tls_watch` looks
at the files again.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from serving.config import ServerConfig
from serving.errors import StartupError

# Of DER: X.690 8.1 has tags and lengths; RFC 5280 4.1 what a certificate is made of.
_VERSION, _UTC_TIME = 0xA0, 0x17
_LONG_LENGTH = 0x80
# Days. A certificate that ends sooner is warned of.
SOON = 14.0


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What the files hold, in PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None


def tls_files(config: ServerConfig) -> TlsFiles | None:
    """None where the server is to listen without TLS; StartupError names a file that is no good."""
    files = read(config)
    if files:
        check(config, files)
    return files


def read(config: ServerConfig) -> TlsFiles | None:
    """The files as they are; StartupError names one that cannot be read."""
    if config.tls_certificate is None or config.tls_key is None:
        return None
    client_ca = _read("--tls-client-ca", config.tls_client_ca) if config.tls_client_ca else None
    certificate = _read("--tls-certificate", config.tls_certificate)
    return TlsFiles(certificate, _read("--tls-key", config.tls_key), client_ca)


def check(config: ServerConfig, files: TlsFiles) -> None:
    """StartupError names the file that is no good, or does not fit the certificate."""
    _require_certificates("--tls-certificate", config.tls_certificate, files.certificate)
    try:
        server_context(files)
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        reason = "not the certificate's" if mismatch else "not a key in PEM without a passphrase"
        raise StartupError(f"--tls-key: {config.tls_key}: {reason}") from None
    if files.client_ca is not None:
        _require_certificates("--tls-client-ca", config.tls_client_ca, files.client_ca)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Of a server that goes by the files, from TLS 1.2 on; ssl.SSLError where they do not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with _in_memory(files.certificate) as certificate, _in_memory(files.key) as key:
        # A callback, as OpenSSL would otherwise ask at the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    return context


def require_clients(context: ssl.SSLContext, client_ca: bytes) -> None:
    """Have it take only clients whose certificate is signed by one of these."""
    context.load_verify_locations(cadata=client_ca.decode("ascii"))
    context.verify_mode = ssl.CERT_REQUIRED


def expiry(certificate: bytes) -> datetime:
    """Until when the first certificate of a checked file is good: the server's own."""
    pem = re.search(rb"-----BEGIN [A-Z0-9 ]*CERTIFICATE-----(.*?)-----END", certificate, re.DOTALL)
    assert pem
    der = ssl.PEM_cert_to_DER_cert(f"{ssl.PEM_HEADER}{pem[1].decode('ascii')}{ssl.PEM_FOOTER}")
    _, whole = next(_parts(der))
    _, signed = next(_parts(whole))
    fields = [content for tag, content in _parts(signed) if tag != _VERSION]
    _, (tag, text) = _parts(fields[3])  # after serial number, algorithm and issuer
    year = "%y" if tag == _UTC_TIME else "%Y"
    return datetime.strptime(text.decode("ascii"), f"{year}%m%d%H%M%SZ").replace(tzinfo=UTC)


def ends_soon(certificate: bytes) -> str:
    """When it ends, for whoever must renew it; nothing where that has time."""
    end, now = expiry(certificate), datetime.now(UTC)
    when = f"{end:%Y-%m-%d %H:%M:%S} UTC"
    if end <= now:
        return f"expired on {when}"
    days = (end - now) / timedelta(days=1)
    return f"expires on {when}, in {days:.1f} days" if days < SOON else ""


def _parts(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each value that follows."""
    while der:
        tag, length, begin = der[0], der[1], 2
        if length & _LONG_LENGTH:
            begin += length - _LONG_LENGTH
            length = int.from_bytes(der[2:begin])
        yield tag, der[begin : begin + length]
        der = der[begin + length :]


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """A path that leads to the content as long as this lasts: `ssl` takes keys from files only."""
    descriptor = os.memfd_create("tls")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _read(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"{flag}: {path}: {error.strerror}") from None


def _require_certificates(flag: str, path: Path | None, text: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError):
        raise StartupError(f"{flag}: {path}: not a certificate in PEM") from None
