"""As much HTTP/2 as sending one gRPC request over and over takes; no I/O here.

Headers are literal once per connection and indices into the dynamic table after that, as gRPC's
own clients send them. Our side allows the server no dynamic table, so that the bytes of
`grpc-status` stand readable in the trailers. RFC 9113 and 7541.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
FRAME_HEADER = 9
DEFAULT_WINDOW = 65535
MAX_FRAME = 16384

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_LARGEST_WINDOW = 2**31 - 1
_HEADER_TABLE_SIZE, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 1, 3, 4
# The name as it is, and as HPACK's Huffman code has it, which nghttp2 prefers; digits gain nothing
# from that code, so that the value is always plain.
_STATUS_NAMES = (b"grpc-status", bytes.fromhex("9acac8b21234da8f"))


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Broken(Exception):
    """The server sent what this client does not understand, or ended the connection."""


def opening() -> bytes:
    """What a client sends first: no dynamic table for the server, windows that never fill."""
    settings = struct.pack(">HIHI", _HEADER_TABLE_SIZE, 0, _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
    window = struct.pack(">I", _LARGEST_WINDOW - DEFAULT_WINDOW)
    return _PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, window)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame's bytes."""
    length = len(payload)
    return struct.pack(">BHBBI", length >> 16, length & 0xFFFF, kind, flags, stream) + payload


def request(path: str, authority: str, stream: int, body: bytes) -> bytes:
    """HEADERS and DATA of a gRPC call; the first stream of a connection is 1."""
    block = _first_headers(path, authority) if stream == 1 else b"\x83\x86\xc1\xc0\xbf\xbe"
    return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, body)


def split(received: bytearray) -> Iterator[Frame]:
    """Take the complete frames off the front of what was received."""
    at = 0
    while len(received) >= at + FRAME_HEADER:
        high, low, kind, flags, stream = struct.unpack_from(">BHBBI", received, at)
        end = at + FRAME_HEADER + (high << 16 | low)
        if len(received) < end:
            break
        yield Frame(kind, flags, stream & 0x7FFFFFFF, bytes(received[at + FRAME_HEADER : end]))
        at = end
    del received[:at]


def grpc_status(trailers: bytes) -> int:
    """The status code in a block of trailers; Broken where there is none."""
    for name in _STATUS_NAMES:
        at = trailers.find(name)
        if at >= 0:
            start = at + len(name) + 1
            return int(trailers[start : start + trailers[start - 1]])
    raise Broken(f"trailers without grpc-status: {trailers!r}")


def settings(payload: bytes) -> dict[int, int]:
    """Identifier → value."""
    return dict(struct.iter_unpack(">HI", payload))


def most_streams(values: dict[int, int]) -> int:
    """How many requests may be in flight on the connection."""
    return values.get(_MAX_CONCURRENT_STREAMS, _LARGEST_WINDOW)


def _first_headers(path: str, authority: str) -> bytes:
    """:method POST, :scheme http, and four fields that enter the table at 65, 64, 63, 62."""
    return b"".join(
        (
            b"\x83\x86",
            b"\x44" + _text(path),
            b"\x41" + _text(authority),
            b"\x5f" + _text("application/grpc"),
            b"\x40" + _text("te") + _text("trailers"),
        )
    )


def _text(text: str) -> bytes:
    encoded = text.encode()
    assert len(encoded) < 127  # longer ones take a second byte of length
    return bytes([len(encoded)]) + encoded
