"""From an HTTP request to the InferenceService and back: who asks, what came, and the answers.

Nothing here waits but the event loop: the models' threads tell it when an answer is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import Callable, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from serving.access import Caller
from serving.http.connection import peer
from serving.http.services import Services
from serving.http.status import Refused
from serving.replies import Refusal, Reply

Outcome = Reply | Refusal


def peer_of(request: Request) -> str:
    """Who asks, as gRPC names peers: ipv4:127.0.0.1:5000, ipv6:%5B::1%5D:5000."""
    return peer(request.client)


def caller_of(rpc: str, request: Request) -> Caller:
    """Who asks, for logs and traces."""
    headers = request.headers
    return Caller(
        rpc,
        peer_of(request),
        request.state.request_id,
        headers.get("traceparent", ""),
        headers.get("tracestate", ""),
    )


def admit(services: Services, request: Request) -> None:
    """Raise Refused, unread, what there is no room for: to read it would cost the most."""
    if services.inference.draining or services.room.full():
        caller = functools.partial(caller_of, "ModelInfer", request)
        raise Refused(services.inference.refuse_unread(caller=caller))


async def body(services: Services, request: Request, most: int = 0, instead: str = "") -> bytes:
    """What was sent, of `most` bytes, by default `--max-message-bytes`; 413 beyond, which tells
    what to do `instead`; 408 where no more of it comes in `--stall-timeout`."""
    most = most or services.config.max_message_bytes
    too_large = HTTPException(413, f"the body is larger than {most} bytes{instead}")
    if _declared(request) > most:
        raise too_large
    received = bytearray()
    chunks = aiter(request.stream())
    try:
        while True:
            async with asyncio.timeout(services.config.stall_timeout):
                received += await anext(chunks)
            if len(received) > most:
                raise too_large
    except StopAsyncIteration:
        return bytes(received)
    except TimeoutError:
        raise HTTPException(408, "the body did not arrive in time") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body is not whole") from None


async def ask(
    services: Services, request: Request, messages: Sequence[bytes], rpc: str = "ModelInfer"
) -> list[Outcome]:
    """Submit serialised ModelInferRequests, all at once; their outcomes, in their order. `rpc` is
    what logs and traces call it.

    The body must have been read. Where the client goes away, what is not run yet is cancelled.
    """
    asked = _Asked(services, functools.partial(caller_of, rpc, request))
    for message in messages:
        asked.submit(message)
    answered = asyncio.gather(*asked.outcomes)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            asked.cancel()
        return await answered
    finally:
        asked.cancel()
        gone.cancel()


class _Asked:
    """Requests on their way, and how to cancel them."""

    def __init__(self, services: Services, caller: Callable[[], Caller]) -> None:
        self._services = services
        self._caller = caller
        self._loop = asyncio.get_running_loop()
        self._cancels: list[Callable[[], None]] = []
        self.outcomes: list[asyncio.Future[Outcome]] = []

    def submit(self, message: bytes) -> None:
        outcome: asyncio.Future[Outcome] = self._loop.create_future()
        self.outcomes.append(outcome)
        services = self._services
        if services.inference.draining or services.room.full():
            outcome.set_result(services.inference.refuse_unread(message, self._caller))
            return
        services.room.streamed(1)
        respond = functools.partial(self._respond, outcome)
        self._cancels.append(services.inference.submit(message, math.inf, respond, self._caller))

    def cancel(self) -> None:
        """What was answered is not changed by it."""
        for cancel in self._cancels:
            cancel()

    def _respond(self, outcome: asyncio.Future[Outcome], told: Outcome) -> None:
        """On the thread that ran the batch, or on the loop's."""
        self._services.room.streamed(-1)
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(_set, outcome, told)


def _set(outcome: asyncio.Future[Outcome], told: Outcome) -> None:
    if not outcome.done():
        outcome.set_result(told)


async def _gone(request: Request) -> None:
    """Until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _declared(request: Request) -> int:
    """The body's length, as far as it was declared."""
    length = request.headers.get("content-length", "0")
    return int(length[:20]) if length.isascii() and length.isdigit() else 0
