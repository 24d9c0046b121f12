"""Which call needs what, and whether its token allows that: for every way in.

Knows no transport: whoever listens hands in the call's `authorization` headers, and what is raised
is translated as all else that is refused. Without tokens in the configuration all is allowed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from serving.config import ServerConfig
from serving.errors import NotAllowed, RateLimited, Unauthenticated
from serving.tokens import Grant, Need, bearer, configured, holder

_V2 = "/inference.GRPCInferenceService/"
_DIGITS = "/digits.v1.Digits/"
_HEALTH = "/grpc.health.v1.Health/"

# Of each RPC. Whether a model is ready is told by health to all, anyway.
RPCS: Mapping[str, Need] = {
    _V2 + "ServerLive": Need.NOTHING,
    _V2 + "ServerReady": Need.NOTHING,
    _V2 + "ModelReady": Need.NOTHING,
    _V2 + "ServerMetadata": Need.TOKEN,
    _V2 + "ModelMetadata": Need.TOKEN,
    _V2 + "ModelConfig": Need.TOKEN,
    _V2 + "ModelStatistics": Need.TOKEN,
    _V2 + "RepositoryIndex": Need.TOKEN,
    _V2 + "ModelInfer": Need.INFER,
    _V2 + "ModelStreamInfer": Need.INFER,
    _V2 + "RepositoryModelLoad": Need.ADMIN,
    _V2 + "RepositoryModelUnload": Need.ADMIN,
    _V2 + "TraceSetting": Need.TOKEN,  # to read them; the servicer asks for more
    _V2 + "LogSettings": Need.TOKEN,
    _V2 + "SystemSharedMemoryStatus": Need.TOKEN,
    _V2 + "SystemSharedMemoryRegister": Need.TOKEN,
    _V2 + "SystemSharedMemoryUnregister": Need.TOKEN,
    _V2 + "CudaSharedMemoryStatus": Need.TOKEN,
    _V2 + "CudaSharedMemoryRegister": Need.TOKEN,
    _V2 + "CudaSharedMemoryUnregister": Need.TOKEN,
    _DIGITS + "Classify": Need.INFER,
    _DIGITS + "StreamClassify": Need.INFER,
    _DIGITS + "SendFeedback": Need.FEEDBACK,
    _DIGITS + "StreamFeedback": Need.FEEDBACK,
    _DIGITS + "GetQuality": Need.TOKEN,
    _HEALTH + "Check": Need.NOTHING,
    _HEALTH + "List": Need.NOTHING,
    _HEALTH + "Watch": Need.NOTHING,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Need.TOKEN,
}

Headers = Sequence[str | bytes]


class Asker(NamedTuple):
    """Who asks: from where, as gRPC names peers, and with which roles."""

    peer: str
    roles: frozenset[Need] = frozenset()


class Authorization:
    """What the tokens allow now. StartupError where they cannot be used."""

    def __init__(self, config: ServerConfig) -> None:
        self._source = configured(config)
        self._allow_admin = config.allow_admin
        self._workers = config.workers
        self._wait: Callable[[Grant], float] = Rates().wait
        self.grants = self._shares(self._source.grants) if self._source else ()

    @property
    def required(self) -> bool:
        """There are tokens, and calls need one."""
        return self._source is not None

    def follow(self, told: Callable[[tuple[Grant, ...]], None]) -> None:
        """Tell of the tokens now, and, on another thread, whenever there are others."""

        def changed(grants: tuple[Grant, ...]) -> None:
            self.grants = self._shares(grants)
            told(self.grants)

        told(self.grants)
        if self._source:
            self._source.watch(changed)

    def count_by(self, wait: Callable[[Grant], float]) -> None:
        """Have somebody else count the calls, who is asked as Rates.wait is."""
        self._wait = wait

    def stop(self) -> None:
        """What is changed from now on has no effect."""
        if self._source:
            self._source.stop()

    def require(self, need: Need, headers: Headers, *, charge: bool = True) -> None:
        """Raise Unauthenticated, NotAllowed, or RateLimited, unless the call may be made.

        Each is one of its token's rate, unless it is not to `charge` it.
        """
        if not self.required or need is Need.NOTHING:
            return
        grant = self._holder(headers)
        # With --allow-admin it depends on where the caller is, which the servicer looks at.
        elsewhere = need is Need.ADMIN and self._allow_admin
        if need is not Need.TOKEN and need not in grant.roles and not elsewhere:
            raise NotAllowed(f"the token has not the role {need}")
        if charge and (wait := self._wait(grant)):
            raise RateLimited("the token has had as many calls as it may", wait)

    def roles(self, headers: Headers) -> frozenset[Need]:
        """Those of the call's token; none where it has none."""
        token = bearer(headers) if self.grants else None
        grant = holder(self.grants, token) if token else None
        return grant.roles if grant else frozenset()

    def _shares(self, grants: Sequence[Grant]) -> tuple[Grant, ...]:
        """Workers know nothing of each other's calls: each has its part of a rate."""
        share, least = 1 / self._workers, 1.0
        return tuple(
            replace(each, rate=each.rate * share, burst=max(least, each.burst * share))
            for each in grants
        )

    def _holder(self, headers: Headers) -> Grant:
        token = bearer(headers)
        if token is None:
            raise Unauthenticated("this needs a token: authorization: Bearer TOKEN")
        grant = holder(self.grants, token)
        if grant is None:
            raise Unauthenticated("the token is not known")
        return grant


class Rates:
    """How many calls each token has left in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By the token's name, and when that was, as time.monotonic.
        self._left: dict[str, tuple[float, float]] = {}

    def wait(self, grant: Grant) -> float:
        """0 where one more was to be had; else the seconds until there is one."""
        if not grant.rate:
            return 0.0
        with self._lock:
            now = time.monotonic()
            left, when = self._left.get(grant.name, (grant.burst, now))
            left = min(grant.burst, left + (now - when) * grant.rate)
            taken = left >= 1.0
            self._left[grant.name] = (left - taken, now)
        return 0.0 if taken else (1.0 - left) / grant.rate
