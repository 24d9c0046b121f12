"""A tensor's `data` in JSON ↔ its raw bytes.

In a request, elements are nested as the shape is, or flat; in an answer they are flat. What JSON
has no number for is a text, as in protobuf's JSON: "NaN", "Infinity", "-Infinity"; numpy and
JavaScript's Number() read those. FP16 is refused both ways, as V2 and Triton have it.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from serving.datatypes import Array, Datatype, decode_raw, encode_raw
from serving.errors import InvalidInput
from serving.http import strict_json

# Elements that are read or written in one go: others of Python's threads wait meanwhile.
_CHUNK = 2**12

_NO_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# By the kind of a datatype's array type.
_TAKEN: dict[str, tuple[set[type], str]] = {
    "b": ({bool}, "true or false"),
    "i": ({int}, "whole numbers"),
    "u": ({int}, "whole numbers"),
    "f": ({int, float, str}, "numbers"),
    "O": ({str}, "texts"),
}


def raw_bytes(name: str, kind: Datatype, shape: Sequence[int], data: list[Any]) -> bytes:
    """The bytes of an input's data; InvalidInput where it is not what datatype and shape say."""
    if kind.name == "FP16":
        raise InvalidInput(f"input {name!r}: FP16 is taken as binary data only, not in JSON")
    flat = _flat(name, shape, data)
    if len(flat) != math.prod(shape):
        raise InvalidInput(
            f"input {name!r}: shape {list(shape)} takes {math.prod(shape)} elements in data, "
            f"got {len(flat)}"
        )
    chunks = (flat[at : at + _CHUNK] for at in range(0, len(flat), _CHUNK))
    return b"".join(encode_raw(kind, _array(name, kind, each)) for each in chunks)


def data_text(name: str, kind: Datatype, shape: Sequence[int], raw: bytes) -> str:
    """The JSON of an output's data; InvalidInput where it can be had as binary data only."""
    if kind.name == "FP16":
        raise InvalidInput(f"output {name!r}: FP16 is given as binary data only, not in JSON")
    flat = decode_raw(name, kind, tuple(shape), raw).reshape(-1)
    chunks = (flat[at : at + _CHUNK] for at in range(0, flat.size, _CHUNK))
    return f"[{','.join(strict_json.text(_values(each))[1:-1] for each in chunks)}]"


def _flat(name: str, shape: Sequence[int], data: list[Any]) -> list[Any]:
    """The elements in row-major order."""
    if not data or type(data[0]) is not list:
        return data
    for size in shape[1:]:
        if set(map(type, data)) - {list} or set(map(len, data)) - {size}:
            break
        data = list(chain.from_iterable(data))
    if data and type(data[0]) is list:
        raise InvalidInput(f"input {name!r}: data is nested otherwise than shape {list(shape)}")
    return data


def _array(name: str, kind: Datatype, flat: list[Any]) -> Array:
    taken, words = _TAKEN[kind.dtype.kind]
    if strange := set(map(type, flat)) - taken:
        raise InvalidInput(
            f"input {name!r}: {kind.name} takes {words} in data, "
            f"got {strict_json.kinds_of(strange)}"
        )
    if kind.dtype.kind == "O":
        array = np.empty(len(flat), object)
        array[:] = flat
        return array
    if kind.dtype.kind == "f":
        return _floats(name, kind, flat)
    if kind.dtype.kind in "iu" and flat:
        bounds = np.iinfo(kind.dtype)  # type: ignore[type-var]
        if min(flat) < bounds.min or max(flat) > bounds.max:
            raise _beyond(name, kind)
    return np.array(flat, kind.dtype)


def _floats(name: str, kind: Datatype, flat: list[Any]) -> Array:
    texts = {each for each in flat if type(each) is str}
    if unknown := texts - set(_NO_NUMBERS):
        raise InvalidInput(
            f"input {name!r}: {kind.name} takes numbers, 'NaN', 'Infinity' and '-Infinity' in "
            f"data, got {min(unknown)!r:.40}"
        )
    try:
        values = [_NO_NUMBERS.get(each, each) for each in flat] if texts else flat
        doubles = np.array(values, np.float64)
    except OverflowError:  # a whole number of hundreds of digits
        raise _beyond(name, kind) from None
    with np.errstate(over="ignore"):
        array = doubles.astype(kind.dtype)
    if np.isinf(array).sum() != sum(map(flat.count, texts - {"NaN"})):
        raise _beyond(name, kind)
    return array


def _beyond(name: str, kind: Datatype) -> InvalidInput:
    return InvalidInput(f"input {name!r}: data holds a value beyond {kind.name}")


def _values(part: Array) -> list[Any]:
    values: list[Any] = part.tolist()
    if part.dtype.kind == "f":
        for at in np.flatnonzero(~np.isfinite(part)):
            values[at] = _name(values[at])
    return values


def _name(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
