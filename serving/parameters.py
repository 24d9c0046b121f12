"""The parameters of a request that this server heeds: when to run it, and when no longer.

Others are left alone, as Triton leaves those that a model does not ask for; that goes for
`sequence_id`, `sequence_start` and `sequence_end` too, which matter to its stateful models only.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.errors import InvalidInput
from serving.pb import inference_pb2 as pb

_WHOLE = ("int64_param", "uint64_param")


@dataclass(frozen=True, slots=True)
class Parameters:
    """`priority`: 1 is the most urgent, 0 leaves it to the server. `timeout`: seconds that the
    request may wait before it runs; None for no limit."""

    priority: int = 0
    timeout: float | None = None


NONE = Parameters()


def parameters(request: pb.ModelInferRequest) -> Parameters:
    """What the request asks for; InvalidInput names the parameter that is malformed.

    `timeout` comes in microseconds, where 0 means none. Both are whole numbers, or text of digits.
    """
    given = request.parameters
    if not given:
        return NONE
    priority = _whole("priority", given["priority"]) if "priority" in given else 0
    timeout = _whole("timeout", given["timeout"]) if "timeout" in given else 0
    return Parameters(priority, timeout / 1e6 if timeout else None)


def class_count(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> int:
    """How many top classes the output is to be given as; 0 to have it as it is."""
    if "classification" not in output.parameters:
        return 0
    parameter = output.parameters["classification"]
    if parameter.WhichOneof("parameter_choice") not in _WHOLE:
        raise InvalidInput(f"output {output.name!r}: classification must be an int64_param")
    count = parameter.int64_param or parameter.uint64_param
    if count < 1:
        raise InvalidInput(f"output {output.name!r}: classification must be 1 or more, got {count}")
    return count


def _whole(name: str, parameter: pb.InferParameter) -> int:
    choice = parameter.WhichOneof("parameter_choice")
    if choice in _WHOLE:
        value = parameter.int64_param or parameter.uint64_param
        if value >= 0:
            return value
    text = parameter.string_param
    if text.isascii() and text.isdigit() and len(text) <= 20:
        return int(text)
    shown = getattr(parameter, choice) if choice else None
    raise InvalidInput(f"parameter {name!r} must be a whole number from 0, got {shown!r:.40}")
