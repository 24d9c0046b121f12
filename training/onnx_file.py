"""A foreign ONNX file: read whole, checked, and proven to run, before it is published.

Owns what can be known of a model from its file alone: that it is valid, its V2 signature, and
that ONNX Runtime answers. Knows nothing of labels, holdouts or the repository.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx.external_data_helper import (
    ExternalDataInfo,
    load_external_data_for_model,
    uses_external_data,
)

from model_repository import TensorSpec

Array = NDArray[np.generic]
Arrays = dict[str, Array]

MAX_BYTES = onnx.checker.MAXIMUM_PROTOBUF  # of one protobuf message

# ONNX Runtime's type → V2's and NumPy's. What is not here, no V2 client could send or read.
DATATYPES: dict[str, tuple[str, str]] = {
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
DTYPES = {datatype: np.dtype(dtype) for datatype, dtype in DATATYPES.values()}


class OnnxError(Exception):
    """A model file that cannot be published; the message is one line and says why."""


@dataclass(frozen=True, slots=True)
class Runnable:
    """A model as ONNX Runtime loaded it, and its signature.

    `widths` is the last dimension of every output, as answered where it is declared variable; a
    one-dimensional output of variable length has none, that is its number of rows.
    """

    session: onnxruntime.InferenceSession
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    widths: dict[str, int]

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs by name; OnnxError where ONNX Runtime fails."""
        return _run(self.session, [spec.name for spec in self.outputs], inputs)


def read_model(path: Path) -> onnx.ModelProto:
    """The model with all its weights inside, valid, every output's shape declared; OnnxError."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise OnnxError("is not a regular file")
        if found.st_size > MAX_BYTES:
            raise _too_large(found.st_size)
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
        if not model.HasField("graph"):
            raise OnnxError("is not an ONNX model")
        _require_signature(model.graph)
        _bring_in_external_data(model, path.parent)
        _declare_output_shapes(model)
        onnx.checker.check_model(model, full_check=True)
    except OnnxError:
        raise
    except OSError as error:
        raise OnnxError(f"cannot be read: {error.strerror or error}") from None
    except Exception as error:  # protobuf's, the checker's and the inference's have no common class
        raise OnnxError(f"is not a valid ONNX model: {_first_line(error)}") from None
    return model


def load(path: Path) -> Runnable:
    """The model in ONNX Runtime on the CPU, after one run on zeros.

    OnnxError where it does not run, where an output is not as declared, or has no V2 datatype.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what matters is raised
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise OnnxError(f"ONNX Runtime refuses it: {_first_line(error)}") from None
    inputs = tuple(_spec("input", tensor) for tensor in session.get_inputs())
    outputs = tuple(_spec("output", tensor) for tensor in session.get_outputs())
    return Runnable(session, inputs, outputs, _widths(session, inputs, outputs))


def fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    """Whether an array's shape is one that the declared shape, with -1 for any size, allows."""
    return len(shape) == len(declared) and all(
        wanted in (-1, size) for size, wanted in zip(shape, declared, strict=True)
    )


def _widths(
    session: onnxruntime.InferenceSession,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> dict[str, int]:
    zeros = {spec.name: _zeros(spec) for spec in inputs}
    answers = _run(session, [spec.name for spec in outputs], zeros)
    for spec in outputs:
        shape = answers[spec.name].shape
        if not fits(shape, spec.shape):
            given, declared = list(shape), list(spec.shape)
            raise OnnxError(f"output {spec.name!r} has shape {given}, declared is {declared}")
    wide = [spec.name for spec in outputs if spec.shape and spec.shape != (-1,)]
    return {name: answers[name].shape[-1] for name in wide}


def _run(session: onnxruntime.InferenceSession, names: list[str], inputs: Arrays) -> Arrays:
    try:
        return dict(zip(names, session.run(names, inputs), strict=True))
    except Exception as error:  # its exceptions have no common class of their own
        raise OnnxError(f"ONNX Runtime cannot run it: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    """What a runtime says first of an error; the rest is its context."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _require_signature(graph: onnx.GraphProto) -> None:
    constants = {tensor.name for tensor in graph.initializer}  # also inputs, before IR version 4
    inputs = [value.name for value in graph.input if value.name not in constants]
    for kind, names in (("input", inputs), ("output", [value.name for value in graph.output])):
        if not names:
            raise OnnxError(f"has no {kind}s")
        if not all(names):
            raise OnnxError(f"{kind} {names.index('')} has no name")
        if len(set(names)) != len(names):
            raise OnnxError(f"two {kind}s have the same name")


def _bring_in_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Read the weights that lie in files of the model's folder; onnx refuses any outside it."""
    external = [tensor for tensor in _tensors(model.graph) if uses_external_data(tensor)]
    total = model.ByteSize() + sum(_external_bytes(tensor, folder) for tensor in external)
    if total > MAX_BYTES:
        raise _too_large(total)
    load_external_data_for_model(model, str(folder))


def _external_bytes(tensor: onnx.TensorProto, folder: Path) -> int:
    info = ExternalDataInfo(tensor)
    path = folder / info.location
    return info.length or (path.stat().st_size if path.is_file() else 0)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph and of the graphs within its nodes."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in ((attribute.g,) if attribute.HasField("g") else ()) + tuple(attribute.graphs):
            yield from _tensors(inner)


def _declare_output_shapes(model: onnx.ModelProto) -> None:
    """Write what follows for the outputs into the file, so that every reader sees one signature."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            if value.type.HasField("tensor_type") and not tensor.HasField("shape"):
                raise OnnxError(f"{kind} {value.name!r} declares no shape, not even its rank")


def _spec(kind: str, tensor: onnxruntime.NodeArg) -> TensorSpec:
    if tensor.type not in DATATYPES:
        raise OnnxError(f"{kind} {tensor.name!r} is {tensor.type}, for which V2 has no datatype")
    shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    return TensorSpec(tensor.name, DATATYPES[tensor.type][0], shape)


def _zeros(spec: TensorSpec) -> Array:
    shape = [1 if size < 0 else size for size in spec.shape]
    dtype = DTYPES[spec.datatype]
    return np.full(shape, "", dtype) if spec.datatype == "BYTES" else np.zeros(shape, dtype)


def _too_large(size: int) -> OnnxError:
    return OnnxError(
        f"takes {size:,} bytes with its weights; a version holds one file of at most"
        f" {MAX_BYTES:,}, protobuf's limit"
    )
