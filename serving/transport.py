"""grpcio's synchronous server, and ModelInfer over it, for an InferenceService; `streaming` has the
other.

No thread waits for an answer: grpcio's handler returns at once, and the thread that ran the batch
sends it. Measured against the other styles, this is the fastest: see benchmarks/results/styles.md.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from functools import partial
from typing import Any

import grpc
from grpc import _server as grpc_internals

from serving.access import Timing
from serving.authorization import Authorization
from serving.calls import MethodHandler, caller_of, deadline_of
from serving.config import ServerConfig
from serving.inference import Answering, InferenceService
from serving.receiving import ReceivingPool
from serving.replies import Refusal, Reply
from serving.room import Room
from serving.servicer import SERVICE
from serving.streaming import stream_handler
from serving.tls import TlsFiles
from serving.tls_watch import TlsWatch

# Threads that receive and parse requests, and at most, while callers send slowly.
RECEIVING_THREADS = 8
MOST_RECEIVING_THREADS = 512

# Threads for everything but inference, so that health answers under any load; and at most, while
# some are stuck.
THREADS = (4, 256)
# Calls that one connection may have open; more wait at the caller, not in this server's memory.
MAX_CALLS_PER_CONNECTION = 4096
# Bytes of a call's metadata, as in the lane. By default grpcio refuses some calls from 8 KiB on.
MAX_METADATA_BYTES = 16 * 1024
# Milliseconds that a client may take to shake hands, as in the lane.
HANDSHAKE = 20_000
LIMITS = (
    ("grpc.max_concurrent_streams", MAX_CALLS_PER_CONNECTION),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE),
)
# The same behind the lane, which holds its clients to their limits itself. grpcio counts a call for
# a little longer than its client does, and resets new ones meanwhile: hence twice as many. And of
# all connections' calls that Python has not looked at it cancels some from 1000 on, and any beyond
# 3000: hence room for those of a few clients that have as many as they may.
PRIVATE_LIMITS = (
    ("grpc.max_concurrent_streams", 2 * MAX_CALLS_PER_CONNECTION),
    ("grpc.max_metadata_size", 4 * MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 4 * MAX_METADATA_BYTES),
    ("grpc.server.max_pending_requests", 4 * MAX_CALLS_PER_CONNECTION),
    ("grpc.server.max_pending_requests_hard_limit", 4 * MAX_CALLS_PER_CONNECTION),
)
# Milliseconds of silence until a peer is asked whether it lives, and for its answer.
KEEPALIVE = (60_000, 20_000)

_INFER = f"/{SERVICE.full_name}/ModelInfer"

Metadata = tuple[tuple[str, str], ...]
Send = Callable[[bytes | None], None]
Finish = Callable[[Any, bytes, Send], None]


def grpc_server(
    config: ServerConfig,
    *,
    private: bool = False,
    interceptors: Sequence[grpc.ServerInterceptor] = (),  # type: ignore[type-arg]  # as below
) -> grpc.Server:
    """A server without services that listens nowhere yet.

    A `private` one is behind the native lane, which has its clients' connections end in time: its
    own to grpcio end with those, and not before, as calls in flight would then keep new ones out.
    Nor does it refuse what the lane lets pass.
    """
    limits = {
        "grpc.max_connection_age_ms": round(config.max_connection_age * 1000),
        "grpc.max_connection_idle_ms": round(config.max_connection_idle * 1000),
    }
    ending = [] if private else [(name, limit) for name, limit in limits.items() if limit]
    return grpc.server(
        ReceivingPool(*THREADS, name="rpc"),
        interceptors=list(interceptors),
        options=[
            # Two servers must not share a port by accident; workers of one do by design.
            ("grpc.so_reuseport", int(config.workers > 1)),
            *(PRIVATE_LIMITS if private else LIMITS),
            ("grpc.keepalive_time_ms", KEEPALIVE[0]),
            ("grpc.keepalive_timeout_ms", KEEPALIVE[1]),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),  # clients may ask, too
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.max_send_message_length", config.max_message_bytes),
            # For calls in flight, once a connection has reached its age.
            ("grpc.max_connection_age_grace_ms", round(config.drain_timeout * 1000)),
            *ending,
        ],
    )


def add_port(server: grpc.Server, where: str, tls: TlsWatch) -> int:
    """Listen at host:port, by TLS and its newest files if that is configured; the port."""
    if tls.files is None:
        return server.add_insecure_port(where)
    renewed: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)
    tls.follow(lambda files: renewed.append(_certificates(files)))
    credentials = grpc.dynamic_ssl_server_credentials(
        _certificates(tls.files),
        lambda: _newest(renewed),  # type: ignore[arg-type, return-value]  # None is nothing new
        require_client_authentication=tls.files.client_ca is not None,
    )
    return server.add_secure_port(where, credentials)


def _certificates(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    pair = (files.key, files.certificate)
    return grpc.ssl_server_certificate_configuration([pair], files.client_ca)


def _newest(
    renewed: deque[grpc.ServerCertificateConfiguration],
) -> grpc.ServerCertificateConfiguration | None:
    """What grpcio asks for at each handshake, of any thread: what it does not have yet."""
    try:
        return renewed.pop()
    except IndexError:
        return None


class Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # none at run time
    """The methods of a service, by their paths; ModelInfer only while there is room for one more.

    Beyond the room, one is refused before it is read, on the thread that heard of it: at about half
    of what a refusal costs once the request was received.
    """

    def __init__(
        self,
        service: InferenceService,
        others: Mapping[str, MethodHandler],
        room: Room,
        authorization: Authorization,
    ) -> None:
        self._room = room
        self._pool = receiving_pool()
        self._infer = infer_handler(service, self._pool)
        self._refuse = refuse_handler(service)
        stream = stream_handler(service, room, authorization)
        methods = {**others, "ModelStreamInfer": stream}
        self._others = {f"/{SERVICE.full_name}/{name}": each for name, each in methods.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> MethodHandler | None:
        """The handler of one call; None is UNIMPLEMENTED."""
        if handler_call_details.method != _INFER:
            return self._others.get(handler_call_details.method)
        full = self._room.full(self._pool.waiting) or self._pool.full
        return self._refuse if full else self._infer

    @property
    def receiving(self) -> bool:
        """Calls were accepted whose requests have not been submitted yet."""
        return bool(self._pool.running or self._pool.waiting)


def receiving_pool(name: str = "receive") -> ReceivingPool:
    """The threads that requests are received on."""
    return ReceivingPool(RECEIVING_THREADS, MOST_RECEIVING_THREADS, name)


def infer_handler(
    service: Answering,
    pool: ReceivingPool,
    finish: Finish | None = None,
    rpc: str = "ModelInfer",
) -> MethodHandler:
    """The handler of ModelInfer, or of what is answered alike, bytes in and bytes out.

    To grpcio it streams its one answer: that is the kind of handler that may return before it has
    answered. On the wire there is no difference. `finish` sends the answer and ends the call; by
    default, in the fastest way that there is.
    """
    finish = finish or _fastest()

    def infer(message: bytes, context: Any, send: Send) -> None:
        def respond(outcome: Reply | Refusal) -> None:
            if isinstance(outcome, Reply):
                context.set_trailing_metadata(timing_metadata(outcome.timing))
                finish(context, outcome.message, send)
            else:
                _refuse(context, outcome)
                send(None)

        caller = partial(caller_of, rpc, context)
        cancel = service.submit(message, deadline_of(context), respond, caller)
        if not context.add_callback(cancel):
            cancel()

    return grpc.unary_stream_rpc_method_handler(_non_blocking(infer, pool))


def refuse_handler(service: Answering, rpc: str = "ModelInfer") -> MethodHandler:
    """Refuses a call, as there is no room for it."""
    return refusing(lambda context: service.refuse_unread(caller=partial(caller_of, rpc, context)))


def refusing(refusal: Callable[[Any], Refusal]) -> MethodHandler:
    """Refuses a call without reading its request: to grpcio that is a stream, nobody asks for."""

    def refuse(messages: Iterator[bytes], context: Any, send: Send) -> None:
        _refuse(context, refusal(context))
        send(None)

    return grpc.stream_stream_rpc_method_handler(_non_blocking(refuse, _Inline(1)))


class _Inline(futures.ThreadPoolExecutor):
    """Runs at once what is submitted; for handlers that wait for nothing."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        future: futures.Future[Any] = futures.Future()
        future.set_result(fn(*args, **kwargs))
        return future


def timing_metadata(timing: Timing) -> Metadata:
    """Trailing metadata of an answer; `server-timing` is in milliseconds, as W3C has it.

    https://www.w3.org/TR/server-timing/
    """
    stages = timing.stages
    durations = (
        f"queue;dur={timing.queue_seconds * 1e3:.3f}, "
        f"batch;dur={stages.compute_input_seconds * 1e3:.3f}, "
        f"compute;dur={stages.compute_infer_seconds * 1e3:.3f}, "
        f"split;dur={stages.compute_output_seconds * 1e3:.3f}"
    )
    return (
        ("server-timing", durations),
        ("batch-size", str(stages.rows)),
        ("model-version", timing.version),
    )


def _refuse(context: Any, refusal: Refusal) -> None:
    context.set_code(grpc.StatusCode[refusal.status])
    context.set_details(refusal.details)
    if refusal.retry_after is not None:
        # https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
        milliseconds = str(math.ceil(refusal.retry_after * 1e3))
        context.set_trailing_metadata((("grpc-retry-pushback-ms", milliseconds),))


def _fastest() -> Finish:
    """How to send the one answer of a call and end it.

    grpcio's public way sends the answer, waits until it has left, then sends the status: at a
    message a wait, half of the throughput. Its own unary calls send both at once by a function
    that it keeps to itself; where that is still what it was, it is taken.
    """
    status = getattr(grpc_internals, "_status", None)
    expected = ["rpc_event", "state", "serialized_response"]
    if status and list(inspect.signature(status).parameters) == expected:

        def at_once(context: Any, message: bytes, send: Send) -> None:
            try:
                event, state = context._rpc_event, context._state
            except AttributeError:
                one_after_the_other(context, message, send)
            else:
                status(event, state, message)

        return at_once
    return one_after_the_other


def one_after_the_other(context: Any, message: bytes, send: Send) -> None:
    """Send the answer of a call and end it, by what grpcio offers to all."""
    send(message)
    send(None)


def _non_blocking(behavior: Any, pool: futures.ThreadPoolExecutor) -> Any:
    """Mark a handler as one that returns before it has answered, on threads of its own.

    The attributes are grpcio's; its own health service uses them.
    """
    behavior.experimental_non_blocking = True
    behavior.experimental_thread_pool = pool
    return behavior
