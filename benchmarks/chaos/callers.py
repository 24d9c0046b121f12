"""Clients at a steady rate, each with a connection of its own, that check every answer.

A request's random number comes back times the version that answered: an answer to another request,
or of another version than it says, is wrong.
"""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import grpc
import numpy as np

from benchmarks.chaos.ledger import RIGHT, WRONG, Ledger
from benchmarks.chaos.repository import MODEL, WIDTH
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc

# Kinds of caller: one that asks again by gRPC's own policy, as any client may have it, one that
# never does, and one that sends its requests on a stream, which it opens anew where it ends.
RETRYING, PLAIN, STREAM = "retrying", "plain", "stream"
# https://github.com/grpc/proposal/blob/master/A6-client-retries.md. CANCELLED is what grpcio's
# server says of calls that come as it ends.
RETRIES = {
    "name": [{}],
    "waitForReady": True,
    "retryPolicy": {
        "maxAttempts": 5,
        "initialBackoff": "0.2s",
        "maxBackoff": "3s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
    },
}
TIMEOUT = 20.0  # seconds for an answer
WINDOW = 32  # requests of a stream that wait for their answers

Wait = Callable[[], bool]  # until the next request is due; false where there is none


def channel(address: str, *, retry: bool) -> grpc.Channel:
    """A connection of its own, which tries again soon where there is no server."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5000),
        ("grpc.service_config", json.dumps({"methodConfig": [RETRIES]} if retry else {})),
    ]
    return grpc.insecure_channel(address, options)


def request(value: float, name: str = "") -> pb.ModelInferRequest:
    """One row, of which each number is `value`."""
    row = np.full(WIDTH, value, np.float32).tobytes()
    message = pb.ModelInferRequest(id=name, model_name=MODEL, raw_input_contents=[row])
    message.inputs.add(name="x", datatype="FP32", shape=[1, WIDTH])
    return message


def is_right(answer: pb.ModelInferResponse, value: float, name: str) -> bool:
    """Whether each number is the value times the version that answered, and the id is ours."""
    row = np.frombuffer(answer.raw_output_contents[0], np.float32)
    wanted = np.float32(value) * np.float32(answer.model_version)
    return answer.id == name and row.size == WIDTH and bool((row == wanted).all())


def ask(address: str, ledger: Ledger, kind: str, wait: Wait, seed: int) -> None:
    """One call after the other."""
    numbers = random.Random(seed)  # nosec B311 # no secret
    with channel(address, retry=kind == RETRYING) as connection:
        stub = pb_grpc.GRPCInferenceServiceStub(connection)
        while wait():
            value, number = float(numbers.randrange(1, 1000)), ledger.sent(kind)
            try:
                answer = stub.ModelInfer(request(value, str(number)), timeout=TIMEOUT)
            except grpc.RpcError as error:
                ledger.ended(number, error.code().name, str(error.details()))
            else:
                right = is_right(answer, value, str(number))
                ledger.ended(number, RIGHT if right else WRONG, answer.model_version)


def ask_by_streams(address: str, ledger: Ledger, kind: str, wait: Wait, seed: int) -> None:
    """Requests on a stream, answers as they come; what a stream leaves unanswered has failed."""
    numbers = random.Random(seed)  # nosec B311 # no secret
    with channel(address, retry=False) as connection:
        stub = pb_grpc.GRPCInferenceServiceStub(connection)
        while _one_stream(stub, ledger, wait, numbers):
            pass


def _one_stream(
    stub: pb_grpc.GRPCInferenceServiceStub, ledger: Ledger, wait: Wait, numbers: random.Random
) -> bool:
    """Until it ends, or nothing more is to be sent; whether there is more."""
    outgoing: queue.SimpleQueue[pb.ModelInferRequest | None] = queue.SimpleQueue()
    asked: dict[str, float] = {}
    broken: list[grpc.RpcError] = []
    room = threading.Semaphore(WINDOW)
    answers = stub.ModelStreamInfer(iter(outgoing.get, None))

    def read() -> None:
        try:
            for message in answers:
                _take(message, asked, ledger)
                room.release()
        except grpc.RpcError as error:
            broken.append(error)
        room.release(WINDOW)  # nobody need wait for what does not come

    reader = threading.Thread(target=read)
    reader.start()
    more = True
    while (more := wait()) and room.acquire(timeout=TIMEOUT) and reader.is_alive():
        value, number = float(numbers.randrange(1, 1000)), ledger.sent(STREAM)
        asked[str(number)] = value
        outgoing.put(request(value, str(number)))
    outgoing.put(None)
    reader.join(TIMEOUT)
    answers.cancel()  # type: ignore[no-untyped-call]
    status = broken[0].code().name if broken else "ENDED"
    for name in asked:
        ledger.ended(int(name), status, str(broken[0].details()) if broken else "")
    return more


def _take(message: pb.ModelStreamInferResponse, asked: dict[str, float], ledger: Ledger) -> None:
    answer = message.infer_response
    value = asked.pop(answer.id, None)
    if value is None:
        ledger.ended(0, WRONG)  # an answer to nothing
    elif message.error_message:
        ledger.ended(int(answer.id), "REFUSED", message.error_message)
    else:
        ledger.ended(int(answer.id), RIGHT if is_right(answer, value, answer.id) else WRONG)


@contextmanager
def callers(
    address: str, ledger: Ledger, kinds: Sequence[str], rate: float, seed: int
) -> Iterator[None]:
    """One of each kind that is listed, at `rate` requests a second in all, until left."""
    over = threading.Event()
    threads = []
    for index, kind in enumerate(kinds):
        each = ask_by_streams if kind == STREAM else ask
        wait = _paced(rate / len(kinds), over)
        arguments = (address, ledger, kind, wait, seed + index)
        threads.append(threading.Thread(target=each, args=arguments, daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(2 * TIMEOUT)


def _paced(rate: float, over: threading.Event) -> Wait:
    """So many a second; one that is late is sent at once, and does not make up for lost time."""
    due = time.monotonic()

    def wait() -> bool:
        nonlocal due
        now = time.monotonic()
        due = max(due + 1 / rate, now - 0.1) if rate < float("inf") else now
        return not over.wait(max(0.0, due - now)) if due > now else not over.is_set()

    return wait
