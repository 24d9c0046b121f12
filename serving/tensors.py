"""V2 requests → arrays and arrays → answers: every check of a request's tensors.

What a tensor's bytes mean is `datatypes`' matter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from model_repository import TensorSpec
from serving import classification
from serving.datatypes import DATATYPES, Array, Datatype, decode_raw, encode_raw, text_array
from serving.errors import InvalidInput
from serving.parameters import class_count
from serving.pb import inference_pb2 as pb


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
        return as_they_are(specs)
    if len(outputs) > 2 * len(specs):  # or a small request could ask for more than there is memory
        raise InvalidInput(
            f"{len(outputs)} outputs are asked for, at most {2 * len(specs)} are given:"
            " each of them twice"
        )
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


@functools.lru_cache(maxsize=4096)
def _described(
    name: str, datatype: str, shape: tuple[int, ...]
) -> pb.ModelInferResponse.InferOutputTensor:
    """Kept, as it is twice as fast to copy as to make, and few rows and outputs come by."""
    return pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)


def as_they_are(specs: tuple[TensorSpec, ...]) -> tuple[RequestedOutput, ...]:
    """All the outputs, none as its top classes."""
    return tuple(RequestedOutput(spec) for spec in specs)


def _requested(
    output: pb.ModelInferRequest.InferRequestedOutputTensor, spec: TensorSpec
) -> RequestedOutput:
    if "shared_memory_region" in output.parameters:
        raise InvalidInput(f"output {output.name!r}: shared memory is not supported")
    classes = class_count(output)
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
        return text_array(tensor.name, values, shape)
    given = np.array(values)
    array = given.astype(kind.dtype)
    if kind.dtype.kind in "iu" and not np.array_equal(given, array):
        raise InvalidInput(
            f"input {tensor.name!r}: {kind.contents} holds a value beyond {kind.name}"
        )
    return array.reshape(shape)


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
