"""V2's inference in HTTP ↔ the messages of gRPC: JSON, with binary data behind it or without.

What names, shapes and datatypes must be for the model is not checked here: the message is, by
`tensors`, in the same words for either protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from serving.datatypes import DATATYPES
from serving.errors import InvalidInput
from serving.http import strict_json, tensors_json
from serving.http.binary_tensors import SIZE, Payload, Wanted, size_of
from serving.http.messages_json import parameters_json, set_parameters
from serving.http.strict_json import Object, objects, optional
from serving.pb import inference_pb2 as pb

# Of a shape, as of numpy's arrays; of many more, even the product would take long.
MOST_DIMENSIONS = 64

_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True, slots=True)
class Asked:
    """A serialised ModelInferRequest, and how its answer's outputs are to come."""

    message: bytes
    binary: Wanted


@dataclass(frozen=True, slots=True)
class Answered:
    """A body whose first `json_length` bytes are JSON; None where all of it is."""

    body: bytes
    json_length: int | None


def asked(model: str, version: str, header: bytes, data: memoryview) -> Asked:
    """The request that a JSON `header` and the binary `data` behind it are; or InvalidInput."""
    given = strict_json.parsed_object(header)
    try:
        parameters: Object = optional(given, "parameters", {}, "the request")
        binary = Wanted(parameters)
        name = optional(given, "id", "", "the request")
        message = pb.ModelInferRequest(model_name=model, model_version=version, id=name)
        set_parameters(parameters, message.parameters, "the request")
        _add_inputs(message, objects(given, "inputs", "the request"), Payload(data))
        for output in objects(given, "outputs", "the request"):
            _add_output(message, output, binary)
    except UnicodeEncodeError:
        raise InvalidInput("a text of the JSON holds half of a surrogate pair") from None
    return Asked(message.SerializeToString(), binary)


def answered(message: bytes, binary: Wanted) -> Answered:
    """The answer that a serialised ModelInferResponse is."""
    response = pb.ModelInferResponse.FromString(message)
    head: Object = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = parameters_json(response.parameters)
    outputs = ",".join(_outputs(response, binary))
    header = f'{strict_json.text(head)[:-1]},"outputs":[{outputs}]}}'.encode()
    raw = response.raw_output_contents
    data = [each for index, each in enumerate(raw) if binary[index]]
    return Answered(b"".join((header, *data)), len(header) if data else None)


def _add_inputs(message: pb.ModelInferRequest, inputs: list[Object], payload: Payload) -> None:
    for given in inputs:
        name = optional(given, "name", "", "an input")
        where = f"input {name!r:.100}"
        parameters: Object = optional(given, "parameters", {}, where)
        tensor = message.inputs.add(
            name=name,
            datatype=optional(given, "datatype", "", where),
            shape=_shape(given, where),
        )
        size = size_of(name, parameters)
        set_parameters(parameters, tensor.parameters, where)
        if size is not None:
            if "data" in given:
                raise InvalidInput(f"{where}: has data beside {SIZE}")
            message.raw_input_contents.append(payload.take(name, size))
        elif _SHARED_MEMORY not in parameters:  # else it has none, which `tensors` tells
            message.raw_input_contents.append(_data(tensor, given, where))
    payload.check_taken()


def _shape(given: Object, where: str) -> list[int]:
    shape: list[int] = optional(given, "shape", [], where)
    if set(map(type, shape)) - {int} or any(abs(size) >= 2**63 for size in shape):
        raise InvalidInput(f"{where}: 'shape' must hold whole numbers of 64 bits")
    if len(shape) > MOST_DIMENSIONS:
        raise InvalidInput(f"{where}: 'shape' has more than {MOST_DIMENSIONS} dimensions")
    return shape


def _data(tensor: pb.ModelInferRequest.InferInputTensor, given: Object, where: str) -> bytes:
    if "data" not in given:
        raise InvalidInput(f"{where}: has neither data nor {SIZE}")
    kind = DATATYPES.get(tensor.datatype)
    if kind is None:  # no model has it, which `tensors` tells
        return b""
    data = optional(given, "data", list[object](), where)
    return tensors_json.raw_bytes(tensor.name, kind, tensor.shape, data)


def _add_output(message: pb.ModelInferRequest, given: Object, binary: Wanted) -> None:
    name = optional(given, "name", "", "an output")
    where = f"output {name!r:.100}"
    parameters: Object = optional(given, "parameters", {}, where)
    binary.add(name, parameters)
    output = message.outputs.add(name=name)
    set_parameters(parameters, output.parameters, where)


def _outputs(response: pb.ModelInferResponse, binary: Wanted) -> Iterator[str]:
    for index, output in enumerate(response.outputs):
        raw = response.raw_output_contents[index]
        shown: Object = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if binary[index]:
            yield strict_json.text({**shown, "parameters": {SIZE: len(raw)}})
        else:
            kind = DATATYPES[output.datatype]
            data = tensors_json.data_text(output.name, kind, output.shape, raw)
            yield f'{strict_json.text(shown)[:-1]},"data":{data}}}'
