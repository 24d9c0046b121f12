"""The servers that are compared, in processes of their own: ours by precision, and TorchServe."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.parity.runtimes import Contestant, Version, no_gpu
from benchmarks.serving import wire
from benchmarks.serving.process import DidNotStart, free_ports, log_tail, running
from deploy.torchserve.settings import java
from model_repository import ONNX_PLATFORM
from serving.client import Client
from serving.client_channel import TORCHSERVE_SERVICE
from training.export import Answers, Runner

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 120.0  # seconds
TIMEOUT = 60.0  # seconds for one answer
_LOCAL = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Server:
    """One that was started at a precision, or why not; `ask` makes a model's name its runner."""

    runtime: str
    precision: str
    ask: Callable[[str], Runner] | None
    why_not: str = ""

    def contestant(self, version: Version) -> Contestant:
        """It, for one model."""
        runner = self.ask(version.name) if self.ask else None
        return Contestant(self.runtime, self.precision, runner, self.why_not)


def start(
    stack: ExitStack, repository: Path, models: Sequence[Version], torchserve: Path
) -> list[Server]:
    """Start what runs here, until the stack is left; `torchserve` is its environment's directory.

    Raises benchmarks.serving.process.DidNotStart.
    """
    repository = repository.resolve()
    servers = []
    no_cuda = no_gpu()
    for precision, device in (("fp32", "cpu"), ("int8", "cpu"), ("fp32", "gpu"), ("fp16", "gpu")):
        names = [each.name for each in models if each.manifest.variant(ONNX_PLATFORM, precision)]
        why_not = no_cuda if device == "gpu" else ""
        ask = None
        if names and not why_not:
            ours = _ours(repository, names, precision, device)
            ask = partial(_client_runner, stack.enter_context(ours))
        servers.append(Server(f"digits, gRPC, {device.upper()}", precision, ask, why_not))
    return servers + _torchserves(stack, repository, models, torchserve.absolute())


def _torchserves(
    stack: ExitStack, repository: Path, models: Sequence[Version], environment: Path
) -> list[Server]:
    """One server, asked over V2 and over its own protocol."""
    names = "TorchServe, V2 gRPC", "TorchServe, its own gRPC"
    why_not = "" if java() else "there is no java, which TorchServe needs"
    if not (environment / "bin" / "python").exists():
        why_not = f"TorchServe is not installed in {environment.name}"
    if why_not:
        return [Server(name, "fp32", None, why_not) for name in names]
    started = _torchserve(environment, repository, [each.name for each in models])
    address = f"{_LOCAL}:{stack.enter_context(started)}"
    client = stack.enter_context(Client(address, service=TORCHSERVE_SERVICE))
    channel = stack.enter_context(grpc.insecure_channel(address))
    asks = partial(_client_runner, client), partial(_torchserve_runner, channel)
    return [Server(name, "fp32", ask) for name, ask in zip(names, asks, strict=True)]


@contextmanager
def _ours(repository: Path, names: Sequence[str], precision: str, device: str) -> Iterator[Client]:
    """A client of `python -m serving`, once it has loaded the models."""
    port, metrics_port = free_ports(2)
    command = [sys.executable, "-m", "serving", "--model-repository", str(repository)]
    command += ["--model-control-mode", "explicit", "--load-model", ",".join(names)]
    command += ["--precision", precision, "--device", device, "--intra-op-threads", "1"]
    command += ["--grpc-port", str(port), "--metrics-port", str(metrics_port), "--http-port", "0"]
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        directory, environment = Path(temporary), {"PYTHONPATH": str(ROOT)}
        process = stack.enter_context(running(command, environment, directory))
        client = stack.enter_context(Client(f"{_LOCAL}:{port}"))
        _wait(process, directory, lambda: all(client.ready(model=name) for name in names))
        yield client


@contextmanager
def _torchserve(environment: Path, repository: Path, names: Sequence[str]) -> Iterator[int]:
    """The gRPC port of `python -m deploy.torchserve`, once all models have a READY worker."""
    port, management_port, *http = free_ports(5)
    python = [str(environment / "bin" / "python"), "-m"]
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        settings = {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": temporary,
            "TS_GRPC_INFERENCE_PORT": str(port),
            "TS_GRPC_MANAGEMENT_PORT": str(management_port),
        }
        for name, each in zip(("INFERENCE", "MANAGEMENT", "METRICS"), http, strict=True):
            settings[f"TS_{name}_ADDRESS"] = f"http://{_LOCAL}:{each}"
        store = ["--model-store", f"{temporary}/store"]
        command = [*python, "deploy.torchserve", *store, "--models", ",".join(names)]
        command += ["--model-repository", str(repository)]
        directory = Path(temporary)
        process = stack.enter_context(running(command, settings, directory))
        ready = [*python, "deploy.torchserve.ready", *store]
        _wait(process, directory, lambda: _succeeds(ready, {**os.environ, **settings}))
        yield port


def _succeeds(command: Sequence[str], environment: dict[str, str]) -> bool:
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def _wait(process: subprocess.Popen[bytes], directory: Path, is_ready: Callable[[], bool]) -> None:
    """DidNotStart, with the end of its log, when it ends first or takes too long."""
    end = time.monotonic() + START_TIMEOUT
    while not is_ready():
        if process.poll() is not None or time.monotonic() > end:
            raise DidNotStart(f"{process.args!r}:\n{log_tail(directory)}")
        time.sleep(0.1)


def _client_runner(client: Client, model: str) -> Runner:
    def run(images: NDArray[np.uint8]) -> Answers:
        answer = client.classify(images, model, timeout=TIMEOUT)
        indices = [answer.classes.index(label) for label in answer.labels]
        return answer.probabilities, np.array(indices, np.int64)

    return run


def _torchserve_runner(channel: grpc.Channel, model: str) -> Runner:
    """Its own protocol gives the handler's bytes: probabilities, of which the largest is taken."""
    method = channel.unary_unary(wire.TORCHSERVE.infer, bytes, bytes)  # as they are

    def run(images: NDArray[np.uint8]) -> Answers:
        answer = method(wire.TORCHSERVE.encode(model, images), timeout=TIMEOUT)
        probabilities = wire.TORCHSERVE.decode(answer, len(images))
        return probabilities, probabilities.argmax(axis=1)

    return run
