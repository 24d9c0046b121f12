"""JSON of strangers as values, and values as JSON that everybody can read.

What is malformed is InvalidInput, whatever it is: no JSON, nested too deeply, an object that has a
key twice, numbers of thousands of digits.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from serving.errors import InvalidInput
from serving.http import json_pieces

# Bytes; json takes some 10 ns for each.
MOST_JSON = 4 * 2**20

Object = dict[str, Any]

Value = TypeVar("Value")

_KINDS: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a text",
    int: "a whole number",
    float: "a fraction",
    bool: "true or false",
    type(None): "null",
}


def parsed(body: bytes) -> Any:
    """The value that a JSON text is. NaN, Infinity and -Infinity, which are no JSON but are what
    some write, become texts, as they are in protobuf's."""
    try:
        return json_pieces.decoded(body.decode(), _object, str)
    except RecursionError:
        raise InvalidInput("the JSON is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None
    except ValueError:  # of int()
        raise InvalidInput("the JSON has a number of too many digits") from None


def parsed_object(body: bytes) -> Object:
    """The object that a JSON text is; without a body, one that has nothing."""
    value = parsed(body) if body.strip() else {}
    if type(value) is not dict:
        raise InvalidInput(f"the body must be an object, got {kind_of(value)}")
    return value


def optional(values: Object, name: str, default: Value, where: str) -> Value:
    """What `values` has under the name, of the default's type; the default where that is null or
    not there. `where` is for the message."""
    value = values.get(name)
    if value is None:
        return default
    if type(value) is not type(default):  # true is no 1
        raise InvalidInput(f"{where}: {name!r} must be {kind_of(default)}, got {kind_of(value)}")
    return value


def objects(values: Object, name: str, where: str) -> list[Object]:
    """The objects of an array; none where it is not there."""
    found: list[Object] = optional(values, name, [], where)
    for each in found:
        if type(each) is not dict:
            raise InvalidInput(f"{where}: {name!r} must hold objects, got {kind_of(each)}")
    return found


def kind_of(value: object) -> str:
    """What JSON calls it."""
    return _KINDS[type(value)]


def kinds_of(types: Iterable[type]) -> str:
    """What JSON calls values of these types."""
    return ", ".join(sorted(_KINDS[each] for each in types))


def text(value: Mapping[str, Any] | list[Any]) -> str:
    """JSON without spaces; ValueError for numbers that JSON does not know."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _object(pairs: list[tuple[str, Any]]) -> Object:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise InvalidInput(f"the JSON has {twice!r:.100} twice in one object")
    return found
