"""Our inference behind gRPC servers of other styles: how calls are received and answers sent.

`waiting`: a thread of grpcio's pool waits for each answer. `completion`: what the product does, the
thread that ran the batch answers, by the call that grpcio keeps to itself. `public`: the same by
what grpcio offers to all. `aio`: coroutines on one event loop, woken by that thread.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import math
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from benchmarks.serving.noop_server import serve_aio, serve_sync
from serving import transport
from serving.config import ServerConfig
from serving.counter_directory import CounterDirectory
from serving.inference import InferenceService
from serving.prediction_ids import feedback_keys
from serving.processes import collect_less_often
from serving.replies import Refusal, Reply
from serving.server import InferenceServer

WAITING_THREADS = 80  # more than are in flight


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--style", choices=("waiting", "completion", "public", "aio"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model-repository", type=Path, required=True)
    arguments = parser.parse_args()
    config = dataclasses.replace(
        ServerConfig(),
        model_repository=arguments.model_repository,
        precision="fp32",
        intra_op_threads=1,
    )
    collect_less_often()
    counters = CounterDirectory()
    server = InferenceServer(config, counters.path, feedback_keys(None))
    server.control.start()
    address = f"127.0.0.1:{arguments.port}"
    if arguments.style == "aio":
        asyncio.run(serve_aio(address, coroutine(server.service)))
    else:
        serve_sync(address, HANDLERS[arguments.style](server.service), WAITING_THREADS)
    counters.close()


def waiting(service: InferenceService) -> Any:
    """Each call keeps a thread until it is answered."""

    def infer(message: bytes, context: Any) -> bytes:
        answered = threading.Lock()
        answered.acquire()
        outcomes: list[Reply | Refusal] = []

        def respond(outcome: Reply | Refusal) -> None:
            outcomes.append(outcome)
            answered.release()

        context.add_callback(service.submit(message, math.inf, respond))
        answered.acquire()
        reply = outcomes[0]
        if isinstance(reply, Refusal):
            context.abort(grpc.StatusCode[reply.status], reply.details)
        assert isinstance(reply, Reply)  # abort raises
        context.set_trailing_metadata(transport.timing_metadata(reply.timing))
        return reply.message

    return grpc.unary_unary_rpc_method_handler(infer)


def completion(service: InferenceService) -> Any:
    """The product's own."""
    return transport.infer_handler(service, transport.receiving_pool())


def public(service: InferenceService) -> Any:
    """The product's own, where grpcio has not what it wants."""
    return transport.infer_handler(
        service, transport.receiving_pool(), transport.one_after_the_other
    )


HANDLERS: dict[str, Callable[[InferenceService], Any]] = {
    "waiting": waiting,
    "completion": completion,
    "public": public,
}


def coroutine(service: InferenceService) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """Each call is a coroutine, which the thread that ran the batch wakes."""

    async def infer(message: bytes, context: Any) -> bytes:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Reply | Refusal] = loop.create_future()

        def respond(reply: Reply | Refusal) -> None:
            loop.call_soon_threadsafe(outcome.set_result, reply)

        service.submit(message, math.inf, respond)
        reply = await outcome
        if isinstance(reply, Refusal):
            await context.abort(grpc.StatusCode[reply.status], reply.details)
        assert isinstance(reply, Reply)  # abort raises
        context.set_trailing_metadata(transport.timing_metadata(reply.timing))
        return reply.message

    return infer


if __name__ == "__main__":
    main()
