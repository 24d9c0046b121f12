"""ResNet18 through gRPC against ONNX Runtime alone on one device: ``python -m benchmarks.gpu``.

ONNX Runtime alone runs with inputs and outputs bound on the device, nothing copied, at the batch
size and with the threads that are best for it; the server gets requests of that many images from
processes of their own.
Needs a published ResNet18 and onnxruntime-gpu; ``--device cpu`` tries the program out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.machine import describe, sentence
from deploy.ports import reserved_port
from model_repository import HOLDOUT, ONNX_PLATFORM, Manifest, read_manifest, versions
from serving.client import Client
from serving.config import ServerConfig
from serving.datatypes import DATATYPES
from serving.device import runtime_for
from serving.errors import StartupError
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc
from serving.session import open_session

RESULTS = Path(__file__).parent / "results"
BATCH_SIZES = (1, 8, 32, 64, 128, 256, 512, 1024)
INSTANCES = 2  # of the server, and threads of ONNX Runtime alone at most
TARGET = 0.9
MESSAGE_BYTES = 64 * 2**20
READY_TIMEOUT = 600.0  # seconds; CUDA's first start compiles kernels


@dataclass(frozen=True, slots=True)
class Result:
    """One precision and one way to serve it; images per second, and seconds per request."""

    precision: str
    served: str
    batch: int
    alone: float
    through_grpc: float
    ratio: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Load:
    """What one client process does: requests of `images`, so many in flight, for `seconds`."""

    address: str
    model: str
    images: NDArray[np.uint8]
    in_flight: int
    seconds: float


def main() -> int:
    """Write gpu.json and gpu.md; 1 where a ratio misses the target, 2 without the device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    parser.add_argument("--model", default="resnet18_0_9")
    parser.add_argument("--device", default="gpu", choices=("gpu", "cpu"))
    parser.add_argument("--precisions", default="fp32,tf32,fp16")
    parser.add_argument("--batch-sizes", default=",".join(map(str, BATCH_SIZES)))
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--clients", type=int, default=4, help="processes")
    parser.add_argument("--in-flight", type=int, default=4, help="requests per client")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    try:
        results = list(_results(arguments))
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _write(arguments, results)
    best = {
        r.precision: max(x.ratio for x in results if x.precision == r.precision) for r in results
    }
    return 1 if any(ratio < TARGET for ratio in best.values()) else 0


def _results(arguments: argparse.Namespace) -> Iterator[Result]:
    graphs = (False, True) if arguments.device == "gpu" else (False,)
    for precision in arguments.precisions.split(","):
        alone = {
            size: _alone(arguments, precision, size)
            for size in map(int, arguments.batch_sizes.split(","))
        }
        batch = max(alone, key=lambda size: alone[size])
        for cuda_graphs in graphs:
            result = _through_grpc(arguments, precision, batch, alone[batch], cuda_graphs)
            print(_row(result), flush=True)
            yield result


def _holdout(
    arguments: argparse.Namespace, rows: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """That many of the model's labelled images, repeated where there are fewer."""
    with np.load(_version(arguments) / HOLDOUT, allow_pickle=False) as arrays:
        at = np.arange(rows) % len(arrays["labels"])
        return arrays["images"][at], arrays["labels"][at]


def _version(arguments: argparse.Namespace) -> Path:
    model: Path = arguments.model_repository / arguments.model
    return model / str(versions(model)[-1])


def _alone(arguments: argparse.Namespace, precision: str, rows: int) -> float:
    """Images per second of ONNX Runtime with everything bound on the device."""
    device = "cuda" if arguments.device == "gpu" else "cpu"
    directory = _version(arguments)
    manifest = read_manifest(directory)
    variant = manifest.variant(ONNX_PLATFORM, "fp16" if precision == "fp16" else "fp32")
    if variant is None:
        raise StartupError(f"{directory}: has no {precision} variant")
    config = ServerConfig(device=arguments.device, precision=precision, execution_provider="cuda")
    session = open_session(directory, manifest, variant, runtime_for(config))
    images, labels = _holdout(arguments, rows)
    bindings = [_bound(session, manifest, images, device) for _ in range(INSTANCES)]
    rate = 0.0
    for number in range(1, INSTANCES + 1):
        rate = max(rate, _rate(session, bindings[:number], arguments.seconds / 2) * rows)
    for binding in bindings:
        answers = dict(
            zip(
                (spec.name for spec in manifest.outputs), binding.copy_outputs_to_cpu(), strict=True
            )
        )
        _check(answers["labels"], labels, f"ONNX Runtime alone, {precision}")
    print(f"{precision}, ONNX Runtime alone, {rows} rows: {rate:,.0f} images/s", flush=True)
    return rate


def _bound(
    session: onnxruntime.InferenceSession,
    manifest: Manifest,
    images: NDArray[np.uint8],
    device: str,
) -> onnxruntime.IOBinding:
    binding = session.io_binding()
    value = onnxruntime.OrtValue.ortvalue_from_numpy(images, device, 0)
    binding.bind_ortvalue_input("images", value)
    for spec in manifest.outputs:
        shape, dtype = (len(images), *spec.shape[1:]), DATATYPES[spec.datatype].dtype.type
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)
        binding.bind_ortvalue_output(spec.name, value)
    return binding


def _rate(
    session: onnxruntime.InferenceSession, bindings: list[onnxruntime.IOBinding], seconds: float
) -> float:
    """Runs per second of a thread for each binding, after a second of warming up at most."""

    def count(binding: onnxruntime.IOBinding, limit: float) -> int:
        runs, end = 0, time.perf_counter() + limit
        while time.perf_counter() < end:
            session.run_with_iobinding(binding)
            runs += 1
        return runs

    with ThreadPoolExecutor(len(bindings)) as pool:
        list(pool.map(count, bindings, [min(1.0, seconds)] * len(bindings)))
        start = time.perf_counter()
        runs = sum(pool.map(count, bindings, [seconds] * len(bindings)))
        return runs / (time.perf_counter() - start)


def _check(predicted: NDArray[np.int64], labels: NDArray[np.int64], who: str) -> None:
    share = float((predicted == labels).mean())
    if share < 0.7:
        raise RuntimeError(f"{who}: only {share:.2f} of the labels were right")


def _through_grpc(
    arguments: argparse.Namespace, precision: str, batch: int, alone: float, cuda_graphs: bool
) -> Result:
    images, labels = _holdout(arguments, batch)
    with _server(arguments, precision, batch, cuda_graphs) as address:
        _check(_answer(address, arguments.model, images), labels, f"the server, {precision}")
        load = Load(address, arguments.model, images, arguments.in_flight, arguments.seconds)
        context = multiprocessing.get_context("spawn")
        with context.Pool(arguments.clients) as pool:
            measured = pool.map(drive, [load] * arguments.clients, chunksize=1)
    times = sorted(seconds for each in measured for seconds in each)
    rate = len(times) * batch / arguments.seconds
    return Result(
        precision,
        "CUDA graphs"
        if cuda_graphs
        else "pinned buffers"
        if arguments.device == "gpu"
        else "plain runs",
        batch,
        round(alone, 1),
        round(rate, 1),
        round(rate / alone, 3),
        statistics.median(times),
        times[int(0.99 * (len(times) - 1))],
    )


@contextmanager
def _server(
    arguments: argparse.Namespace, precision: str, batch: int, cuda_graphs: bool
) -> Iterator[str]:
    """The address of a server of its own process, ready."""
    port = reserved_port()
    options = {
        "model-repository": arguments.model_repository,
        "device": arguments.device,
        "execution-provider": "cuda",
        "precision": precision,
        "max-batch-size": batch,
        "batch-buckets": batch,
        "cuda-graphs": str(cuda_graphs).lower(),
        "instance-count": INSTANCES,
        "grpc-port": port,
        "metrics-port": 0,
        "http-port": 0,
        "max-message-bytes": MESSAGE_BYTES,
        "log-level": "warning",
    }
    command = [sys.executable, "-m", "serving"]
    process = subprocess.Popen(
        [*command, *(f"--{name}={value}" for name, value in options.items())]
    )
    try:
        _wait_until_ready(process, f"localhost:{port}")
        yield f"localhost:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str) -> None:
    end = time.monotonic() + READY_TIMEOUT
    with Client(address) as client:
        while not client.ready():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the server did not start; its message is above")
            time.sleep(0.2)


def _request(model: str, images: NDArray[np.uint8]) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[images.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    return request


def _channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(
        address,
        [
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


def _answer(address: str, model: str, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The labels that the server gives."""
    with _channel(address) as channel:
        answer = pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(_request(model, images))
    names = [output.name for output in answer.outputs]
    return np.frombuffer(answer.raw_output_contents[names.index("labels")], np.int64)


def drive(load: Load) -> list[float]:
    """In a client's process: send for so long; seconds of each request that ended in time."""
    request = _request(load.model, load.images)
    start = threading.Barrier(load.in_flight)

    def sender() -> list[float]:
        taken = []
        with _channel(load.address) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            stub.ModelInfer(request)
            start.wait()
            end = time.perf_counter() + load.seconds
            while (sent := time.perf_counter()) < end:
                stub.ModelInfer(request)
                if (answered := time.perf_counter()) <= end:
                    taken.append(answered - sent)
        return taken

    with ThreadPoolExecutor(load.in_flight) as pool:
        parts = [pool.submit(sender) for _ in range(load.in_flight)]
        return [seconds for part in parts for seconds in part.result()]


def _row(result: Result) -> str:
    return (
        f"| {result.precision} | {result.served} | {result.batch} | {result.alone:,.0f} |"
        f" {result.through_grpc:,.0f} | {result.ratio:.2f} | {result.p50 * 1000:.2f} |"
        f" {result.p99 * 1000:.2f} |"
    )


def _gpu() -> str:
    """The GPU's name and driver, as nvidia-smi gives them."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no GPU"


def _write(arguments: argparse.Namespace, results: list[Result]) -> None:
    package = "onnxruntime-gpu" if arguments.device == "gpu" else "onnxruntime"
    machine = describe((package, "grpcio", "protobuf", "numpy"))
    arguments.output.mkdir(parents=True, exist_ok=True)
    facts = {
        "machine": machine,
        "gpu": _gpu(),
        "device": arguments.device,
        "model": arguments.model,
        "clients": arguments.clients,
        "in_flight": arguments.in_flight,
        "seconds": arguments.seconds,
        "target": TARGET,
        "results": [asdict(result) for result in results],
    }
    path = arguments.output / f"{arguments.device}.json"
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    lines = [
        "# ResNet18 through gRPC against ONNX Runtime alone with IO binding, on the same device",
        "",
        f"{_gpu()}; {sentence(machine)}",
        "",
        f"{arguments.clients} client processes on the same machine, {arguments.in_flight} requests"
        f" in flight each, {arguments.seconds:g} s; target {TARGET}.",
        "",
        "| precision | served from | rows | alone, images/s | gRPC, images/s | ratio | p50, ms |"
        " p99, ms |",
        "|---|---|---|---|---|---|---|---|",
        *map(_row, results),
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
