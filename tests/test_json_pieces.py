"""JSON in pieces gives what `json` gives, and refuses what it refuses, in its words."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from serving.http.json_pieces import PIECE, decoded

NUMBERS = list(range(3 * PIECE))


def outcome(decode: Any, text: str) -> str:
    try:
        return repr(decode(text))
    except ValueError as error:
        return f"refused: {error}"


def _in_one_go(text: str) -> Any:
    return json.loads(text, parse_constant=str)


def alike(text: str) -> bool:
    return outcome(lambda text: decoded(text, dict, str), text) == outcome(_in_one_go, text)


@pytest.mark.parametrize("shape", [(-1,), (-1, 28), (-1, 28, 28), (1, -1), (3, -1, 1)])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n", " : ")])
def test_tensors_are_what_json_makes_of_them(
    shape: tuple[int, ...], separators: tuple[str, str]
) -> None:
    data = np.arange(28 * 28 * 60, dtype=float).reshape(shape).tolist()
    body = {"id": "a", "inputs": [{"data": data, "name": "x"}, {"data": [1], "more": data}]}
    text = json.dumps(body, separators=separators)
    assert decoded(text, dict, str) == body


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5000", "here"),
        ("5000", ""),
        ("5000,", "5000,,"),
        ("5000,", "5000 "),
        ("5000,", "5000],"),
        ("5000,", "[5000],"),
        ("5000,", "5000,["),
        ("5000,", "05000,"),
        ("5000,", "NaN,"),
        ("5000,", "-Infinity,1e999,1.5E-3,null,true,"),
        ("5000,", f"1.{'1' * 2 * PIECE},"),
        ("5000,", f"{'1' * 5000},"),
        ("5000,", f"5000,{' ' * 2 * PIECE}"),
        ("5000,", f'5000,"a, [b] \\" {{c}}:[{"1," * PIECE}]",'),
        ("[0,", "[,"),
        ("[0,", "[[],"),
        ("[0,", "[[[[0]]],"),
        ("]}", ",]}"),
        ("]}", ""),
        ("]}", "]]}"),
        ("]}", "]}}"),
        ('{"data":', '{"data":1,"data":'),
        ('{"data":', '{"data"'),
        ('{"data":', '{"text":":","data":'),
        ('{"data":', '[{"data":'),
    ],
)
def test_whatever_else_it_is_json_decides(one: str, other: str) -> None:
    text = json.dumps({"data": NUMBERS}, separators=(",", ":"))
    assert one in text
    assert alike(text.replace(one, other, 1))


def test_objects_are_made_by_the_hook_from_all_their_pairs() -> None:
    text = json.dumps({"data": NUMBERS, "more": {"a": 1}})
    seen = []

    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen.append([key for key, _ in pairs])
        return dict(pairs)

    assert decoded(text, hook, str) == {"data": NUMBERS, "more": {"a": 1}}
    assert seen == [["a"], ["data", "more"]]
