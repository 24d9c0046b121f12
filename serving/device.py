"""Runtime: the device, the execution provider and the threads that models run with.

Decided once at the start, from the configuration and from what really starts on this machine:
a provider that ONNX Runtime merely lists may still lack its libraries, its driver or its device.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import io
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime

from serving.config import ServerConfig
from serving.cpu import threads_for
from serving.errors import StartupError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

# y = Relu(x) for one float: the smallest model that shows whether a provider starts.
PROBE_MODEL = bytes.fromhex(
    "08093a370a0c0a0178120179220452656c75120570726f62655a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a001011"
)
_ARENAS = {"same_as_requested": "kSameAsRequested", "next_power_of_two": "kNextPowerOfTwo"}


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where and how models run; what is not given is as on a CPU."""

    device: str  # "cpu" or "gpu"
    precision: str  # ServerConfig's
    threads: int  # within one batch
    provider: str = CPU
    instances: int = 1
    max_batch_size: int = 64
    buckets: tuple[int, ...] = ()  # ascending
    holdout_tolerance: float = 0.01
    cuda_graphs: bool = False
    gpu_memory_limit: int = 0  # bytes; 0 for none
    arena: str = "same_as_requested"
    why: str = field(default="", compare=False)  # what was taken, and why, for the log

    @property
    def warm_up_rows(self) -> tuple[int, ...]:
        """The batch sizes that a model runs once before it takes traffic."""
        return self.buckets or tuple(sorted({1, self.max_batch_size}))


def runtime_for(config: ServerConfig) -> Runtime:
    """The runtime that the configuration asks for; StartupError where this machine lacks it."""
    check_distributions(installed_distributions())
    device, why = _device(config.device)
    provider = CPU if device == "cpu" else _gpu_provider(config)
    threads = config.intra_op_threads or threads_for(config.workers)
    return Runtime(
        device=device,
        precision=config.precision,
        threads=threads,
        provider=provider,
        instances=config.instance_count,
        max_batch_size=config.max_batch_size,
        buckets=config.buckets,
        holdout_tolerance=config.holdout_tolerance,
        cuda_graphs=config.cuda_graphs and device == "gpu",
        gpu_memory_limit=config.gpu_memory_limit,
        arena=config.gpu_arena,
        why=f"device {device}: {provider}, {threads} threads{why}",
    )


def check_distributions(installed: Collection[str]) -> None:
    """StartupError when both ONNX Runtimes are installed: they overwrite each other's files."""
    if {"onnxruntime", "onnxruntime-gpu"} <= set(installed):
        raise StartupError(
            "onnxruntime and onnxruntime-gpu are both installed and break each other: "
            "uninstall both, then install one"
        )


def installed_distributions() -> set[str]:
    """Names of the installed distributions, as `check_distributions` wants them."""
    names = (item.metadata["Name"] for item in importlib.metadata.distributions())
    return {name.lower().replace("_", "-") for name in names if name}


def why_no_cuda() -> str | None:
    """What keeps CUDA from running models here; None when it does."""
    if not onnxruntime.cuda_version:
        return "this onnxruntime has no CUDA; install onnxruntime-gpu in its place"
    if missing := _preload_cuda():
        return (
            f"CUDA's libraries are not all there ({', '.join(missing)}): "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    if starts(CUDA):
        return None
    return "CUDA does not start: is there a GPU, and a driver that is new enough?"


def starts(provider: str) -> bool:
    """Whether a session really gets the provider; ONNX Runtime logs why it does not."""
    if provider not in onnxruntime.get_available_providers():
        return False
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            PROBE_MODEL, options, providers=[provider], enable_fallback=0
        )
    except Exception:  # the providers' errors have no common class
        return False
    return bool(session.get_providers()[0] == provider)


def provider_options(
    runtime: Runtime, precision: str, name: str
) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's providers, in order, for one file: `precision` is its, `name` its cache's."""
    if runtime.provider == CPU:
        return [(CPU, {})]
    cuda = {
        "device_id": "0",
        "arena_extend_strategy": _ARENAS[runtime.arena],
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": str(int(runtime.precision == "tf32")),
        "enable_cuda_graph": str(int(runtime.cuda_graphs)),
    }
    if runtime.gpu_memory_limit:
        cuda["gpu_mem_limit"] = str(runtime.gpu_memory_limit)
    if runtime.provider == CUDA:
        return [(CUDA, cuda)]
    cache = str(Path.home() / ".cache" / "digits" / "tensorrt" / name)
    tensorrt = {
        "device_id": "0",
        "trt_fp16_enable": str(int(precision == "fp16")),
        # Building an engine takes from seconds to minutes.
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": cache,
    }
    return [(TENSORRT, tensorrt), (CUDA, cuda)]


def _device(wanted: str) -> tuple[str, str]:
    """The device, and why `auto` took no GPU."""
    if wanted == "cpu":
        return "cpu", ""
    fault = why_no_cuda()
    if fault and wanted == "gpu":
        raise StartupError(f"--device gpu: {fault}")
    return ("cpu", f"; no GPU, as {fault}") if fault else ("gpu", "")


def _gpu_provider(config: ServerConfig) -> str:
    """TensorRT has no switch for TensorFloat-32, so that `auto` takes it only where fp32 was not
    asked for; and it captures one CUDA graph, not one per bucket."""
    if config.execution_provider == "cuda":
        return CUDA
    fault = why_no_tensorrt()
    if config.execution_provider == "tensorrt":
        if config.cuda_graphs:
            raise StartupError("--cuda-graphs needs --execution-provider cuda")
        if fault:
            raise StartupError(f"--execution-provider tensorrt: {fault}")
        return TENSORRT
    suits = config.precision in ("tf32", "fp16") and not config.cuda_graphs
    return TENSORRT if suits and not fault else CUDA


def why_no_tensorrt() -> str | None:
    """What keeps TensorRT from running models here, where CUDA does; None when it does."""
    if TENSORRT not in onnxruntime.get_available_providers():
        return "this onnxruntime has no TensorRT"
    _preload_tensorrt()
    try:
        ctypes.CDLL("libnvinfer.so.10")
    except OSError as error:
        return f"TensorRT is not installed ({error}): pip install tensorrt-cu13"
    return None if starts(TENSORRT) else "TensorRT does not start"


def _preload_cuda() -> list[str]:
    """Load CUDA's and cuDNN's libraries from NVIDIA's packages; what ONNX Runtime found missing.

    It prints its complaints. Builds that keep CUDA in a plugin only now list it as a provider, and
    warn where they cannot.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnxruntime.preload_dlls()
    found = re.findall(r"^Failed to load (.+?): ", printed.getvalue(), re.MULTILINE)
    return sorted({Path(library).name for library in found})


def _preload_tensorrt() -> None:
    """Load TensorRT's libraries where pip put them, which the loader does not search."""
    spec = importlib.util.find_spec("tensorrt_libs")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(place).glob("libnvinfer*.so.10")):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
