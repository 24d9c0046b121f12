"""Priority and timeout of a request, in every form that clients give them."""

from __future__ import annotations

import pytest

from serving.errors import InvalidInput
from serving.parameters import Parameters, parameters
from serving.pb import inference_pb2 as pb


def request(**values: pb.InferParameter) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(parameters=values)


def test_a_request_without_parameters_asks_for_nothing() -> None:
    assert parameters(pb.ModelInferRequest()) == Parameters(priority=0, timeout=None)


@pytest.mark.parametrize(
    "value",
    [
        pb.InferParameter(int64_param=3),
        pb.InferParameter(uint64_param=3),
        pb.InferParameter(string_param="3"),
    ],
)
def test_whole_numbers_come_signed_unsigned_or_as_digits(value: pb.InferParameter) -> None:
    assert parameters(request(priority=value)).priority == 3
    assert parameters(request(timeout=value)).timeout == pytest.approx(3e-6)


def test_a_priority_may_take_all_of_64_bits() -> None:
    value = pb.InferParameter(uint64_param=2**64 - 1)
    assert parameters(request(priority=value)).priority == 2**64 - 1


@pytest.mark.parametrize(
    "value", [pb.InferParameter(int64_param=0), pb.InferParameter(string_param="0")]
)
def test_nought_leaves_both_to_the_server(value: pb.InferParameter) -> None:
    assert parameters(request(priority=value, timeout=value)) == Parameters()


@pytest.mark.parametrize("name", ["priority", "timeout"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (pb.InferParameter(int64_param=-1), "-1"),
        (pb.InferParameter(string_param="soon"), "'soon'"),
        (pb.InferParameter(string_param=""), "''"),
        (pb.InferParameter(string_param="9" * 21), "'999"),
        (pb.InferParameter(bool_param=True), "True"),
        (pb.InferParameter(double_param=1.0), "1.0"),
        (pb.InferParameter(), "None"),
    ],
)
def test_a_malformed_parameter_is_named_with_what_came(
    name: str, value: pb.InferParameter, shown: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        parameters(request(**{name: value}))
    assert f"parameter {name!r} must be a whole number from 0, got {shown}" in str(caught.value)


def test_parameters_of_other_features_are_left_alone() -> None:
    message = request(
        sequence_id=pb.InferParameter(int64_param=7),
        sequence_start=pb.InferParameter(bool_param=True),
        colour=pb.InferParameter(string_param="green"),
    )
    assert parameters(message) == Parameters()
