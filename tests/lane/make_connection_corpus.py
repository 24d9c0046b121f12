"""Seeds for the fuzzer of the lane's connection: what clients send, well-behaved and not.

`python -m tests.lane.make_connection_corpus` writes corpus/connection/NAME beside itself. A file's
first byte is fuzz_connection.cpp's: from 0x80 on, the preface comes before the frames.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from serving.pb import inference_pb2 as pb

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, _PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
INFER = "/inference.GRPCInferenceService/ModelInfer"
WITH_PREFACE = 0xBF  # in large pieces
WITH_TOKENS = 0xBA  # likewise, and ModelInfer needs one
TOKEN = "Bearer 0123456789abcdef0123456789abcdef"  # the one that is good


def main(directory: Path) -> None:
    """Write everything below the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in seeds():
        (directory / name).write_bytes(data)


def seeds() -> Iterator[tuple[str, bytes]]:
    """Each seed's name and bytes."""
    infer = headers(1) + data(1, framed(message()))
    yield "infer", bytes([WITH_PREFACE]) + infer
    for name, token in {
        "token": TOKEN,
        "token-wrong": TOKEN + "0",
        "token-other": "Basic x",
    }.items():
        asked = headers(1, authorization=token) + data(1, framed(message()))
        again = headers(3, authorization=token) + data(3, framed(message()))
        yield name, bytes([WITH_TOKENS]) + asked + again + headers(5)
    yield "infer-in-pieces", b"\x80" + infer
    yield "infer-drained", b"\x86" + infer + headers(3) + data(3, framed(message()))
    yield "infer-deadline", bytes([WITH_PREFACE]) + headers(1, grpc_timeout="1u") + b"\0"
    yield (
        "many",
        bytes([WITH_PREFACE])
        + b"".join(headers(stream) + data(stream, framed(message())) for stream in range(1, 41, 2)),
    )
    yield "unknown-model", bytes([WITH_PREFACE]) + headers(1) + data(1, framed(message("other")))
    yield "other-call", bytes([WITH_PREFACE]) + headers(7, path="/x.Y/Z") + data(7, framed(b"abc"))
    yield "upstream-lost", b"\x81" + headers(7, path="/x.Y/Z") + data(7, framed(b"abc"))
    yield "compressed", bytes([WITH_PREFACE]) + headers(1, grpc_encoding="gzip") + data(1, b"\1abc")
    yield "too-large", bytes([WITH_PREFACE]) + headers(1) + data(1, b"\0\x7f\xff\xff\xff", 0)
    yield "reset", bytes([WITH_PREFACE]) + (headers(1) + frame(RST_STREAM, 0, 1, b"\0\0\0\x08"))
    yield "pings", bytes([WITH_PREFACE]) + 5 * frame(PING, 0, 0, bytes(8))
    yield "settings", bytes([WITH_PREFACE]) + 3 * frame(SETTINGS, 0, 0, b"\0\4\0\0\0\0")
    yield "goaway", bytes([WITH_PREFACE]) + infer + frame(GOAWAY, 0, 0, bytes(8))
    yield (
        "continuations",
        bytes([WITH_PREFACE])
        + (frame(HEADERS, 0, 1, b"\x82") + 12 * frame(CONTINUATION, 0, 1, b"")),
    )
    yield "windows", bytes([WITH_PREFACE]) + infer + frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff")
    yield (
        "trailers",
        bytes([WITH_PREFACE])
        + (headers(1) + data(1, framed(message()), 0) + frame(HEADERS, 5, 1, literal("x-a", "b"))),
    )
    yield "http1", b"\x3fGET / HTTP/1.1\r\n\r\n"


def message(model: str = "times") -> bytes:
    """A request for y of one row."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 1])
    raw = np.ones((1, 1), np.float32).tobytes()
    return pb.ModelInferRequest(
        model_name=model, inputs=[tensor], raw_input_contents=[raw]
    ).SerializeToString(deterministic=True)


def framed(message: bytes) -> bytes:
    """As gRPC sends it."""
    return struct.pack(">BI", 0, len(message)) + message


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def data(stream: int, payload: bytes, flags: int = END_STREAM) -> bytes:
    """A DATA frame."""
    return frame(DATA, flags, stream, payload)


def headers(stream: int, path: str = INFER, **more: str) -> bytes:
    """A HEADERS frame of a gRPC call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "a",
        "content-type": "application/grpc",
        "te": "trailers",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    block = b"".join(literal(name, value) for name, value in fields.items())
    return frame(HEADERS, END_HEADERS, stream, block)


def literal(name: str, value: str) -> bytes:
    """RFC 7541 6.2.2: a field that is in no table, without Huffman's code."""
    return b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "corpus/connection")
