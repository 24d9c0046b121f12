"""What gRPC's clients feel of HTTP's: ``python -m benchmarks.http --model-repository models``.

A gRPC client asks for one image at a steady pace while HTTP clients in another process send as much
as they can, of one kind at a time. As they take CPU from the server, too, there is a control: as
many processes that compute and send nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import multiprocessing
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import describe, sentence
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc

Images = NDArray[np.uint8]

RESULTS = Path(__file__).parent / "results"
MODELS = ("linear", "resnet18")
TRANSPORTS = ("native", "grpcio")
PACE = 0.01  # seconds from one gRPC request to the next
HTTP_CLIENTS = 2
PICTURE = (4000, 3000)  # 12 megapixels
ROWS = 64  # images in a request
WARM_UP = 0.5  # seconds of each load that are not counted


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What HTTP's clients send; `path` is empty for those that only compute."""

    what: str
    path: str
    body: bytes = dataclasses.field(repr=False, default=b"")
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """One load; milliseconds as gRPC's client felt them, and how HTTP's requests were answered."""

    transport: str
    model: str
    load: str
    p50_ms: float
    p99_ms: float
    max_ms: float
    http_per_second: float
    http_statuses: dict[str, int]


def loads(model: str) -> list[Load]:
    """Of each kind that HTTP takes."""
    path = f"/v2/models/{model}/infer"
    images = np.random.default_rng(0).integers(0, 256, (ROWS, 28, 28), np.uint8)
    return [
        Load("another process computes", ""),
        Load("health", "/v2/health/ready"),
        Load("JSON, 1 image", path, _json(images[:1])),
        Load(f"JSON, {ROWS} images", path, _json(images)),
        Load("JSON, 4 MiB, too many images", path, _json(np.tile(images, (18, 1, 1)))),
        _binary(f"binary, {ROWS} images", path, images),
        _binary("binary, 4 MiB, too many images", path, np.tile(images, (83, 1, 1))),
        Load("JPEG, 12 megapixels", "/v1/classify", _picture(), {"Content-Type": "image/jpeg"}),
    ]


def _tensor(images: Images, **more: object) -> dict[str, object]:
    return {"name": "images", "datatype": "UINT8", "shape": images.shape, **more}


def _json(images: Images) -> bytes:
    return json.dumps({"inputs": [_tensor(images, data=images.ravel().tolist())]}).encode()


def _binary(what: str, path: str, images: Images) -> Load:
    head = {"inputs": [_tensor(images, parameters={"binary_data_size": images.nbytes})]}
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return Load(what, path, text + images.tobytes(), headers)


def _picture() -> bytes:
    """A photograph's worth of bytes: a stroke, and noise as of a sensor."""
    noise = np.random.default_rng(0).integers(225, 256, PICTURE[::-1], np.uint8)
    noise[800:2200, 1900:2100] = 20
    file = io.BytesIO()
    Image.fromarray(noise).convert("RGB").save(file, "JPEG", quality=85)
    return file.getvalue()


@contextmanager
def server(repository: Path, transport: str) -> Iterator[tuple[str, str]]:
    """Where one answers by gRPC and HTTP, in a process of its own, as users start it."""
    ports = ("--grpc-port=0", "--http-port=0", "--metrics-port=0")
    options = ["--model-control-mode=explicit", f"--load-model={','.join(MODELS)}"]
    options += ["--intra-op-threads=1", "--probe-interval=0", f"--transport={transport}"]
    command = [sys.executable, "-m", "serving", f"--model-repository={repository}"]
    process = subprocess.Popen([*command, *ports, *options], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        for line in process.stderr:
            if found := re.search(r"gRPC on (\S+), HTTP on http://(\S+),", line):
                yield found[1], found[2]
                return
        raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def sending(address: str, load: Load | None) -> Iterator[Counter[str]]:
    """HTTP clients that send while the block lasts; then their answers' statuses."""
    statuses = Counter[str]()
    if not load:
        yield statuses
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send_all, args=(address, load, theirs))
    process.start()
    ours.recv()
    time.sleep(WARM_UP)
    yield statuses
    ours.send(None)
    statuses.update(ours.recv())
    process.join()


def _send_all(address: str, load: Load, connection: Connection) -> None:
    over, statuses = threading.Event(), Counter[str]()
    threads = [
        threading.Thread(target=_send, args=(address, load, over, statuses))
        for _ in range(HTTP_CLIENTS)
    ]
    for thread in threads:
        thread.start()
    connection.send(None)
    connection.recv()
    over.set()
    for thread in threads:
        thread.join()
    connection.send(statuses)


def _send(address: str, load: Load, over: threading.Event, statuses: Counter[str]) -> None:
    http = HTTPConnection(address, timeout=60)
    while not over.is_set():
        if not load.path:
            sum(range(100_000))
            continue
        http.request("POST" if load.body else "GET", load.path, load.body or None, load.headers)
        response = http.getresponse()
        response.read()
        statuses[str(response.status)] += 1
    http.close()


def latencies(address: str, model: str, seconds: float) -> list[float]:
    """Of one client that asks for one image at its pace, in seconds."""
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[bytes(28 * 28)])
    request.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28])
    took = []
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(request)
        due = time.perf_counter()
        end = due + seconds
        while due < end:
            time.sleep(max(0.0, due - time.perf_counter()))
            asked = time.perf_counter()
            stub.ModelInfer(request)
            took.append(time.perf_counter() - asked)
            due = max(due + PACE, asked + took[-1])
    return took


def measure(repository: Path, transport: str, seconds: float) -> Iterator[Result]:
    """All loads on one server."""
    with server(repository, transport) as (by_grpc, by_http):
        for model in MODELS:
            for load in (None, *loads(model)):
                began = time.perf_counter()
                with sending(by_http, load) as statuses:
                    took = latencies(by_grpc, model, seconds)
                lasted = time.perf_counter() - began
                yield Result(
                    transport,
                    model,
                    load.what if load else "alone",
                    _ms(statistics.median(took)),
                    _ms(statistics.quantiles(took, n=100)[98]),
                    _ms(max(took)),
                    round(statuses.total() / lasted, 1),
                    dict(statuses),
                )


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def main() -> int:
    """Write http.json and http.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http", description=__doc__)
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load [%(default)g]")
    parser.add_argument("--transport", choices=TRANSPORTS, action="append")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = []
    for transport in arguments.transport or TRANSPORTS:
        for result in measure(arguments.model_repository, transport, arguments.seconds):
            results.append(result)
            print(_row(result), flush=True)
    _write(results, arguments.seconds, arguments.output)
    return 0


def _row(result: Result) -> str:
    statuses = ", ".join(f"{count} x {code}" for code, count in result.http_statuses.items())
    felt = f"{result.p50_ms:.2f} | {result.p99_ms:.2f} | {result.max_ms:.2f}"
    answered = f"{result.http_per_second:g} | {statuses}"
    return f"| {result.transport} | {result.model} | {result.load} | {felt} | {answered} |"


def _write(results: list[Result], seconds: float, output: Path) -> None:
    machine = describe(("uvicorn", "httptools", "starlette", "pillow", "grpcio", "onnxruntime"))
    output.mkdir(parents=True, exist_ok=True)
    facts = {
        "machine": machine,
        "seconds": seconds,
        "pace_seconds": PACE,
        "http_clients": HTTP_CLIENTS,
        "results": [dataclasses.asdict(result) for result in results],
    }
    (output / "http.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    lines = [
        "# What gRPC's clients feel of HTTP's",
        "",
        sentence(machine),
        "",
        f"One gRPC client asks for an image every {PACE * 1e3:g} ms, for {seconds:g} s, while"
        f" {HTTP_CLIENTS} HTTP clients send what they can; latency in milliseconds. They run on the"
        " server's machine: what another process that only computes costs is to be taken off.",
        "",
        "| transport | model | HTTP's clients send | p50 | p99 | max | HTTP/s | answered |",
        "|---|---|---|---|---|---|---|---|",
        *map(_row, results),
    ]
    (output / "http.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
