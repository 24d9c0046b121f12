"""What the handlers of grpcio's calls share."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeAlias, TypeVar

import grpc

from serving.access import Caller

MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

Question = TypeVar("Question")
Answer = TypeVar("Answer")


def deadline_of(context: Any) -> float:
    """The call's deadline as time.monotonic; infinite without one."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + remaining


# Metadata of what the native lane passes on; it strips what a client sends under these names.
PEER_METADATA = "x-digits-peer"
CHOSEN_METADATA = "x-digits-chosen"  # for what: access.Caller
_PRIVATE_SOCKET = "unix:"


def peer_of(context: Any) -> str:
    """Who calls, as gRPC names peers; the lane's client, where the lane passed the call on."""
    peer: str = context.peer()
    if not _by_the_lane(context):
        return peer
    told = (value for key, value in context.invocation_metadata() if key == PEER_METADATA)
    return next(told, peer)


def tokens_of(metadata: Iterable[tuple[str, str | bytes]]) -> list[str | bytes]:
    """The `authorization` headers of a call."""
    return [value for key, value in metadata if key == "authorization"]


def caller_of(rpc: str, context: Any) -> Caller:
    """Who calls; also once the call is over. Some microseconds: not for every call."""
    headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
    return Caller(
        rpc,
        peer_of(context),
        headers.get("x-request-id", ""),
        headers.get("traceparent", ""),
        headers.get("tracestate", ""),
        headers.get(CHOSEN_METADATA, "") if _by_the_lane(context) else "",
    )


def _by_the_lane(context: Any) -> bool:
    """It passed the call on: what the metadata under its names says can be believed."""
    return bool(context.peer().startswith(_PRIVATE_SOCKET))


def at_most(
    limit: int, answers: Callable[[Iterator[Question], Any], Iterator[Answer]], name: str
) -> Callable[[Iterator[Question], Any], Iterator[Answer]]:
    """A stream's behaviour for so many open at the same time; more are RESOURCE_EXHAUSTED.

    On threads of its own, called `name`, as a stream keeps one for as long as it is open.
    """
    streams = threading.BoundedSemaphore(limit)

    def stream(messages: Iterator[Question], context: Any) -> Iterator[Answer]:
        if not streams.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{limit} streams are already open")
        try:
            yield from answers(messages, context)
        finally:
            streams.release()

    pool = futures.ThreadPoolExecutor(limit + 8, thread_name_prefix=name)
    stream.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return stream
