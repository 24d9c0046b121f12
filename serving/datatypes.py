"""The V2 datatypes, and the raw bytes of a tensor ↔ an array. Knows no protobuf.

Text: the elements of a BYTES tensor are UTF-8, `str` in the arrays, as ONNX's strings are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.errors import InvalidInput

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Datatype:
    """A V2 datatype: its array type, and the field that holds it in typed contents, if any."""

    name: str
    dtype: np.dtype[np.generic]
    contents: str | None


DATATYPES: dict[str, Datatype] = {
    name: Datatype(name, np.dtype(dtype), contents)
    for name, dtype, contents in [
        ("BOOL", "bool", "bool_contents"),
        ("INT8", "int8", "int_contents"),
        ("INT16", "<i2", "int_contents"),
        ("INT32", "<i4", "int_contents"),
        ("INT64", "<i8", "int64_contents"),
        ("UINT8", "uint8", "uint_contents"),
        ("UINT16", "<u2", "uint_contents"),
        ("UINT32", "<u4", "uint_contents"),
        ("UINT64", "<u8", "uint64_contents"),
        ("FP16", "<f2", None),
        ("FP32", "<f4", "fp32_contents"),
        ("FP64", "<f8", "fp64_contents"),
        ("BYTES", "object", "bytes_contents"),
    ]
}
_LENGTH = struct.Struct("<I")  # before each element of a raw BYTES tensor


def decode_raw(name: str, kind: Datatype, shape: tuple[int, ...], data: bytes) -> Array:
    """Array of one tensor's raw bytes; `name` is for the message of InvalidInput."""
    if kind.name == "BYTES":
        return text_array(name, _split_elements(name, data), shape)
    expected = math.prod(shape) * kind.dtype.itemsize
    if len(data) != expected:
        raise InvalidInput(
            f"input {name!r}: {kind.name} {list(shape)} takes {expected} bytes, got {len(data)}"
        )
    array = np.frombuffer(data, kind.dtype).reshape(shape)
    if kind.name == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
        raise InvalidInput(f"input {name!r}: BOOL takes bytes 0 and 1 only")
    return array


def encode_raw(kind: Datatype, array: Array) -> bytes:
    """The tensor's elements in row-major order, little-endian."""
    if kind.name != "BYTES":
        return array.astype(kind.dtype, copy=False).tobytes()
    elements = [str(element).encode() for element in array.flat]
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


def text_array(name: str, elements: Sequence[bytes], shape: tuple[int, ...]) -> Array:
    """Array of a BYTES tensor's elements; InvalidInput if too few, too many or no UTF-8."""
    if len(elements) != math.prod(shape):
        raise InvalidInput(
            f"input {name!r}: BYTES {list(shape)} takes {math.prod(shape)} elements, "
            f"got {len(elements)}"
        )
    try:
        texts = [element.decode() for element in elements]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {name!r}: BYTES elements must be UTF-8: {error}") from None
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(shape)


def _split_elements(name: str, data: bytes) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + _LENGTH.size
        if start > len(data):
            raise InvalidInput(f"input {name!r}: BYTES element {len(elements)} has no length")
        at = start + _LENGTH.unpack_from(data, at)[0]
        if at > len(data):
            raise InvalidInput(
                f"input {name!r}: BYTES element {len(elements)} takes {at - start} bytes, "
                f"got {len(data) - start}"
            )
        elements.append(data[start:at])
    return elements
