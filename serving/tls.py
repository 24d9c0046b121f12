"""The server's certificate, its key, and whose clients it takes: read and checked.

Knows no transport, and does not look at the files again: a new certificate needs a new start.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from serving.config import ServerConfig
from serving.errors import StartupError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What the files hold, in PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None


def tls_files(config: ServerConfig) -> TlsFiles | None:
    """None where the server is to listen without TLS; StartupError names a file that is no good."""
    if config.tls_certificate is None or config.tls_key is None:
        return None
    certificate = _read("--tls-certificate", config.tls_certificate)
    key = _read("--tls-key", config.tls_key)
    client_ca = None
    _require_certificates("--tls-certificate", config.tls_certificate, certificate)
    try:
        # A callback, as OpenSSL would otherwise ask at the terminal.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.tls_certificate, config.tls_key, password=lambda: b"")
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        reason = "not the certificate's" if mismatch else "not a key in PEM without a passphrase"
        raise StartupError(f"--tls-key: {config.tls_key}: {reason}") from None
    if config.tls_client_ca is not None:
        client_ca = _read("--tls-client-ca", config.tls_client_ca)
        _require_certificates("--tls-client-ca", config.tls_client_ca, client_ca)
    return TlsFiles(certificate, key, client_ca)


def _read(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"{flag}: {path}: {error.strerror}") from None


def _require_certificates(flag: str, path: Path, text: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError):
        raise StartupError(f"{flag}: {path}: not a certificate in PEM") from None
