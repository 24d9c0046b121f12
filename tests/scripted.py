"""A gRPC server that answers as it is told: with statuses and pushback, which a real one gives when
it happens to have no room."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status and its words, and what is said of trying again."""

    code: grpc.StatusCode
    words: str = "scripted"
    pushback: str | None = None


@dataclass
class Scripted(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs only
    """Refuses calls in turn, each as it is told to; those without a refusal get an empty answer."""

    refusals: Sequence[Refusal | None]
    before: Callable[[], object] = lambda: None  # each answer
    times: list[float] = field(default_factory=list)  # when each call came
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def service(self, handler_call_details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, request: bytes, context: Any) -> bytes:
        with self.lock:
            index = len(self.times)
            self.times.append(time.monotonic())
            self.metadata.append(dict(context.invocation_metadata()))
        refusal = self.refusals[index] if index < len(self.refusals) else None
        if refusal:
            if refusal.pushback is not None:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", refusal.pushback),))
            context.abort(refusal.code, refusal.words)
        self.before()
        return b""

    @property
    def gaps(self) -> list[float]:
        """Seconds between calls."""
        return [late - early for early, late in zip(self.times, self.times[1:], strict=False)]


@contextmanager
def serving(script: Scripted, threads: int = 4) -> Iterator[str]:
    """Its address."""
    server = grpc.server(ThreadPoolExecutor(threads), handlers=[script])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
