"""The two protocols on the wire, as bytes: V2 (ours, Triton, MLServer) and TorchServe's own.

A request is a message's bytes, an answer the probabilities in it; no client library is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.pb import inference_pb2 as pb

Images = NDArray[np.uint8]  # (N, 28, 28)
Probabilities = NDArray[np.float32]  # (N, C)

_BYTES_FIELD = 2  # protobuf's wire type of strings, bytes and messages


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a server is asked; `ready` is its readiness RPC, where it has one worth asking."""

    infer: str
    ready: str
    encode: Callable[[str, Images], bytes]
    decode: Callable[[bytes, int], Probabilities]


class WrongAnswer(Exception):
    """An answer that is not what ONNX Runtime gives for the same images."""


class NoAnswer(Exception):
    """The server refused a request, or failed it."""


class Lost(NoAnswer):
    """The server took a request, and no answer came for as long as anyone would wait."""


def frame(message: bytes) -> bytes:
    """The message as gRPC sends it: a zero for "not compressed", its length, itself."""
    return b"\0" + struct.pack(">I", len(message)) + message


def encode_v2(model: str, images: Images) -> bytes:
    """A ModelInferRequest with raw contents, for the latest version."""
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[images.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    return request.SerializeToString()


def decode_v2(answer: bytes, rows: int) -> Probabilities:
    """The output `probabilities`, raw or typed; WrongAnswer without it."""
    response = pb.ModelInferResponse.FromString(answer)
    for index, output in enumerate(response.outputs):
        if output.name == "probabilities":
            if response.raw_output_contents:
                values = np.frombuffer(response.raw_output_contents[index], np.float32)
            else:
                values = np.array(output.contents.fp32_contents, np.float32)
            return values.reshape(rows, -1)
    raise WrongAnswer("the answer has no output 'probabilities'")


def answer_v2(model: str, probabilities: Probabilities) -> bytes:
    """The ModelInferResponse that a server would give with these probabilities."""
    labels = probabilities.argmax(axis=1).astype(np.int64)
    response = pb.ModelInferResponse(model_name=model, model_version="1")
    response.outputs.add(name="probabilities", datatype="FP32", shape=probabilities.shape)
    response.outputs.add(name="labels", datatype="INT64", shape=labels.shape)
    response.raw_output_contents.extend((probabilities.tobytes(), labels.tobytes()))
    return response.SerializeToString()


def encode_torchserve(model: str, images: Images) -> bytes:
    """A PredictionsRequest: model_name = 1, map<string, bytes> input = 3."""
    entry = _field(1, b"images") + _field(2, images.tobytes())
    return _field(1, model.encode()) + _field(3, entry)


def decode_torchserve(answer: bytes, rows: int) -> Probabilities:
    """A PredictionResponse: bytes prediction = 1, raw floats from our own handler."""
    length, start = _read_varint(answer, 1)
    if answer[:1] != _key(1) or start + length != len(answer):
        raise WrongAnswer(f"not a PredictionResponse: {answer[:80]!r}")
    return np.frombuffer(answer, np.float32, offset=start).reshape(rows, -1)


V2 = Protocol(
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/ServerReady",
    encode_v2,
    decode_v2,
)
TORCHSERVE = Protocol(
    "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
    "",  # its Ping is healthy before a worker is
    encode_torchserve,
    decode_torchserve,
)


def _key(number: int) -> bytes:
    return bytes([number << 3 | _BYTES_FIELD])


def _field(number: int, content: bytes) -> bytes:
    return _key(number) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The value and where it ends."""
    value = shift = 0
    for position in range(at, len(data)):
        value |= (data[position] & 0x7F) << shift
        shift += 7
        if data[position] < 0x80:
            return value, position + 1
    raise WrongAnswer("the answer ends within a number")
