"""JSON whose long arrays of numbers are decoded in pieces, between which other threads run.

`json` decodes a text in one go: of 4 MiB of numbers that is 40 ms in which no batch of any model
can begin or end. Values and errors are json's: what is not as regular as tensors are written is
decoded in one go after all.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from typing import Any

# Characters that are decoded in one go: about 0.2 ms of numbers.
PIECE = 1 << 14
# A member's value that is an array, nested or not, without texts and objects; not a short one.
_ARRAY = re.compile(rf':\s*(\[[^{{}}":]{{{PIECE},}}\])')

Hook = Callable[[list[tuple[str, Any]]], Any]
Constant = Callable[[str], Any]


def decoded(text: str, hook: Hook, constant: Constant) -> Any:
    """What json.loads gives, and raises, with `hook` for `object_pairs_hook`, and `constant` for
    `parse_constant`."""
    try:
        return _in_pieces(text, hook, constant)
    except ValueError:  # told of by its place in the whole
        return json.loads(text, object_pairs_hook=hook, parse_constant=constant)


def _in_pieces(text: str, hook: Hook, constant: Constant) -> Any:
    """The arrays, then what is left of the text, where each has a name that nobody can guess."""
    secret = secrets.token_hex(16)
    arrays: dict[str, list[Any]] = {}

    def named(found: re.Match[str]) -> str:
        name = f"{secret}-{len(arrays)}"
        arrays[name] = _array(found[1], constant)
        return f':"{name}"'

    def put_back(pairs: list[tuple[str, Any]]) -> Any:
        return hook([(key, arrays.get(v, v) if type(v) is str else v) for key, v in pairs])

    left = _ARRAY.sub(named, text)
    hook_of_left = put_back if arrays else hook
    return json.loads(left, object_pairs_hook=hook_of_left, parse_constant=constant)


def _array(text: str, constant: Constant) -> list[Any]:
    """Its elements; ValueError where they are not nested alike."""
    depth = len(text) - len(text.lstrip("["))
    comma = "]" * (depth - 1) + ","  # behind each element, and nowhere within one
    values: list[Any] = []
    at, end = 1, len(text) - 1
    while end - at > PIECE:
        cut = text.rfind(comma, at, at + PIECE)
        if cut < 0:  # an element that is longer, or spaces in between
            cut = text.index(comma, at)
        cut += depth - 1
        values += _some(text[at:cut], constant)
        at = cut + 1
    return values + _some(text[at:end], constant)


def _some(text: str, constant: Constant) -> list[Any]:
    found: list[Any] = json.loads(f"[{text}]", parse_constant=constant)
    if not found:
        raise ValueError("nothing stands between two commas")
    return found
