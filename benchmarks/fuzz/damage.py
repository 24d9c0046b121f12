"""Damage: bytes, JSON values and protobuf messages made wrong, by a random generator alone, so that
a case is known by its number. Structure is mostly kept: what is wrong all over is refused early."""

from __future__ import annotations

import copy
import string
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

WHOLE = (
    *(0, 1, 2, 3, 4, 5, 7, 10, 28, 31, 32, 64, 127, 128, 255, 256, 784, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30),
)
FRACTIONS = (0.0, -0.0, 0.5, 1e-320, 1e38, 3.5e38, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    *("", " ", "0", "1", "-1", "9" * 25, "1e999", "NaN", "Infinity", "true", "null", "%s%n", "{}"),
    *("../../etc/passwd", "/", ".", "..", "a/b", "a\0b", "\n\r", "\t", '"', "'", "\\", ",", "\x7f"),
    *("é", "日本", "\U0001f600" * 1100, "x" * 3000, "\u202e", "\ufffe", "\u2028", "ß" * 200),
)
# The bounds of whole numbers, by what protobuf calls their C++ type.
_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE)


def bytes_of(draw: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """The bytes with one to eight faults."""
    damaged = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        draw.choice(_FAULTS)(draw, damaged, others)
    return bytes(damaged)


def _flip(draw: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _replace(draw: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if data:
        data[draw.randrange(len(data))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x20, 0x2D))


def _insert(draw: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = draw.randrange(len(data) + 1)
    data[at:at] = draw.randbytes(draw.choice((1, 1, 2, 4, 8, 40)))


def _delete(draw: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if data:
        at = draw.randrange(len(data))
        del data[at : at + draw.choice((1, 1, 2, 4, 30, 300))]


def _cut(draw: Random, data: bytearray, others: Sequence[bytes]) -> None:
    del data[draw.randrange(len(data) + 1) :]


def _repeat(draw: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = draw.randrange(len(data) + 1)
    data[at:at] = data[at : at + draw.choice((1, 4, 30, 200))] * draw.choice((1, 2, 20))


def _splice(draw: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if others:
        other = draw.choice(others)
        start = draw.randrange(len(other) + 1)
        at = draw.randrange(len(data) + 1)
        data[at:] = other[start : start + 4096]


_FAULTS: tuple[Callable[[Random, bytearray, Sequence[bytes]], None], ...] = (
    _flip, _flip, _replace, _replace, _insert, _delete, _cut, _repeat, _splice,
)  # fmt: skip


def text(draw: Random, words: Sequence[str]) -> str:
    """One that fits somewhere, or nowhere."""
    kind = draw.random()
    if kind < 0.6 and words:
        return draw.choice(words)
    if kind < 0.8:
        return draw.choice(TEXTS)
    letters = draw.choices(string.printable + "éß日\U0001f600", k=draw.randrange(12))
    return "".join(letters)


def whole(draw: Random) -> int:
    """A number at a bound, or a small one."""
    number = draw.choice(WHOLE) if draw.random() < 0.7 else draw.randrange(300)
    return draw.choice((number, number, number, -number, number - 1))


# JSON


def json_of(draw: Random, value: Any, words: Sequence[str]) -> Any:
    """A copy of the value with one to four faults."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 2, 4))):
        value = _json_fault(draw, value, words)
    return value


def _json_fault(draw: Random, value: Any, words: Sequence[str]) -> Any:
    """The value with a fault somewhere inside, or another in its place."""
    if isinstance(value, dict | list) and value and draw.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draw.choice(keys)
        kind = draw.random()
        if kind < 0.1:
            del value[key]
        elif kind < 0.2 and isinstance(value, dict):
            value[text(draw, words)] = value.pop(key)
        elif kind < 0.2:
            value[key:key] = [value[key]] * draw.choice((1, 2, 30))
        else:
            value[key] = _json_fault(draw, value[key], words)
        return value
    return anything(draw, words)


def anything(draw: Random, words: Sequence[str], depth: int = 3) -> Any:
    """A JSON value of any kind."""
    kind = draw.randrange(8 if depth else 6)
    if kind == 6:
        return [anything(draw, words, depth - 1) for _ in range(draw.randrange(4))]
    if kind == 7:
        keys = [text(draw, words) for _ in range(draw.randrange(4))]
        return {key: anything(draw, words, depth - 1) for key in keys}
    return (
        None,
        draw.random() < 0.5,
        whole(draw),
        draw.choice(FRACTIONS),
        text(draw, words),
        draw.choice(("\ud800", [], {}, "", [[]], 10**400)),
    )[kind]


# Protobuf


def message_of(draw: Random, message: Message, words: Sequence[str]) -> None:
    """Damage a message itself, in one to five fields."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 5))):
        node = _descended(draw, message)
        fields = cast(Sequence[FieldDescriptor], node.DESCRIPTOR.fields)
        if fields:
            _damage_field(draw, node, draw.choice(fields), words)


def _descended(draw: Random, message: Message) -> Message:
    while draw.random() < 0.65:
        inside = [each for each in message.ListFields() if each[0].message_type is not None]
        if not inside:
            break
        field, value = draw.choice(inside)
        if _is_map(field):
            message = value[draw.choice(list(value))]
        else:
            message = draw.choice(value) if field.is_repeated else value
    return message


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _damage_field(
    draw: Random, node: Message, field: FieldDescriptor, words: Sequence[str]
) -> None:
    value: Any = getattr(node, field.name)
    if _is_map(field):
        message_of(draw, value[text(draw, words)], words)
    elif field.is_repeated:
        _damage_repeated(draw, value, field, words)
    elif draw.random() < 0.1:
        node.ClearField(field.name)
    elif field.message_type is not None:
        value.SetInParent()
    else:
        setattr(node, field.name, _scalar(draw, field, value, words))


def _damage_repeated(
    draw: Random, values: Any, field: FieldDescriptor, words: Sequence[str]
) -> None:
    kind = draw.random()
    if values and kind < 0.25:
        del values[draw.randrange(len(values))]
    elif len(values) > 1 and kind < 0.4:
        one, other = draw.sample(range(len(values)), 2)
        kept = copy.deepcopy(values[one])
        if field.message_type is not None:
            values[one].CopyFrom(values[other])
            values[other].CopyFrom(kept)
        else:
            values[one], values[other] = values[other], kept
    elif field.message_type is not None:
        added = values.add()
        if len(values) > 1:
            added.CopyFrom(draw.choice(values[:-1]))
    elif values and kind < 0.8:
        at = draw.randrange(len(values))
        values[at] = _scalar(draw, field, values[at], words)
    else:
        values.extend([_scalar(draw, field, None, words)] * draw.choice((1, 1, 1, 2, 70)))


def _scalar(draw: Random, field: FieldDescriptor, value: Any, words: Sequence[str]) -> Any:
    """Another value of the field's type."""
    if field.cpp_type in _BOUNDS:
        low, high = _BOUNDS[field.cpp_type]
        number = whole(draw)
        return number if low <= number <= high else draw.choice((low, high))
    if field.cpp_type in _FLOATS:
        return draw.choice(FRACTIONS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes_of(draw, value or b"")
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return draw.random() < 0.5
    return text(draw, words)
