"""Running a session over buffers of fixed address: pinned host memory, and CUDA graphs.

Used on a GPU, for models whose tensors have a variable number of rows and no other variable size.
"""

from __future__ import annotations

import ctypes
import queue
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model_repository import Manifest, TensorSpec
from serving.datatypes import DATATYPES
from serving.session import Tensors

Allocate = Callable[[tuple[int, ...], np.dtype[np.generic]], NDArray[np.generic]]

_PORTABLE = 1  # cudaHostAllocPortable: pinned for every CUDA context of the process


def bindable(manifest: Manifest) -> bool:
    """Whether the buffers' sizes follow from the number of rows, and hold no strings."""
    return all(
        spec.shape[:1] == (-1,) and min(spec.shape[1:], default=0) >= 0 and spec.datatype != "BYTES"
        for spec in manifest.inputs + manifest.outputs
    )


def input_buffers(
    manifest: Manifest, rows: int, instances: int, allocate: Allocate
) -> tuple[Tensors, ...]:
    """For each instance a set of arrays for the inputs of up to so many rows, for who stacks them.

    From pinned memory the GPU reads and writes by itself; from other memory the driver copies
    through a pinned buffer of its own.
    """
    return tuple(_buffers(manifest.inputs, rows, allocate) for _ in range(instances))


class HostBuffers:
    """Outputs of one run at a time, in host memory that `allocate` gives out."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        manifest: Manifest,
        rows: int,
        allocate: Allocate,
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._names = [spec.name for spec in manifest.inputs]
        self._outputs = _buffers(manifest.outputs, rows, allocate)

    def run(self, inputs: Tensors, rows: int) -> Tensors:
        """The outputs, as arrays of their own; `rows` is at most that of the buffers. Inputs are
        read where they lie, which is best `input_buffers`."""
        read = {name: np.ascontiguousarray(inputs[name]) for name in self._names}
        for name, array in read.items():
            # Binding is what copies to the device, so each run binds anew.
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, buffer in self._outputs.items():
            view = buffer[:rows]
            self._binding.bind_output(name, "cpu", 0, view.dtype, view.shape, view.ctypes.data)
        self._session.run_with_iobinding(self._binding)
        return {name: buffer[:rows].copy() for name, buffer in self._outputs.items()}


class HostBound:
    """Runs a session over host memory, with a set of outputs per instance; thread-safe."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        manifest: Manifest,
        rows: int,
        instances: int,
        allocate: Allocate,
    ) -> None:
        self._free: queue.SimpleQueue[HostBuffers] = queue.SimpleQueue()
        for _ in range(instances):
            self._free.put(HostBuffers(session, manifest, rows, allocate))

    def run(self, inputs: Tensors) -> Tensors:
        """Wait for a free set of outputs and run."""
        buffers = self._free.get()
        try:
            return buffers.run(inputs, len(next(iter(inputs.values()))))
        finally:
            self._free.put(buffers)


class GraphBound:
    """Replays one CUDA graph per bucket, captured when the bucket first runs; thread-safe.

    ONNX Runtime keeps captured graphs per thread and forbids concurrent runs while it uses them:
    all runs are on one thread of our own. A graph reads and writes the device addresses that it
    was captured with, so each bucket has tensors of its own on the device.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        manifest: Manifest,
        buckets: tuple[int, ...],
        device: str = "cuda",
    ) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cuda-graph")
        self._graphs = {
            rows: _Graph(session, manifest, rows, str(number), device)
            for number, rows in enumerate(buckets, start=1)
        }

    def run(self, inputs: Tensors) -> Tensors:
        """The outputs; ValueError for a number of rows that is no bucket."""
        rows = len(next(iter(inputs.values())))
        if rows not in self._graphs:
            raise ValueError(f"{rows} rows: CUDA graphs were captured for {sorted(self._graphs)}")
        return self._thread.submit(self._graphs[rows].run, inputs).result()


class _Graph:
    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        manifest: Manifest,
        rows: int,
        number: str,
        device: str,
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._inputs = _on_device(manifest.inputs, rows, device)
        self._outputs = _on_device(manifest.outputs, rows, device)
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", number)

    def run(self, inputs: Tensors) -> Tensors:
        for name, value in self._inputs.items():
            value.update_inplace(inputs[name])
        self._session.run_with_iobinding(self._binding, self._options)
        # On a CPU, where tests run this, `numpy` is a view of what the next run overwrites.
        return {name: np.array(value.numpy()) for name, value in self._outputs.items()}


def pinned() -> Allocate:
    """Allocates page-locked host memory with the CUDA runtime that ONNX Runtime has loaded.

    OSError where there is none.
    """
    runtime = ctypes.CDLL(f"libcudart.so.{onnxruntime.cuda_version.split('.')[0]}")
    runtime.cudaHostAlloc.argtypes = [
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_size_t,
        ctypes.c_uint,
    ]
    runtime.cudaFreeHost.argtypes = [ctypes.c_void_p]

    def allocate(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        size = max(1, int(np.prod(shape)) * dtype.itemsize)
        address = ctypes.c_void_p()
        status = runtime.cudaHostAlloc(ctypes.byref(address), size, _PORTABLE)
        if status != 0:
            raise MemoryError(f"cudaHostAlloc of {size} bytes failed with CUDA error {status}")
        memory = (ctypes.c_byte * size).from_address(address.value or 0)
        # An array made of `memory` keeps it alive; the pages go when the last one has gone.
        weakref.finalize(memory, runtime.cudaFreeHost, address)
        flat: NDArray[np.generic] = np.frombuffer(memoryview(memory), dtype, int(np.prod(shape)))
        return flat.reshape(shape)

    return allocate


def _buffers(
    specs: tuple[TensorSpec, ...], rows: int, allocate: Allocate
) -> dict[str, NDArray[np.generic]]:
    return {
        spec.name: allocate((rows, *spec.shape[1:]), DATATYPES[spec.datatype].dtype)
        for spec in specs
    }


def _on_device(
    specs: tuple[TensorSpec, ...], rows: int, device: str
) -> dict[str, onnxruntime.OrtValue]:
    return {
        spec.name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            (rows, *spec.shape[1:]), DATATYPES[spec.datatype].dtype.type, device, 0
        )
        for spec in specs
    }
