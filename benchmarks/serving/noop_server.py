"""A gRPC server that does nothing: what the transport alone costs, in the style of ours.

Answers ModelInfer with the same bytes whatever comes, without parsing it: bytes in, bytes out.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

SERVICE = "inference.GRPCInferenceService"
READY = b"\x08\x01"  # a ServerReadyResponse: field 1 is true
OPTIONS = [("grpc.so_reuseport", 0)]


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--style", choices=("sync", "aio"), default="sync")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=8, help="of the sync style's pool")
    parser.add_argument("--answer", type=Path, required=True, help="file: a ModelInferResponse")
    arguments = parser.parse_args()
    address = f"127.0.0.1:{arguments.port}"
    answer: bytes = arguments.answer.read_bytes()
    if arguments.style == "aio":

        async def infer(request: bytes, context: object) -> bytes:
            return answer

        asyncio.run(serve_aio(address, infer))
    else:
        same = grpc.unary_unary_rpc_method_handler(lambda request, context: answer)
        serve_sync(address, same, arguments.threads)


def serve_sync(address: str, infer: Any, threads: int) -> None:
    """grpcio's own threads hand each call to a pool; `infer` is the handler of ModelInfer."""
    server = grpc.server(futures.ThreadPoolExecutor(threads), options=OPTIONS)
    ready = grpc.unary_unary_rpc_method_handler(lambda request, context: READY)
    handlers = {"ModelInfer": infer, "ServerReady": ready}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(address)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    server.start()
    stopping.wait()
    server.stop(grace=None).wait()


async def serve_aio(address: str, infer: Callable[[bytes, Any], Awaitable[bytes]]) -> None:
    """Each call is a coroutine on one event loop; `infer` answers ModelInfer."""

    async def ready(request: bytes, context: object) -> bytes:
        return READY

    server = grpc.aio.server(options=OPTIONS)
    handlers = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(infer),
        "ServerReady": grpc.unary_unary_rpc_method_handler(ready),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(address)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await server.start()
    await stopping.wait()
    await server.stop(grace=None)


if __name__ == "__main__":
    main()
