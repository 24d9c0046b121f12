"""The clients' channels: which replicas calls go to, by TLS or not, and with which token."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import grpc

ADDRESS = "localhost:8001"
# Seconds, for all that one call of a client's does.
TIMEOUT = 10.0

# V2's own package, in which this server, Triton, KServe and MLServer have it.
V2_SERVICE = "inference.GRPCInferenceService"
TORCHSERVE_SERVICE = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"
DIGITS_SERVICE = "digits.v1.Digits"

# Milliseconds between looks at the name server, where connections end; gRPC's default is 30,000.
_DNS_INTERVAL = 1_000
# Milliseconds until a server that was away is tried again, first and at most; gRPC's defaults, of
# 1,000 and 120,000, leave one that is long back alone.
_RECONNECT = (200, 5_000)

FilePath = str | PathLike[str]
Options = list[tuple[str, str | int]]


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the authority that signed the server's certificate, and our own certificate and
    its key, for a server that asks for them.

    Without an authority, those that grpcio brings (Mozilla's), and not the system's: a company's
    own is to be named, here or by gRPC's GRPC_DEFAULT_SSL_ROOTS_FILE_PATH.
    """

    ca: FilePath | None = None
    certificate: FilePath | None = None
    key: FilePath | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """OSError where a file cannot be read; ValueError for a half of what belongs together."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client's certificate needs its key, and a key its certificate")
        return grpc.ssl_channel_credentials(*map(_read, (self.ca, self.key, self.certificate)))


def _read(file: FilePath | None) -> bytes | None:
    return None if file is None else Path(file).read_bytes()


@dataclass(frozen=True, slots=True)
class Token:
    """Sent with each call as `authorization: Bearer ...`; by TLS only, or within this machine.

    Not as gRPC's call credentials, which cannot be sent without TLS, not even there.
    """

    text: str = field(repr=False)

    def __post_init__(self) -> None:
        # gRPC would name it in the error otherwise.
        if not self.text or not self.text.isascii() or not self.text.isprintable():
            raise ValueError("a token must be printable ASCII")

    def metadata(self) -> tuple[str, str]:
        """The header."""
        return "authorization", f"Bearer {self.text}"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a client goes, and how; each channel to it connects when first asked."""

    address: str
    load_balancing: str = "pick_first"
    credentials: grpc.ChannelCredentials | None = None
    token: Token | None = None
    allow_plain_token: bool = False

    def __post_init__(self) -> None:
        unsafe = self.token and not self.credentials and not is_local(self.address)
        if unsafe and not self.allow_plain_token:
            raise ValueError(
                f"a token for {self.address} would be sent in plain text: use TLS, or allow it"
            )

    def channel(self) -> grpc.Channel:
        """For threads."""
        if self.credentials:
            return grpc.secure_channel(self.address, self.credentials, self._options())
        return grpc.insecure_channel(self.address, self._options())

    def async_channel(self) -> grpc.aio.Channel:
        """For the event loop that runs."""
        if self.credentials:
            return grpc.aio.secure_channel(self.address, self.credentials, self._options())
        return grpc.aio.insecure_channel(self.address, self._options())

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What is sent with each call."""
        return (self.token.metadata(),) if self.token else ()

    def _options(self) -> Options:
        """gRPC looks up names anew when a connection of the channel ends, and then learns of
        replicas that were added; a server that ends connections now and then makes itself be
        looked up. It goes by the proxy that http_proxy names, to localhost, too, where no_proxy
        does not: what is sent in plain text within this machine would leave it there."""
        # https://github.com/grpc/grpc/blob/master/doc/service_config.md
        config: dict[str, object] = {"loadBalancingConfig": [{self.load_balancing: {}}]}
        within = not self.credentials and is_local(self.address)
        return [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            # A connection of its own: all of a process's would else go to one of several workers.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.dns_min_time_between_resolutions_ms", _DNS_INTERVAL),
            ("grpc.initial_reconnect_backoff_ms", _RECONNECT[0]),
            ("grpc.max_reconnect_backoff_ms", _RECONNECT[1]),
            ("grpc.service_config", json.dumps(config)),
            *([("grpc.enable_http_proxy", 0)] if within else []),
        ]


def target(
    address: str,
    load_balancing: str = "pick_first",
    credentials: grpc.ChannelCredentials | None = None,
    tls: Tls | bool = False,
    token: str | None = None,
    allow_plain_token: bool = False,
) -> Target:
    """From the arguments of either client. OSError or ValueError names what is wrong."""
    if credentials and tls:
        raise ValueError("either credentials or tls, not both")
    if tls:
        credentials = (tls if isinstance(tls, Tls) else Tls()).credentials()
    secret = None if token is None else Token(token)
    return Target(address, load_balancing, credentials, secret, allow_plain_token)


def is_local(address: str) -> bool:
    """Whether all of a gRPC address is on this machine, as is known without asking a name server.

    https://github.com/grpc/grpc/blob/master/doc/naming.md
    """
    scheme, colon, rest = address.partition(":")
    if colon and scheme in ("unix", "unix-abstract"):
        return True
    if colon and scheme in ("dns", "ipv4", "ipv6"):
        address = rest.rpartition("/")[2]
    return all(_is_loopback(each) for each in address.split(","))


def _is_loopback(address: str) -> bool:
    """Of HOST, HOST:PORT, or either with an IPv6 address in brackets."""
    host = address
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        host = address.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
