"""From an HTTP request to the InferenceService and back: who asks, what came, and the answers.

Nothing here waits but the event loop: the models' threads tell it when an answer is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from serving.access import Caller
from serving.authorization import Asker
from serving.errors import DeadlineExceeded, InvalidInput, RequestCancelled, ServingError
from serving.http.connection import peer
from serving.http.services import Services
from serving.http.status import Refused
from serving.replies import Refusal, Reply

Outcome = Reply | Refusal
Made = TypeVar("Made")

# Bytes of a message that is parsed on the event loop; a larger one, on a thread.
LITTLE = 64 * 2**10
# What statuses that only HTTP has are counted as; others, as invalid input.
_MEANT: dict[int, type[ServingError]] = {408: DeadlineExceeded}


def peer_of(request: Request) -> str:
    """Who asks, as gRPC names peers: ipv4:127.0.0.1:5000, ipv6:%5B::1%5D:5000."""
    return peer(request.client)


def tokens_of(request: Request) -> list[str]:
    """Its `authorization` headers."""
    return request.headers.getlist("authorization")


def asker_of(request: Request) -> Asker:
    """Who asks, and with which roles, as far as `permissions` found some."""
    return Asker(peer_of(request), getattr(request.state, "roles", frozenset()))


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


def admit(services: Services, request: Request, rpc: str = "ModelInfer") -> None:
    """Raise Refused, unread, what there is no room for: to read it would cost the most. Images that
    wait to be decoded are inside already."""
    if services.inference.draining or services.room.full(services.classifier.decoding.inside):
        caller = functools.partial(caller_of, rpc, request)
        raise Refused(services.inference.refuse_unread(caller=caller))


@contextlib.contextmanager
def counted(services: Services, request: Request, rpc: str = "ModelInfer") -> Iterator[None]:
    """What is refused in the block, before a model was asked, is counted, and told to those who
    observe, as it is where gRPC brought it."""
    caller = functools.partial(caller_of, rpc, request)

    def refuse(error: ServingError) -> Refusal:
        received = getattr(request.state, "received", 0)
        return services.inference.refuse(error, "", received, caller)

    try:
        yield
    except HTTPException as error:  # a status that only HTTP has
        refuse(_MEANT.get(error.status_code, InvalidInput)(error.detail))
        raise
    except ServingError as error:
        raise Refused(refuse(error)) from None


async def body(services: Services, request: Request, most: int = 0, instead: str = "") -> bytes:
    """What was sent, of `most` bytes, by default `--max-message-bytes`; 413 beyond, which tells
    what to do `instead`; 408 where no more of it comes in `--stall-timeout`.

    Raises Overloaded where there is no room for it among all that are being received, and
    RequestCancelled where the client goes away.
    """
    most = most or services.config.max_message_bytes
    too_large = HTTPException(413, f"the body is larger than {most} bytes{instead}")
    if _declared(request) > most:
        raise too_large
    chunks = aiter(request.stream())
    with services.bodies.one() as received:
        try:
            while True:
                async with asyncio.timeout(services.config.stall_timeout):
                    chunk = await anext(chunks)
                request.state.received = received.size + len(chunk)
                if request.state.received > most:
                    raise too_large
                received.add(chunk)
        except StopAsyncIteration:
            return received.whole()
        except TimeoutError:
            raise HTTPException(408, "the body did not arrive in time") from None
        except ClientDisconnect:
            raise RequestCancelled("the caller went away before the body was whole") from None


async def ask(
    services: Services, request: Request, messages: Sequence[bytes], rpc: str = "ModelInfer"
) -> list[Outcome]:
    """Submit serialised ModelInferRequests, all at once; their outcomes, in their order. `rpc` is
    what logs and traces call it.

    The body must have been read. Where the client goes away, what is not run yet is cancelled.
    """
    asked = _Asked(services, functools.partial(caller_of, rpc, request))
    gone = asyncio.ensure_future(_gone(request))
    try:
        for message in messages:
            await asked.submit(message)
        answered = asyncio.gather(*asked.outcomes)
        await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            asked.cancel()
        return await answered
    finally:
        asked.cancel()
        gone.cancel()


async def unless_gone(request: Request, made: asyncio.Future[Made]) -> Made:
    """What becomes of the future; RequestCancelled, and it is cancelled, where the client goes away
    before. The body must have been read."""
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((made, gone), return_when=asyncio.FIRST_COMPLETED)
        if not made.done():
            raise RequestCancelled("the caller went away")
        return made.result()
    finally:
        made.cancel()
        gone.cancel()


class _Asked:
    """Requests on their way, and how to cancel them."""

    def __init__(self, services: Services, caller: Callable[[], Caller]) -> None:
        self._services = services
        self._caller = caller
        self._loop = asyncio.get_running_loop()
        self._cancels: list[Callable[[], None]] = []
        self.outcomes: list[asyncio.Future[Outcome]] = []

    async def submit(self, message: bytes) -> None:
        """What was admitted is answered, also by a server that drains by now."""
        outcome: asyncio.Future[Outcome] = self._loop.create_future()
        self.outcomes.append(outcome)
        services = self._services
        if services.room.full():
            outcome.set_result(services.inference.refuse_unread(caller=self._caller))
            return
        services.room.streamed(1)
        respond = functools.partial(self._respond, outcome)
        begin = functools.partial(
            services.inference.submit, message, math.inf, respond, self._caller
        )
        little = len(message) <= LITTLE
        self._cancels.append(begin() if little else await run_in_threadpool(begin))

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
