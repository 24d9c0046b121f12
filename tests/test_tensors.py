"""V2 tensors to arrays and back, for every datatype, and what is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_repository import TensorSpec
from serving.datatypes import DATATYPES, decode_raw, encode_raw
from serving.errors import InvalidInput
from serving.pb import inference_pb2 as pb
from serving.tensors import RequestedOutput, decode_inputs, encode_outputs, requested_outputs

EXTREMES: dict[str, list[object]] = {
    "BOOL": [True, False],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "UINT8": [0, 255],
    "UINT16": [0, 2**16 - 1],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "FP16": [0.5, -65504.0],
    "FP32": [0.5, -3.0e38],
    "FP64": [0.1, -1e308],
    "BYTES": ["", "drei ③"],
}
IMAGES = (TensorSpec("images", "UINT8", (-1, 2, 2)),)


def request(datatype: str, shape: list[int], name: str = "images") -> pb.ModelInferRequest:
    message = pb.ModelInferRequest()
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message


def array_of(datatype: str) -> NDArray[np.generic]:
    return np.array(EXTREMES[datatype], DATATYPES[datatype].dtype)


def test_the_table_has_every_datatype_of_the_protocol() -> None:
    assert set(DATATYPES) == set(EXTREMES)


@pytest.mark.parametrize("datatype", EXTREMES)
def test_raw_contents_survive_the_round_trip(datatype: str) -> None:
    spec = TensorSpec("x", datatype, (-1,))
    response = pb.ModelInferResponse()
    encode_outputs(response, {"x": array_of(datatype)}, [RequestedOutput(spec)])
    message = request(datatype, list(response.outputs[0].shape), "x")
    message.raw_input_contents.extend(response.raw_output_contents)
    back = decode_inputs(message, [spec])["x"]
    assert back.tolist() == array_of(datatype).tolist()
    assert back.dtype == DATATYPES[datatype].dtype


@pytest.mark.parametrize("datatype", [name for name, kind in DATATYPES.items() if kind.contents])
def test_typed_contents_are_read_from_the_datatypes_own_field(datatype: str) -> None:
    message = request(datatype, [2], "x")
    field = DATATYPES[datatype].contents
    assert field
    values = EXTREMES[datatype]
    items = [str(v).encode() for v in values] if datatype == "BYTES" else values
    getattr(message.inputs[0].contents, field).extend(items)
    back = decode_inputs(message, [TensorSpec("x", datatype, (2,))])["x"]
    assert back.tolist() == array_of(datatype).tolist()
    assert back.dtype == DATATYPES[datatype].dtype


def test_a_raw_tensor_is_a_view_and_not_a_copy() -> None:
    data = bytes(range(8))
    assert np.shares_memory(
        decode_raw("x", DATATYPES["UINT8"], (2, 2, 2), data), np.frombuffer(data, np.uint8)
    )


def test_raw_bytes_elements_carry_their_length_as_four_little_endian_bytes() -> None:
    kind = DATATYPES["BYTES"]
    assert encode_raw(kind, np.array(["ab", ""], object)) == b"\x02\0\0\0ab\0\0\0\0"


def test_a_sliced_output_is_written_in_row_major_order() -> None:
    array = np.arange(6, dtype=np.int64).reshape(2, 3).T
    assert encode_raw(DATATYPES["INT64"], array) == struct.pack("<6q", 0, 3, 1, 4, 2, 5)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_text_survives_as_bytes(texts: list[str]) -> None:
    kind = DATATYPES["BYTES"]
    array = np.empty(len(texts), object)
    array[:] = texts
    assert decode_raw("x", kind, (len(texts),), encode_raw(kind, array)).tolist() == texts


@given(st.binary(max_size=40))
def test_any_raw_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        array = decode_raw("x", DATATYPES["BYTES"], (2,), data)
    except InvalidInput:
        return
    assert encode_raw(DATATYPES["BYTES"], array) == data


def refusal(message: pb.ModelInferRequest, specs: tuple[TensorSpec, ...] = IMAGES) -> str:
    with pytest.raises(InvalidInput) as caught:
        decode_inputs(message, specs)
    return str(caught.value)


def raw(datatype: str, shape: list[int], *contents: bytes) -> pb.ModelInferRequest:
    message = request(datatype, shape)
    message.raw_input_contents.extend(contents)
    return message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (raw("FP32", [1, 2, 2], bytes(16)), "input 'images': expected datatype UINT8, got 'FP32'"),
        (raw("UINT8", [1, 4], bytes(4)), "input 'images': expected shape [-1, 2, 2], got [1, 4]"),
        (raw("UINT8", [0, 2, 2], b""), "expected shape [-1, 2, 2], got [0, 2, 2]"),
        (raw("UINT8", [-1, 2, 2], bytes(4)), "expected shape [-1, 2, 2], got [-1, 2, 2]"),
        (raw("UINT8", [2, 2, 2], bytes(7)), "UINT8 [2, 2, 2] takes 8 bytes, got 7"),
        (raw("UINT8", [1, 2, 2], bytes(4), b""), "raw_input_contents has 2 entries for 1 inputs"),
        (request("UINT8", [1, 2, 2]), "takes 4 elements in uint_contents, got 0"),
        (request("UINT8", [1, 2, 2], "pictures"), "input 'pictures' is unknown; expected 'images'"),
        (pb.ModelInferRequest(), "input 'images' is missing"),
    ],
)
def test_a_refusal_names_the_tensor_what_was_expected_and_what_came(
    message: pb.ModelInferRequest, expected: str
) -> None:
    assert expected in refusal(message)


def test_an_input_given_twice_is_refused() -> None:
    message = request("UINT8", [1, 2, 2])
    message.inputs.append(message.inputs[0])
    assert refusal(message) == "input 'images' is given twice"


def test_raw_and_typed_contents_together_are_refused() -> None:
    message = raw("UINT8", [1, 2, 2], bytes(4))
    message.inputs[0].contents.uint_contents.extend([0] * 4)
    assert refusal(message) == "input 'images' has contents beside raw_input_contents"


def test_a_typed_value_beyond_its_datatype_is_refused_not_wrapped() -> None:
    message = request("UINT8", [1, 2, 2])
    message.inputs[0].contents.uint_contents.extend([0, 1, 2, 256])
    assert "uint_contents holds a value beyond UINT8" in refusal(message)


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("BOOL", b"\x02", "BOOL takes bytes 0 and 1 only"),
        ("BYTES", b"\x01\0", "BYTES element 0 has no length"),
        ("BYTES", b"\x05\0\0\0abc", "BYTES element 0 takes 5 bytes, got 3"),
        ("BYTES", b"\0\0\0\0" * 2, "BYTES [1] takes 1 elements, got 2"),
        ("BYTES", b"\x01\0\0\0\xff", "BYTES elements must be UTF-8"),
    ],
)
def test_malformed_raw_elements_are_refused(datatype: str, data: bytes, expected: str) -> None:
    message = request(datatype, [1], "x")
    message.raw_input_contents.append(data)
    assert expected in refusal(message, (TensorSpec("x", datatype, (1,)),))


def test_half_floats_have_no_typed_contents() -> None:
    message = request("FP16", [1], "x")
    assert "takes raw_input_contents only" in refusal(message, (TensorSpec("x", "FP16", (1,)),))


def test_inputs_may_come_in_any_order() -> None:
    message = request("INT8", [1], "b")
    message.inputs.add(name="a", datatype="INT8", shape=[1])
    message.raw_input_contents.extend([b"\x02", b"\x01"])
    specs = (TensorSpec("a", "INT8", (1,)), TensorSpec("b", "INT8", (1,)))
    arrays = decode_inputs(message, specs)
    assert (arrays["a"].tolist(), arrays["b"].tolist()) == ([1], [2])


def test_an_input_in_shared_memory_is_refused() -> None:
    message = request("UINT8", [1, 2, 2])
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert refusal(message) == "input 'images': shared memory is not supported"


OUTPUTS = (
    TensorSpec("scores", "FP32", (-1, 3)),
    TensorSpec("best", "INT64", (-1,)),
    TensorSpec("text", "BYTES", (-1,)),
    TensorSpec("truth", "BOOL", (-1,)),
)


def asking(name: str, **parameters: dict[str, object]) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest()
    values = {key: pb.InferParameter(**value) for key, value in parameters.items()}  # type: ignore[arg-type]
    message.outputs.add(name=name, parameters=values)
    return message


def test_a_request_that_names_no_output_gets_all_of_them() -> None:
    assert list(requested_outputs(pb.ModelInferRequest(), OUTPUTS)) == [
        RequestedOutput(spec) for spec in OUTPUTS
    ]


def test_outputs_are_given_twice_at_most() -> None:
    """Or a message of some MiB could ask for an answer of any size."""
    message = pb.ModelInferRequest()
    for _ in range(2 * len(OUTPUTS)):
        message.outputs.add(name="scores")
    assert len(requested_outputs(message, OUTPUTS)) == 2 * len(OUTPUTS)
    message.outputs.add(name="scores")
    with pytest.raises(InvalidInput, match="outputs are asked for, at most"):
        requested_outputs(message, OUTPUTS)


def test_an_output_may_be_asked_for_as_its_top_classes() -> None:
    message = asking("scores", classification={"int64_param": 2}, binary_data={"bool_param": True})
    assert requested_outputs(message, OUTPUTS) == [RequestedOutput(OUTPUTS[0], 2)]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (asking("scores", classification={"int64_param": 0}), "must be 1 or more, got 0"),
        (asking("scores", classification={"int64_param": -1}), "must be 1 or more, got -1"),
        (asking("scores", classification={"string_param": "2"}), "must be an int64_param"),
        (asking("scores", classification={}), "must be an int64_param"),
        (asking("text", classification={"int64_param": 1}), "BYTES has no classification"),
        (asking("truth", classification={"int64_param": 1}), "BOOL has no classification"),
        (asking("scores", shared_memory_region={"string_param": "r"}), "shared memory is not"),
        (asking("logits"), "is unknown; there is 'scores', 'best', 'text'"),
    ],
)
def test_an_output_that_cannot_be_given_so_is_named(
    message: pb.ModelInferRequest, expected: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        requested_outputs(message, OUTPUTS)
    name = message.outputs[0].name
    assert str(caught.value).startswith(f"output {name!r}")
    assert expected in str(caught.value)


def test_top_classes_are_answered_as_a_bytes_tensor_of_their_own_shape() -> None:
    response = pb.ModelInferResponse()
    scores = np.array([[0.25, 0.5, 0.125], [3, 1, 2]], np.float32)
    best = np.array([1, 0])
    encode_outputs(
        response,
        {"scores": scores, "best": best},
        [RequestedOutput(OUTPUTS[0], 2), RequestedOutput(OUTPUTS[1])],
        labels=("a", "b", "c"),
    )
    described = [(o.name, o.datatype, list(o.shape)) for o in response.outputs]
    assert described == [("scores", "BYTES", [2, 2]), ("best", "INT64", [2])]
    back = decode_raw("x", DATATYPES["BYTES"], (2, 2), response.raw_output_contents[0])
    assert back.tolist() == [
        ["0.500000:1:b", "0.250000:0:a"],
        ["3.000000:0:a", "2.000000:2:c"],
    ]
    assert response.raw_output_contents[1] == struct.pack("<2q", 1, 0)
