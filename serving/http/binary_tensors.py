"""V2's binary tensor data: bytes of tensors behind the JSON of a request or an answer.

`Inference-Header-Content-Length` says how long the JSON is.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

from serving.errors import InvalidInput
from serving.http import strict_json
from serving.http.strict_json import Object

HEADER = "Inference-Header-Content-Length"
# Of a tensor that is in the body, and of a request for one.
SIZE, WANTED, ALL_WANTED = "binary_data_size", "binary_data", "binary_data_output"


def split(body: bytes, json_length: str | None) -> tuple[bytes, memoryview]:
    """The JSON and the tensors' bytes, by what the header says; all is JSON without it."""
    if json_length is None:
        return body, memoryview(b"")
    if not (json_length.isascii() and json_length.isdigit() and len(json_length) < 12):
        raise InvalidInput(f"{HEADER} must be a whole number from 0, got {json_length!r:.40}")
    length = int(json_length)
    if length > len(body):
        raise InvalidInput(f"{HEADER} is {length}, and the body has {len(body)} bytes")
    return body[:length], memoryview(body)[length:]


class Payload:
    """The bytes of a request's tensors, which are taken in the order of its inputs."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._taken = 0

    def take(self, name: str, size: int) -> bytes:
        """The next input's bytes."""
        left = len(self._data) - self._taken
        if not 0 <= size <= left:
            raise InvalidInput(
                f"input {name!r}: {SIZE} is {size}, and {left} bytes of binary data are left"
            )
        self._taken += size
        return bytes(self._data[self._taken - size : self._taken])

    def check_taken(self) -> None:
        """InvalidInput where bytes are left that are no input's."""
        if left := len(self._data) - self._taken:
            raise InvalidInput(f"{left} bytes of binary data are no input's: see {SIZE}")


def size_of(name: str, parameters: Object) -> int | None:
    """How many bytes of an input are binary data, taken out of its parameters; None for JSON."""
    size = strict_json.optional(parameters, SIZE, 0, f"input {name!r}")
    return None if parameters.pop(SIZE, None) is None else size


class Wanted:
    """Which outputs are to come as binary data."""

    def __init__(self, parameters: Object) -> None:
        """By the parameters of a request, of which what it says of that is taken out."""
        self._all = strict_json.optional(parameters, ALL_WANTED, False, "the request")
        parameters.pop(ALL_WANTED, None)
        self._each: list[bool] = []

    def add(self, name: str, parameters: Object) -> None:
        """By those of the next output that is asked for."""
        where = f"output {name!r}"
        self._each.append(strict_json.optional(parameters, WANTED, self._all, where))
        parameters.pop(WANTED, None)

    def __getitem__(self, index: int) -> bool:
        """That of the answer's output at the index."""
        return self._each[index] if self._each else self._all
