"""V2's messages as its JSON: names as in the protocol, whole numbers as numbers, and what is unset
with its default.

protobuf's own json_format writes 64-bit numbers as texts, which V2's clients do not expect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from serving.errors import InvalidInput
from serving.http.strict_json import Object, kind_of
from serving.pb import inference_pb2 as pb

Parameters = Mapping[str, pb.InferParameter]


def as_json(message: Message) -> Object:
    """The message's fields by name; of a oneof's and of messages, only those that are set."""
    return {
        field.name: _value(field, getattr(message, field.name))
        for field in cast(Sequence[FieldDescriptor], message.DESCRIPTOR.fields)
        if not field.has_presence or message.HasField(field.name)
    }


def parameters_json(parameters: Parameters) -> Object:
    """Each parameter's value by its name."""
    return {name: _chosen(each) for name, each in parameters.items()}


def set_parameters(
    given: Object, parameters: MutableMapping[str, pb.InferParameter], where: str
) -> None:
    """Set a message's parameters; InvalidInput, naming `where`, for a value that none can have."""
    for name, value in given.items():
        choice = _choice(value)
        if not choice:
            raise InvalidInput(
                f"{where}: parameter {name!r:.100} must be a text, true, false, or a number of "
                f"64 bits, got {kind_of(value)}"
            )
        setattr(parameters[name], choice, value)


def listed(messages: Iterable[Message]) -> list[Object]:
    """Each of them."""
    return [as_json(each) for each in messages]


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {
            key: _single(field.message_type.fields_by_name["value"], value[key]) for key in value
        }
    if field.is_repeated:
        return [_single(field, each) for each in value]
    return _single(field, value)


def _single(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return as_json(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value


def _chosen(parameter: pb.InferParameter) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, choice) if choice else None


def _choice(value: object) -> str:
    if type(value) is not int:
        choices = {bool: "bool_param", str: "string_param", float: "double_param"}
        return choices.get(type(value), "")
    if not -(2**63) <= value < 2**64:
        return ""
    return "int64_param" if value < 2**63 else "uint64_param"
