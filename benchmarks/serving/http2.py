"""As much HTTP/2 as a client needs that asks for nothing; no I/O here. RFC 9113."""

from __future__ import annotations

import struct

SETTINGS, WINDOW_UPDATE = 4, 8
ACK = 0x1
DEFAULT_WINDOW = 65535

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_LARGEST_WINDOW = 2**31 - 1
_INITIAL_WINDOW_SIZE = 4


class Broken(Exception):
    """The server ended the connection."""


def opening() -> bytes:
    """What a client sends first: windows that never fill."""
    settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
    window = struct.pack(">I", _LARGEST_WINDOW - DEFAULT_WINDOW)
    return _PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, window)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame's bytes."""
    length = len(payload)
    return struct.pack(">BHBBI", length >> 16, length & 0xFFFF, kind, flags, stream) + payload
