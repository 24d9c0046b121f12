"""How MLServer, TorchServe and Triton are started for one model, each with its own files.

Each runs in one process for Python, with one thread for the model, on gRPC; metrics are left on,
as ours are, and logs of single requests are off.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving import environments
from benchmarks.serving.models import Model
from benchmarks.serving.process import free_ports
from deploy.torchserve.settings import HANDLER, LOGGING

INSIDE = Path(__file__).parent / "inside"
LARGEST_BATCH = 256  # images


@dataclass(frozen=True, slots=True)
class Tuning:
    """Batching settings: requests (Triton: images) per batch, and seconds to wait for them."""

    batch: int
    delay: float

    def __str__(self) -> str:
        if self.batch == 0:
            return "built in"
        return f"{self.batch} / {self.delay * 1000:g} ms"


BUILT_IN = Tuning(0, 0.0)


@dataclass(frozen=True, slots=True)
class Launch:
    """A command to start, where it will listen, and its environment beside ours."""

    command: list[str]
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    metrics_port: int = 0  # 0: its counters are not read


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server; `launcher` takes the directory of its environment."""

    name: str
    launcher: Callable[[Path], Callable[[Model, Tuning, Path], Launch]]
    candidates: Sequence[Tuning]
    warm_up: float = 2.0  # seconds of load before it is measured


def _mlserver(environment: Path) -> Callable[[Model, Tuning, Path], Launch]:
    def launch(model: Model, tuning: Tuning, directory: Path) -> Launch:
        http_port, grpc_port, metrics_port = free_ports(3)
        settings = {
            "host": "127.0.0.1",
            "http_port": http_port,
            "grpc_port": grpc_port,
            "metrics_port": metrics_port,
            "parallel_workers": 0,  # inference in the server's own process
            "debug": False,
        }
        of_model = {
            "name": model.name,
            "implementation": "mlserver_model.OnnxModel",
            "parameters": {"uri": str(model.onnx)},
            "max_batch_size": tuning.batch,
            "max_batch_time": tuning.delay,
        }
        (directory / "settings.json").write_text(json.dumps(settings))
        (directory / "model-settings.json").write_text(json.dumps(of_model))
        command = [str(environment / "bin" / "mlserver"), "start", str(directory)]
        return Launch(command, grpc_port, {"PYTHONPATH": str(INSIDE)})

    return launch


def _torchserve(environment: Path) -> Callable[[Model, Tuning, Path], Launch]:
    def launch(model: Model, tuning: Tuning, directory: Path) -> Launch:
        _archive(environment, model, directory)
        names = ("inference_address", "management_address", "metrics_address")
        *http_ports, grpc_port, management_port = free_ports(5)
        configured = {
            "minWorkers": 1,
            "maxWorkers": 1,
            "batchSize": tuning.batch,
            "maxBatchDelay": round(tuning.delay * 1000),
            "marName": f"{model.name}.mar",
        }
        lines = [
            *(f"{n}=http://127.0.0.1:{p}" for n, p in zip(names, http_ports, strict=True)),
            f"grpc_inference_port={grpc_port}",
            f"grpc_management_port={management_port}",
            "job_queue_size=10000",
            "install_py_dep_per_model=false",
            f"load_models={model.name}.mar",
            "models=" + json.dumps({model.name: {"1.0": configured}}),
        ]
        (directory / "config.properties").write_text("\n".join(lines) + "\n")
        command = [str(environment / "bin" / "torchserve"), "--start", "--foreground", "--ncs"]
        command += ["--disable-token-auth", "--model-store", str(directory)]
        command += ["--ts-config", "config.properties", "--log-config", str(LOGGING)]
        path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return Launch(command, grpc_port, {"PATH": path, "TEMP": str(directory)})

    return launch


def _archive(environment: Path, model: Model, directory: Path) -> None:
    command = [str(environment / "bin" / "torch-model-archiver"), "--force"]
    command += ["--model-name", model.name, "--version", "1.0", "--export-path", str(directory)]
    command += ["--serialized-file", str(model.torchscript)]
    command += ["--handler", str(HANDLER)]
    subprocess.run(command, check=True, capture_output=True)


def _triton(environment: Path) -> Callable[[Model, Tuning, Path], Launch]:
    def launch(model: Model, tuning: Tuning, directory: Path) -> Launch:
        site = environments.site_packages(environment)
        server = site / "pytriton" / "tritonserver"
        _triton_repository(site, model, tuning, directory / "repository")
        grpc_port, http_port, metrics_port = free_ports(3)
        command = [str(server / "bin" / "tritonserver")]
        command += ["--model-repository", str(directory / "repository")]
        command += ["--backend-directory", str(server / "backends")]
        command += ["--grpc-address", "127.0.0.1", "--grpc-port", str(grpc_port)]
        command += ["--http-address", "127.0.0.1", "--http-port", str(http_port)]
        command += ["--metrics-port", str(metrics_port)]
        libraries = [site / "nvidia_pytriton.libs", environments.library_directory(environment)]
        path = os.pathsep.join(map(str, libraries))
        return Launch(command, grpc_port, {"LD_LIBRARY_PATH": path})

    return launch


def _triton_repository(site: Path, model: Model, tuning: Tuning, directory: Path) -> None:
    version = directory / model.name / "1"
    version.mkdir(parents=True)
    # The stub embeds a Python that reads neither PYTHONPATH nor the environment's own packages.
    (version / "model.py").write_text(
        f"import sys\nsys.path[:0] = [{str(site)!r}, {str(INSIDE)!r}]\n"
        "from triton_model import TritonPythonModel\n"
    )
    batching = ""
    if tuning.delay:
        microseconds = round(tuning.delay * 1e6)
        batching = (
            f"preferred_batch_size: [{tuning.batch}] max_queue_delay_microseconds: {microseconds}"
        )
    config = _TRITON_CONFIG.format(
        name=model.name,
        batch=LARGEST_BATCH if tuning.delay else max(tuning.batch, 1),
        classes=model.expected.shape[1],
        batching=batching,
        onnx=model.onnx,
    )
    (directory / model.name / "config.pbtxt").write_text(config)


_TRITON_CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: {batch}
input [ {{ name: "images" data_type: TYPE_UINT8 dims: [28, 28] }} ]
output [
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [{classes}] }},
  {{ name: "labels" data_type: TYPE_INT64 dims: [1] reshape {{ shape: [] }} }}
]
dynamic_batching {{ {batching} }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
parameters {{ key: "onnx" value {{ string_value: "{onnx}" }} }}
"""

TRITON = Peer(
    "triton",
    _triton,
    (Tuning(LARGEST_BATCH, 0.0), Tuning(32, 0.0005), Tuning(64, 0.001), Tuning(64, 0.002)),
)
MLSERVER = Peer(
    "mlserver",
    _mlserver,
    (Tuning(64, 0.005), Tuning(64, 0.02), Tuning(32, 0.005), Tuning(32, 0.001), Tuning(0, 0.0)),
)
TORCHSERVE = Peer(
    "torchserve",
    _torchserve,
    (Tuning(32, 0.005), Tuning(8, 0.001)),
    warm_up=45.0,  # its JVM compiles for that long, and is five times faster after
)
