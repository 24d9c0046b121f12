"""V2 tensors ↔ arrays: the datatype table, raw and typed contents, and every check of a request.

Text: the elements of a BYTES tensor are UTF-8, `str` in the arrays, as ONNX's strings are.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_repository import TensorSpec
from serving import classification
from serving.errors import InvalidInput
from serving.parameters import classification as classes_of
from serving.pb import inference_pb2 as pb

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Datatype:
    """A V2 datatype: its array type, and the field that holds it in typed contents, if any."""

    name: str
    dtype: np.dtype[np.generic]
    contents: str | None


DATATYPES: dict[str, Datatype] = {
    name: Datatype(name, np.dtype(dtype), contents)
    for name, dtype, contents in [
        ("BOOL", "bool", "bool_contents"),
        ("INT8", "int8", "int_contents"),
        ("INT16", "<i2", "int_contents"),
        ("INT32", "<i4", "int_contents"),
        ("INT64", "<i8", "int64_contents"),
        ("UINT8", "uint8", "uint_contents"),
        ("UINT16", "<u2", "uint_contents"),
        ("UINT32", "<u4", "uint_contents"),
        ("UINT64", "<u8", "uint64_contents"),
        ("FP16", "<f2", None),
        ("FP32", "<f4", "fp32_contents"),
        ("FP64", "<f8", "fp64_contents"),
        ("BYTES", "object", "bytes_contents"),
    ]
}
_LENGTH = struct.Struct("<I")  # before each element of a raw BYTES tensor


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output to answer with: as it is, or as its `classes` top classes."""

    spec: TensorSpec
    classes: int = 0


def decode_inputs(request: pb.ModelInferRequest, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The request's inputs by name; raw ones are read-only views of the request's own bytes.

    Raises InvalidInput, naming the tensor, unless they are exactly what the specs say.
    """
    tensors = list(request.inputs)
    if [tensor.name for tensor in tensors] != [spec.name for spec in specs]:
        specs = _in_order_of(tensors, specs)
    raw = _raw_contents(request, tensors)
    arrays = {}
    for index, (tensor, spec) in enumerate(zip(tensors, specs, strict=True)):
        shape = _check_signature(tensor, spec)
        kind = DATATYPES[spec.datatype]
        if raw is None:
            arrays[spec.name] = _decode_typed(tensor, kind, shape)
        else:
            arrays[spec.name] = decode_raw(spec.name, kind, shape, raw[index])
    return arrays


def requested_outputs(
    request: pb.ModelInferRequest, specs: tuple[TensorSpec, ...]
) -> Sequence[RequestedOutput]:
    """What the request asks for, in its order; all the outputs where it names none.

    Raises InvalidInput, naming the output, for one that cannot be given as it is asked for.
    """
    outputs = request.outputs
    if not outputs:
        return _as_they_are(specs)
    by_name = {spec.name: spec for spec in specs}
    for output in outputs:
        if output.name not in by_name:
            raise InvalidInput(f"output {output.name!r} is unknown; there is {_names(by_name)}")
    return [_requested(output, by_name[output.name]) for output in outputs]


def encode_outputs(
    response: pb.ModelInferResponse,
    outputs: dict[str, Array],
    requested: Iterable[RequestedOutput],
    labels: Sequence[str] = (),
    batched: bool = True,
) -> None:
    """Append the requested outputs to the response, as raw contents.

    `labels` name the classes where top classes are asked for; `batched` says that the first
    dimension is the rows', so that each row has its own.
    """
    described, contents = [], []
    for output in requested:
        name, datatype, array = output.spec.name, output.spec.datatype, outputs[output.spec.name]
        if output.classes:
            array = classification.top_classes(array, output.classes, labels, batched)
            datatype = "BYTES"
        described.append(_described(name, datatype, array.shape))
        contents.append(encode_raw(DATATYPES[datatype], array))
    response.outputs.extend(described)
    response.raw_output_contents.extend(contents)


def decode_raw(name: str, kind: Datatype, shape: tuple[int, ...], data: bytes) -> Array:
    """Array of one tensor's raw bytes; `name` is for the message of InvalidInput."""
    if kind.name == "BYTES":
        return _text_array(name, _split_elements(name, data), shape)
    expected = math.prod(shape) * kind.dtype.itemsize
    if len(data) != expected:
        raise InvalidInput(
            f"input {name!r}: {kind.name} {list(shape)} takes {expected} bytes, got {len(data)}"
        )
    array = np.frombuffer(data, kind.dtype).reshape(shape)
    if kind.name == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
        raise InvalidInput(f"input {name!r}: BOOL takes bytes 0 and 1 only")
    return array


def encode_raw(kind: Datatype, array: Array) -> bytes:
    """The tensor's elements in row-major order, little-endian."""
    if kind.name != "BYTES":
        return array.astype(kind.dtype, copy=False).tobytes()
    elements = [str(element).encode() for element in array.flat]
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


@functools.lru_cache(maxsize=4096)
def _described(
    name: str, datatype: str, shape: tuple[int, ...]
) -> pb.ModelInferResponse.InferOutputTensor:
    """Kept, as it is twice as fast to copy as to make, and few rows and outputs come by."""
    return pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)


@functools.lru_cache
def _as_they_are(specs: tuple[TensorSpec, ...]) -> tuple[RequestedOutput, ...]:
    return tuple(RequestedOutput(spec) for spec in specs)


def _requested(
    output: pb.ModelInferRequest.InferRequestedOutputTensor, spec: TensorSpec
) -> RequestedOutput:
    if "shared_memory_region" in output.parameters:
        raise InvalidInput(f"output {output.name!r}: shared memory is not supported")
    classes = classes_of(output)
    if classes and spec.datatype in classification.UNORDERED:
        raise InvalidInput(f"output {output.name!r}: {spec.datatype} has no classification")
    return RequestedOutput(spec, classes)


def _in_order_of(
    tensors: Sequence[pb.ModelInferRequest.InferInputTensor], specs: Sequence[TensorSpec]
) -> list[TensorSpec]:
    by_name = {spec.name: spec for spec in specs}
    given = [tensor.name for tensor in tensors]
    for name in given:
        if name not in by_name:
            raise InvalidInput(f"input {name!r} is unknown; expected {_names(by_name)}")
        if given.count(name) > 1:
            raise InvalidInput(f"input {name!r} is given twice")
    for name in by_name:
        if name not in given:
            raise InvalidInput(f"input {name!r} is missing")
    return [by_name[name] for name in given]


def _raw_contents(
    request: pb.ModelInferRequest, tensors: Sequence[pb.ModelInferRequest.InferInputTensor]
) -> Sequence[bytes] | None:
    raw = request.raw_input_contents
    if len(raw) != len(tensors):
        for tensor in tensors:
            if "shared_memory_region" in tensor.parameters:
                raise InvalidInput(f"input {tensor.name!r}: shared memory is not supported")
        if not raw:
            return None
        raise InvalidInput(f"raw_input_contents has {len(raw)} entries for {len(tensors)} inputs")
    for tensor in tensors:
        if tensor.HasField("contents"):
            raise InvalidInput(f"input {tensor.name!r} has contents beside raw_input_contents")
    return raw


def _check_signature(
    tensor: pb.ModelInferRequest.InferInputTensor, spec: TensorSpec
) -> tuple[int, ...]:
    """The tensor's shape, if datatype and shape are as the spec says."""
    if tensor.datatype != spec.datatype:
        raise InvalidInput(
            f"input {spec.name!r}: expected datatype {spec.datatype}, got {tensor.datatype!r}"
        )
    shape = tuple(tensor.shape)
    if len(shape) == len(spec.shape):
        for size, wanted in zip(shape, spec.shape, strict=True):
            if size < 1 or (size != wanted and wanted != -1):
                break
        else:
            return shape
    raise InvalidInput(f"input {spec.name!r}: expected shape {list(spec.shape)}, got {list(shape)}")


def _decode_typed(
    tensor: pb.ModelInferRequest.InferInputTensor, kind: Datatype, shape: tuple[int, ...]
) -> Array:
    if kind.contents is None:
        raise InvalidInput(f"input {tensor.name!r}: {kind.name} takes raw_input_contents only")
    values = getattr(tensor.contents, kind.contents)
    if len(values) != math.prod(shape):
        raise InvalidInput(
            f"input {tensor.name!r}: shape {list(shape)} takes {math.prod(shape)} elements "
            f"in {kind.contents}, got {len(values)}"
        )
    if kind.name == "BYTES":
        return _text_array(tensor.name, values, shape)
    given = np.array(values)
    array = given.astype(kind.dtype)
    if kind.dtype.kind in "iu" and not np.array_equal(given, array):
        raise InvalidInput(
            f"input {tensor.name!r}: {kind.contents} holds a value beyond {kind.name}"
        )
    return array.reshape(shape)


def _split_elements(name: str, data: bytes) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + _LENGTH.size
        if start > len(data):
            raise InvalidInput(f"input {name!r}: BYTES element {len(elements)} has no length")
        at = start + _LENGTH.unpack_from(data, at)[0]
        if at > len(data):
            raise InvalidInput(
                f"input {name!r}: BYTES element {len(elements)} takes {at - start} bytes, "
                f"got {len(data) - start}"
            )
        elements.append(data[start:at])
    return elements


def _text_array(name: str, elements: Sequence[bytes], shape: tuple[int, ...]) -> Array:
    if len(elements) != math.prod(shape):
        raise InvalidInput(
            f"input {name!r}: BYTES {list(shape)} takes {math.prod(shape)} elements, "
            f"got {len(elements)}"
        )
    try:
        texts = [element.decode() for element in elements]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {name!r}: BYTES elements must be UTF-8: {error}") from None
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(shape)


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
