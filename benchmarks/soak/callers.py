"""What a slice of a soak asks: every way in, right and wrong, to the end and not.

Each kind has a share of the requests; h2load sends the rest over connections that it makes anew.
"""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.serving.http2 import frame as http2_frame
from benchmarks.serving.http2 import opening
from benchmarks.serving.wire import encode_v2, frame
from benchmarks.soak.reloads import STAYS
from serving.client import Client
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc

TIMEOUT = 60.0  # seconds
INFER = "/inference.GRPCInferenceService/ModelInfer"
IN_FLIGHT = (4, 16)  # h2load's connections, and requests on each
ON_ONE_STREAM = 50
CODE = grpc.StatusCode


class WrongFate(Exception):
    """A request did not end as it should."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where it is asked, with one image."""

    grpc: str
    http: str
    image: NDArray[np.uint8]  # (1, 28, 28)


Ask = Callable[[Server, int], None]


def by_h2load(server: Server, count: int, clients: int, streams: int) -> None:
    """So many requests, each of which must have an answer with a message."""
    command = ["h2load", f"--requests={count}", f"--clients={clients}"]
    command += [f"--max-concurrent-streams={streams}"]
    command += ["--header=content-type: application/grpc", "--header=te: trailers"]
    with tempfile.NamedTemporaryFile() as body:
        body.write(frame(encode_v2(STAYS, server.image)))
        body.flush()
        command += [f"--data={body.name}", f"http://{server.grpc}{INFER}"]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    succeeded = re.search(r"(\d+) succeeded", told)
    data = re.search(r"\((\d+)\) data", told)
    # Who is refused gets no message, and any answer is longer than the two outputs.
    if not (succeeded and data and int(succeeded[1]) == count and int(data[1]) > 16 * count):
        raise WrongFate(f"h2load: {told[-500:]}")


def coming_and_going(server: Server, count: int) -> None:
    """Two requests on each connection, a hundred connections at a time."""
    for _ in range(count // 200):
        by_h2load(server, 200, 100, 1)


def cut_off(server: Server, count: int) -> None:
    """Connections that end before anything is asked, within a frame, or speak something else."""
    host, port = server.grpc.rsplit(":", 1)
    greetings = (
        b"",
        opening(),
        opening()[:20],
        b"GET / HTTP/1.1\r\n\r\n",
        opening() + b"\0\0\x09\1",
    )
    junk = opening() + http2_frame(1, 4, 1, b"\xff" * 30)
    for number in range(count):
        with socket.create_connection((host, int(port)), TIMEOUT) as client:
            client.sendall((*greetings, junk)[number % (len(greetings) + 1)])


def typed(server: Server, count: int) -> None:
    """Contents typed, which the lane passes on."""
    request = _request(server)
    request.inputs[0].contents.uint_contents.extend(server.image.ravel().tolist())
    del request.raw_input_contents[:]
    with _stub(server) as stub:
        for _ in range(count):
            stub.ModelInfer(request, timeout=TIMEOUT)


def streamed(server: Server, count: int) -> None:
    """Some requests on each stream; each third stream is left before its end."""
    with _stub(server) as stub:
        for number in range(count // ON_ONE_STREAM):
            call = stub.ModelStreamInfer(iter([_request(server)] * ON_ONE_STREAM), timeout=TIMEOUT)
            for answered, message in enumerate(call, 1):
                if message.error_message:
                    raise WrongFate(f"on a stream: {message.error_message}")
                if number % 3 == 2 and answered == ON_ONE_STREAM // 2:
                    call.cancel()  # type: ignore[no-untyped-call]
                    break


def wrong(server: Server, count: int) -> None:
    """No such model, a wrong shape, bytes that are no message."""
    shape, name = _request(server), _request(server)
    shape.inputs[0].shape[1] = 7
    name.model_name = "nobody"
    bodies = (shape.SerializeToString(), name.SerializeToString(), b"\xff" * 20)
    wanted = (CODE.INVALID_ARGUMENT, CODE.NOT_FOUND, CODE.INVALID_ARGUMENT)
    with grpc.insecure_channel(server.grpc, _OWN) as channel:
        call = channel.unary_unary(INFER, bytes, bytes)
        for number in range(count):
            code = call.future(bodies[number % 3], timeout=TIMEOUT).code()
            if code is not wanted[number % 3]:
                raise WrongFate(f"{wanted[number % 3]} was wanted, and {code} came")


def given_up(server: Server, count: int) -> None:
    """Cancelled at once, or with a deadline that no answer can meet."""
    with _stub(server) as stub:
        for number in range(count // 10):
            wait = TIMEOUT if number % 2 else 1e-4
            calls = [stub.ModelInfer.future(_request(server), timeout=wait) for _ in range(10)]
            for call in calls:
                call.cancel()  # type: ignore[no-untyped-call]
            codes = {call.code() for call in calls}
            if not codes <= {CODE.OK, CODE.CANCELLED, CODE.DEADLINE_EXCEEDED}:
                raise WrongFate(f"given up, and ended as {codes}")


def with_feedback(server: Server, count: int) -> None:
    """Classified, and each label told."""
    with Client(server.grpc) as client:
        for _ in range(count // 2):
            found = client.classify(server.image, STAYS)
            client.feedback(found, found.labels)


def over_http(server: Server, count: int) -> None:
    """JSON, a PNG file, and JSON that is none; connections are kept for ten requests."""
    tensor = {"name": "images", "datatype": "UINT8", "shape": server.image.shape}
    whole = json.dumps({"inputs": [{**tensor, "data": server.image.ravel().tolist()}]}).encode()
    infer = f"/v2/models/{STAYS}/infer"
    kinds = (
        (infer, whole, {"Content-Type": "application/json"}, 200),
        ("/v1/classify", _png(server.image[0]), {"Content-Type": "image/png"}, 200),
        (infer, whole[:-9], {"Content-Type": "application/json"}, 400),
    )
    for _ in range(count // 10):
        with closing(HTTPConnection(server.http, timeout=TIMEOUT)) as connection:
            for number in range(10):
                path, body, headers, status = kinds[number % 3]
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                told = response.read()
                if response.status != status:
                    raise WrongFate(f"{path}: {response.status} {told[:200]!r}")


# Of all requests, each kind's share; h2load's are the rest.
SHARES: dict[Ask, float] = {
    coming_and_going: 0.02,
    cut_off: 0.002,
    typed: 0.02,
    streamed: 0.02,
    wrong: 0.01,
    given_up: 0.01,
    with_feedback: 0.004,
    over_http: 0.01,
}


def ask_all(server: Server, count: int) -> None:
    """So many requests, one kind after the other."""
    rest = count
    for ask, share in SHARES.items():
        ask(server, round(share * count))
        rest -= round(share * count)
    by_h2load(server, rest, *IN_FLIGHT)


_OWN = [("grpc.use_local_subchannel_pool", 1)]


def _request(server: Server) -> pb.ModelInferRequest:
    return pb.ModelInferRequest.FromString(encode_v2(STAYS, server.image))


@contextmanager
def _stub(server: Server) -> Iterator[pb_grpc.GRPCInferenceServiceStub]:
    """A connection of its own."""
    with grpc.insecure_channel(server.grpc, _OWN) as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def _png(image: NDArray[np.uint8]) -> bytes:
    """As somebody would scan it: dark on white, and larger."""
    file = io.BytesIO()
    Image.fromarray(255 - image).resize((112, 112)).save(file, "PNG")
    return file.getvalue()
