"""A body of JSON: read, bounded, and parsed where the event loop does not wait for it."""

from __future__ import annotations

import json
from typing import NoReturn

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from serving.errors import InvalidInput
from serving.http.asking import body
from serving.http.services import Services

# What takes the interpreter a few hundredths of a second to parse; who sends more has tensors, and
# those have a binary form.
MOST_JSON = 4 * 1024 * 1024

_KINDS = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


async def json_body(services: Services, request: Request, most: int = MOST_JSON) -> object:
    """What was sent, whatever its declared type: `curl --data` says that it sends a form.

    Raises InvalidInput for what is no JSON; what `asking.body` raises for more than `most` bytes.
    """
    sent = await body(services, request, min(most, services.config.max_message_bytes))
    return await run_in_threadpool(parsed, sent)


def parsed(sent: bytes) -> object:
    """The value; InvalidInput for what is no JSON, Infinity and NaN among it."""
    try:
        return json.loads(sent, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InvalidInput(f"the body is not JSON: {why}") from None


def kind(value: object) -> str:
    """What JSON calls it."""
    return _KINDS[type(value)]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
