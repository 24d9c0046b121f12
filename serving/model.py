"""Model: one version's manifest and its ONNX Runtime session, from arrays to arrays.

The only module that knows ONNX Runtime. It trusts no file that the manifest does not vouch for.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model_repository import ONNX_PLATFORM, Manifest, TensorSpec, Variant
from serving.errors import ModelLoadError, StartupError

Tensors = dict[str, NDArray[np.generic]]

# ONNX Runtime's type → V2's and NumPy's.
_TYPES: dict[str, tuple[str, str]] = {
    "tensor(bool)": ("BOOL", "bool"),
    "tensor(int8)": ("INT8", "int8"),
    "tensor(int16)": ("INT16", "int16"),
    "tensor(int32)": ("INT32", "int32"),
    "tensor(int64)": ("INT64", "int64"),
    "tensor(uint8)": ("UINT8", "uint8"),
    "tensor(uint16)": ("UINT16", "uint16"),
    "tensor(uint32)": ("UINT32", "uint32"),
    "tensor(uint64)": ("UINT64", "uint64"),
    "tensor(float16)": ("FP16", "float16"),
    "tensor(float)": ("FP32", "float32"),
    "tensor(double)": ("FP64", "float64"),
    "tensor(string)": ("BYTES", "object"),
}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where and how models run; `device` is "cpu" or "gpu", `threads` those within one batch."""

    device: str
    precision: str
    threads: int


class Model:
    """A loaded version, ready to run: verified, checked against its manifest and warmed up.

    Raises ModelLoadError where the file, the session or the first run is not as the manifest says.
    """

    def __init__(self, directory: Path, manifest: Manifest, runtime: Runtime) -> None:
        started = time.monotonic()
        self.manifest = manifest
        self.variant = _choose(manifest, runtime.precision)
        self.device = runtime.device
        path = directory / self.variant.file
        self._session = _session(path, _read_verified(path, self.variant), runtime)
        _check_signature(path, "input", self._session.get_inputs(), manifest.inputs)
        _check_signature(path, "output", self._session.get_outputs(), manifest.outputs)
        self._output_names = [spec.name for spec in manifest.outputs]
        self._warm_up(path)
        self.load_seconds = time.monotonic() - started

    @property
    def batchable(self) -> bool:
        """Requests may share a run: the first dimension is variable throughout."""
        specs = self.manifest.inputs + self.manifest.outputs
        return all(spec.shape[:1] == (-1,) for spec in specs)

    def run(self, inputs: Tensors) -> Tensors:
        """Outputs by name. Thread-safe; raises whatever ONNX Runtime does."""
        outputs = self._session.run(self._output_names, inputs)
        return dict(zip(self._output_names, outputs, strict=True))

    def _warm_up(self, path: Path) -> None:
        """The first run allocates; do it before traffic comes, with one row of zeros."""
        try:
            self.run({tensor.name: _zeros(tensor) for tensor in self._session.get_inputs()})
        except Exception as error:
            raise ModelLoadError(f"{path}: the first run failed: {_first_line(error)}") from None


def choose_device(wanted: str) -> str:
    """The device to use, "cpu" or "gpu"; StartupError for a GPU without CUDA."""
    cuda = _PROVIDERS["gpu"] in onnxruntime.get_available_providers()
    if wanted == "gpu" and not cuda:
        raise StartupError(
            "--device gpu: this onnxruntime has no CUDA; install onnxruntime-gpu in its place"
        )
    if wanted == "cpu" or not cuda:
        return "cpu"
    onnxruntime.preload_dlls()
    return "gpu"


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


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs this process may use: its affinity, and its cgroup's quota (v2, then v1) rounded up."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return cpus
    if not quota.isdigit():  # "max" in v2, -1 in v1: no quota
        return cpus
    return max(1, min(cpus, math.ceil(int(quota) / int(period))))


def _choose(manifest: Manifest, precision: str) -> Variant:
    wanted = ("int8", "fp32") if precision == "int8" else ("fp32",)
    found = (manifest.variant(ONNX_PLATFORM, each) for each in wanted)
    variant = next((each for each in found if each), None)
    if variant is None:
        have = ", ".join(v.precision for v in manifest.variants if v.platform == ONNX_PLATFORM)
        raise ModelLoadError(f"no {precision} ONNX variant; there is {have or 'none'}")
    return variant


def _read_verified(path: Path, variant: Variant) -> bytes:
    """The file's bytes, read once: what was hashed is what is loaded."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelLoadError(f"{path}: {error.strerror}") from None
    actual = hashlib.sha256(content).hexdigest()
    if actual != variant.sha256:
        raise ModelLoadError(f"{path}: sha256 is {actual}, the manifest says {variant.sha256}")
    return content


def _session(path: Path, content: bytes, runtime: Runtime) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning thread burns the CPU that gRPC needs between two batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    provider = _PROVIDERS[runtime.device]
    try:
        session = onnxruntime.InferenceSession(content, options, providers=[provider])
    except Exception as error:
        message = f"{path}: ONNX Runtime refuses it: {_first_line(error)}"
        raise ModelLoadError(message) from None
    if session.get_providers()[0] != provider:
        raise ModelLoadError(
            f"{path}: {provider} failed to start; see ONNX Runtime's message above"
        )
    return session


def _check_signature(
    path: Path, kind: str, tensors: list[onnxruntime.NodeArg], specs: tuple[TensorSpec, ...]
) -> None:
    actual = {t.name: (_TYPES.get(t.type, (t.type,))[0], _shape(t)) for t in tensors}
    expected = {spec.name: (spec.datatype, spec.shape) for spec in specs}
    if actual != expected:
        raise ModelLoadError(f"{path}: {kind}s are {actual}, the manifest says {expected}")


def _shape(tensor: onnxruntime.NodeArg) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in tensor.shape)


def _zeros(tensor: onnxruntime.NodeArg) -> NDArray[np.generic]:
    shape = [1 if size < 0 else size for size in _shape(tensor)]
    dtype = _TYPES[tensor.type][1]
    return np.full(shape, "", dtype) if dtype == "object" else np.zeros(shape, dtype)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
