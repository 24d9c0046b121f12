"""Messages for testing and fuzzing the lane's codec, and what the Python server says to them.

`python -m tests.lane.make_corpus` writes, beside itself:

    corpus/message/NAME   a ModelInferRequest
    corpus/answer/NAME    a ModelInferResponse
    corpus/checks.tsv     of each request: its name, a signature, and what the checks say: "rows N",
                          the text of a refusal, or "passed on" for what the lane leaves to Python

The signatures are those of tests/lane/signatures.h, the answers' tensors those of test_message.cpp.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from model_repository import TensorSpec
from serving import tensors
from serving.batch import Request
from serving.datatypes import DATATYPES, Array
from serving.errors import InvalidInput
from serving.parameters import parameters
from serving.pb import inference_pb2 as pb
from serving.status import status_of

PASSED_ON = "passed on"

Signature = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]  # inputs, outputs
Check = tuple[str, str, pb.ModelInferRequest, str | None]  # name, signature, what it is, if told

SIGNATURES: dict[str, Signature] = {
    "digits": (
        (TensorSpec("images", "UINT8", (-1, 28, 28)),),
        (
            TensorSpec("probabilities", "FP32", (-1, 10)),
            TensorSpec("labels", "INT64", (-1,)),
        ),
    ),
    "pair": (
        (TensorSpec("values", "FP32", (-1, -1)), TensorSpec("mask", "BOOL", (-1, 2))),
        (TensorSpec("sums", "FP32", (-1, -1)), TensorSpec("flags", "BOOL", (-1,))),
    ),
}
_DIGITS, _PAIR = (tuple(spec.name for spec in SIGNATURES[name][1]) for name in SIGNATURES)


def main(directory: Path) -> None:
    """Write everything below the directory."""
    for part in ("message", "answer"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    lines = []
    for name, signature, request, outcome in checks():
        (directory / "message" / name).write_bytes(request.SerializeToString(deterministic=True))
        lines.append(f"{name}\t{signature}\t{outcome or checked(request, signature)}\n")
    (directory / "checks.tsv").write_text("".join(lines))
    for name, response in answers():
        (directory / "answer" / name).write_bytes(response.SerializeToString(deterministic=True))


def checked(request: pb.ModelInferRequest, signature: str) -> str:
    """What the Python server's checks say, in their order."""
    inputs, outputs = SIGNATURES[signature]
    try:
        parameters(request)
        tensors.requested_outputs(request, outputs)
        arrays = tensors.decode_inputs(request, inputs)
        return f"rows {Request(arrays, lambda outcome: None).rows}"
    except InvalidInput as error:
        return status_of(error)[1]


def checks() -> Iterator[Check]:
    """Requests, most of them wrong in one way."""
    yield from _accepted()
    yield from _refused_names()
    yield from _refused_tensors()
    yield from _passed_on()


def _accepted() -> Iterator[Check]:
    yield "image", "digits", _images(), None
    yield "images", "digits", _images(rows=3, id="3 images", model_version="7"), None
    asked = _images()
    for output in ("labels", "probabilities", "labels"):
        asked.outputs.add(name=output)
    yield "outputs", "digits", asked, None
    heeded = _images()
    heeded.parameters["priority"].int64_param = 2
    heeded.parameters["timeout"].uint64_param = 1_500_000
    heeded.parameters["sequence_id"].string_param = "größe"
    heeded.parameters["sequence_start"].bool_param = True
    heeded.parameters["weight"].double_param = 0.5
    heeded.parameters["nothing"].SetInParent()
    yield "parameters", "digits", heeded, None
    yield "pair", "pair", _pair((2, 3), (2, 2)), None
    yield "pair-reversed", "pair", _pair((2, 3), (2, 2), reverse=True), None


def _refused_names() -> Iterator[Check]:
    unknown = _images()
    unknown.outputs.add(name="logits")
    unknown.inputs[0].name = "pixels"  # outputs are checked first
    yield "output-unknown", "digits", unknown, None
    yield "input-unknown", "digits", _images(name="pixels"), None
    yield "input-unnamed", "digits", _images(name=""), None
    yield "input-long-name", "digits", _images(name="pixels " * 300), None
    yield "input-missing", "digits", pb.ModelInferRequest(model_name="digits"), None
    twice = _images()
    twice.inputs.append(twice.inputs[0])
    yield "input-twice", "digits", twice, None
    yield "input-one-of-two", "pair", _pair((1, 1), (1, 2), most=1), None
    yield "raw-too-many", "digits", _with_raw(_images(), b""), None
    too_few = _pair((1, 1), (1, 2))
    del too_few.raw_input_contents[1]
    yield "raw-too-few", "pair", too_few, None


def _refused_tensors() -> Iterator[Check]:
    yield "datatype", "digits", _images(datatype="FP32"), None
    yield "datatype-none", "digits", _images(datatype=""), None
    yield "shape-no-rows", "digits", _images(shape=(0, 28, 28)), None
    yield "shape-negative", "digits", _images(shape=(-1, 28, 28)), None
    yield "shape-other", "digits", _images(shape=(1, 28, 27)), None
    yield "shape-flat", "digits", _images(shape=(1, 784)), None
    yield "shape-none", "digits", _images(shape=()), None
    yield "bytes-too-few", "digits", _images(shape=(2, 28, 28)), None
    yield "bytes-far-too-few", "digits", _images(shape=(2**50, 28, 28)), None
    yield "bool-two", "pair", _pair((1, 1), (1, 2), fill=2), None
    yield "rows-differ", "pair", _pair((1, 3), (2, 2)), None
    yield "rows-differ-reversed", "pair", _pair((1, 3), (2, 2), reverse=True), None


def _passed_on() -> Iterator[Check]:
    yield "name-quoted", "digits", _images(name="it's"), PASSED_ON
    yield "name-beyond-ascii", "digits", _images(name="größe"), PASSED_ON
    yield "too-many-bytes", "digits", _images(shape=(2**62, 28, 28)), PASSED_ON
    yield "contents-none", "digits", _with_raw(_images()), PASSED_ON
    typed = _with_raw(_images())
    typed.inputs[0].contents.uint_contents.extend(range(784 // 4))
    yield "contents", "digits", typed, PASSED_ON
    shared = _images()
    shared.inputs[0].parameters["shared_memory_region"].string_param = "region"
    yield "shared-memory", "digits", shared, PASSED_ON
    classes = _images()
    classes.outputs.add(name="probabilities").parameters["classification"].int64_param = 3
    yield "classification", "digits", classes, PASSED_ON
    for name in ("priority", "timeout"):
        malformed = _images()
        malformed.parameters[name].int64_param = -1
        yield f"{name}-negative", "digits", malformed, PASSED_ON
    text = _images()
    text.parameters["timeout"].string_param = "1000"
    yield "timeout-text", "digits", text, PASSED_ON


def _images(
    *,
    rows: int = 1,
    name: str = "images",
    datatype: str = "UINT8",
    shape: Sequence[int] | None = None,
    id: str = "",
    model_version: str = "",
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="digits", id=id, model_version=model_version)
    shape = (rows, 28, 28) if shape is None else shape
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return _with_raw(request, _bytes(rows * 784, 0, 251))


def _pair(
    values: tuple[int, int],
    mask: tuple[int, int],
    *,
    reverse: bool = False,
    most: int = 2,
    fill: int = 1,
) -> pb.ModelInferRequest:
    given = [
        ("values", "FP32", values, _bytes(4 * values[0] * values[1], 0, 251)),
        ("mask", "BOOL", mask, bytes([fill]) * (mask[0] * mask[1])),
    ]
    request = pb.ModelInferRequest(model_name="pair")
    for name, datatype, shape, raw in given[:most][:: -1 if reverse else 1]:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    return request


def _with_raw(request: pb.ModelInferRequest, *more: bytes) -> pb.ModelInferRequest:
    """With those contents added; without any, where none are given."""
    if not more:
        del request.raw_input_contents[:]
    request.raw_input_contents.extend(more)
    return request


def answers() -> Iterator[tuple[str, pb.ModelInferResponse]]:
    """Responses as serving/replies.py makes them."""
    one, eight, many = _digits(1), _digits(8), _digits(256)
    yield "one-row", _answer("digits", one, 0, 1)
    yield "id", _answer("digits", one, 0, 1, id="request-1")
    yield "id-beyond-ascii", _answer("digits", one, 0, 1, id="größe")
    yield "prediction-id", _answer("digits", one, 0, 1, ids="x" * 99)
    yield "some-rows", _answer("digits", eight, 2, 3, id="7", ids="a,b,c")
    yield "last-rows", _answer("digits", eight, 5, 3)
    yield "labels", _answer("digits", eight, 0, 8, ("labels",))
    yield "other-order", _answer("digits", one, 0, 1, ("labels", "probabilities"))
    yield "twice", _answer("digits", one, 0, 1, ("labels", "labels"))
    yield "many-rows", _answer("digits", many, 20, 200, ids=",".join(["y" * 99] * 200))
    wide = {"sums": _tensor("FP32", (4, 300), 0), "flags": _tensor("BOOL", (4,), 1)}
    yield "wide", _answer("pair", wide, 1, 2, _PAIR)
    yield "flags", _answer("pair", wide, 3, 1, ("flags",))
    nothing = {"sums": _tensor("FP32", (2, 0), 0), "flags": _tensor("BOOL", (2,), 1)}
    yield "no-elements", _answer("pair", nothing, 0, 2, _PAIR)


def _answer(
    signature: str,
    batch: dict[str, Array],
    first: int,
    rows: int,
    outputs: Sequence[str] = _DIGITS,
    *,
    id: str = "",
    ids: str = "",
) -> pb.ModelInferResponse:
    specs = {spec.name: spec for spec in SIGNATURES[signature][1]}
    part = {name: array[first : first + rows] for name, array in batch.items()}
    requested = [tensors.RequestedOutput(specs[name]) for name in outputs]
    response = pb.ModelInferResponse(model_name=signature, model_version="3", id=id)
    tensors.encode_outputs(response, part, requested)
    if ids:
        response.parameters["prediction_ids"].string_param = ids
    return response


def _digits(rows: int) -> dict[str, Array]:
    return {
        "probabilities": _tensor("FP32", (rows, 10), 0),
        "labels": _tensor("INT64", (rows,), 1),
    }


def _tensor(datatype: str, shape: tuple[int, ...], number: int) -> Array:
    dtype = DATATYPES[datatype].dtype
    size = int(np.prod(shape)) * dtype.itemsize
    data = _bytes(size, number, 2 if datatype == "BOOL" else 251)
    return np.frombuffer(data, dtype).reshape(shape)


def _bytes(size: int, number: int, below: int) -> bytes:
    return bytes((index * 7 + number * 13) % below for index in range(size))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "corpus")
