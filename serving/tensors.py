"""V2 tensors ↔ arrays: the datatype table, raw and typed contents, and every check of a request.

Text: the elements of a BYTES tensor are UTF-8, `str` in the arrays, as ONNX's strings are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_repository import TensorSpec
from serving.errors import InvalidInput
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


def decode_inputs(request: pb.ModelInferRequest, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The request's inputs by name; raw ones are read-only views of the request's own bytes.

    Raises InvalidInput, naming the tensor, unless they are exactly what the specs say.
    """
    _check_names(request, specs)
    raw = _raw_contents(request)
    by_name = {spec.name: spec for spec in specs}
    arrays = {}
    for index, tensor in enumerate(request.inputs):
        kind, shape = _check_signature(tensor, by_name[tensor.name])
        if raw is None:
            arrays[tensor.name] = _decode_typed(tensor, kind, shape)
        else:
            arrays[tensor.name] = decode_raw(tensor.name, kind, shape, raw[index])
    return arrays


def encode_outputs(
    response: pb.ModelInferResponse, outputs: dict[str, Array], specs: Iterable[TensorSpec]
) -> None:
    """Append the outputs of the specs to the response, as raw contents."""
    for spec in specs:
        array = outputs[spec.name]
        response.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        response.raw_output_contents.append(encode_raw(DATATYPES[spec.datatype], array))


def requested_outputs(
    request: pb.ModelInferRequest, specs: Sequence[TensorSpec]
) -> Sequence[TensorSpec]:
    """The specs that the request asks for, in its order; all where it names none."""
    by_name = {spec.name: spec for spec in specs}
    for output in request.outputs:
        if output.name not in by_name:
            raise InvalidInput(f"output {output.name!r} is unknown; there is {_names(by_name)}")
        for parameter in ("classification", "shared_memory_region"):
            if parameter in output.parameters:
                raise InvalidInput(f"output {output.name!r}: {parameter} is not supported")
    return [by_name[output.name] for output in request.outputs] or specs


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


def _check_names(request: pb.ModelInferRequest, specs: Sequence[TensorSpec]) -> None:
    expected = [spec.name for spec in specs]
    given = [tensor.name for tensor in request.inputs]
    for name in given:
        if name not in expected:
            raise InvalidInput(f"input {name!r} is unknown; expected {_names(expected)}")
        if given.count(name) > 1:
            raise InvalidInput(f"input {name!r} is given twice")
    for name in expected:
        if name not in given:
            raise InvalidInput(f"input {name!r} is missing")


def _raw_contents(request: pb.ModelInferRequest) -> Sequence[bytes] | None:
    raw = request.raw_input_contents
    if not raw:
        return None
    if len(raw) != len(request.inputs):
        raise InvalidInput(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs"
        )
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            raise InvalidInput(f"input {tensor.name!r} has contents beside raw_input_contents")
    return raw


def _check_signature(
    tensor: pb.ModelInferRequest.InferInputTensor, spec: TensorSpec
) -> tuple[Datatype, tuple[int, ...]]:
    if tensor.datatype != spec.datatype:
        raise InvalidInput(
            f"input {spec.name!r}: expected datatype {spec.datatype}, got {tensor.datatype!r}"
        )
    shape = tuple(tensor.shape)
    fits = len(shape) == len(spec.shape) and all(
        size > 0 and wanted in (-1, size) for size, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise InvalidInput(
            f"input {spec.name!r}: expected shape {list(spec.shape)}, got {list(shape)}"
        )
    return DATATYPES[spec.datatype], shape


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
