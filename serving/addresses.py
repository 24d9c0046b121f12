"""Addresses to listen on, and one clear line where that cannot be."""

from __future__ import annotations

import socket

from serving.errors import StartupError


def check_free(flag: str, host: str, port: int) -> None:
    """Ask before gRPC does: its core reports a port that is taken on stderr, at length."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise cannot_listen(flag, host, port, error) from None


def address(host: str, port: int) -> str:
    """host:port, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cannot_listen(flag: str, host: str, port: int, error: OSError) -> StartupError:
    """One line for the operator."""
    return StartupError(f"{flag}: cannot listen on {address(host, port)}: {error.strerror}")
