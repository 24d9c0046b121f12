"""What an administrator may change while the server runs, and who is one."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import unquote

from serving import logs
from serving.authorization import Asker
from serving.control import ModelControl
from serving.errors import NotAllowed
from serving.tokens import Need
from serving.trace import Tracer


class Admin(Protocol):
    """Changes the whole server: this process where it is the only one, else all workers."""

    def load(self, name: str) -> None:
        """As ModelControl.load."""

    def unload(self, name: str) -> None:
        """As ModelControl.unload."""

    def change_logs(self, changes: logs.Changes) -> None:
        """As logs.change."""

    def change_trace(self, settings: Mapping[str, tuple[str, ...]], model: str) -> None:
        """As Tracer.change."""


class ProcessAdmin:
    """Changes this process."""

    def __init__(self, control: ModelControl, tracer: Tracer) -> None:
        self._control = control
        self._tracer = tracer

    def load(self, name: str) -> None:
        """Load a model; see ModelControl."""
        self._control.load(name)

    def unload(self, name: str) -> None:
        """Unload a model; see ModelControl."""
        self._control.unload(name)

    def change_logs(self, changes: logs.Changes) -> None:
        """Log more or less."""
        logs.change(changes)

    def change_trace(self, settings: Mapping[str, tuple[str, ...]], model: str) -> None:
        """Trace more or less."""
        self._tracer.change(settings, model)


def require_admin(allowed: bool, asker: Asker) -> None:
    """Raise NotAllowed unless the asker's token has the role admin, or administration is allowed
    and the asker on this machine."""
    if Need.ADMIN in asker.roles:
        return
    if not allowed:
        raise NotAllowed(
            "administration is off; it takes a token with the role admin, or --allow-admin"
        )
    if not is_local(asker.peer):
        raise NotAllowed("administration is open to peers on this machine only")


def is_local(peer: str) -> bool:
    """Whether a gRPC peer, such as ipv4:127.0.0.1:5000, ipv6:%5B::1%5D:5000 or unix:, is local."""
    kind, _, address = unquote(peer).partition(":")
    if kind == "unix":
        return True
    host = address.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback
