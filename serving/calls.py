"""What the handlers of grpcio's calls share."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError

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


def strict(handler: MethodHandler) -> MethodHandler:
    """The handler, but that it parses requests itself: what is none is INVALID_ARGUMENT. grpcio
    would call that INTERNAL, and log a traceback for each."""
    parse, streams = handler.request_deserializer, handler.request_streaming
    behaviour, make = _parts(handler)

    @functools.wraps(behaviour)
    def parsing(given: Any, context: Any, *send: Any) -> Any:
        if streams:
            return behaviour((_parsed(parse, each, context) for each in given), context, *send)
        return behaviour(_parsed(parse, given, context), context, *send)

    return make(parsing, None, handler.response_serializer)


def _parts(handler: Any) -> tuple[Callable[..., Any], Callable[..., MethodHandler]]:
    """What it does, and what makes another such handler."""
    if handler.request_streaming:
        if handler.response_streaming:
            return handler.stream_stream, grpc.stream_stream_rpc_method_handler
        return handler.stream_unary, grpc.stream_unary_rpc_method_handler
    if handler.response_streaming:
        return handler.unary_stream, grpc.unary_stream_rpc_method_handler
    return handler.unary_unary, grpc.unary_unary_rpc_method_handler


def _parsed(parse: Any, message: bytes, context: Any) -> Any:
    try:
        return parse(message)
    except DecodeError:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is not the method's request")


class StrictServer:
    """What services that grpcio brings are added to, in a server's place, to be `strict` there."""

    def __init__(self, server: grpc.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[object]) -> None:
        """Nothing: each service that is added so is added as the other way has it, too."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, MethodHandler]
    ) -> None:
        """The methods of one service, by their names."""
        made = {name: strict(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, made),)
        )
