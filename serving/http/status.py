"""The table from canonical statuses to HTTP's, and errors as the JSON that V2 has for them.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from __future__ import annotations

import functools
import math
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serving.errors import NoRoom
from serving.replies import Refusal
from serving.status import status_of

# https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}

Endpoint = Callable[[Request], Awaitable[Response]]


class Refused(Exception):
    """A request that the models' side refused, with the status and the words that it chose."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.details)
        self.refusal = refusal


def answering(endpoint: Endpoint) -> Endpoint:
    """The endpoint, whose errors become answers; each route is one."""

    @functools.wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except HTTPException:
            raise  # the application's, which has an answer for it
        except Refused as error:
            return refusal(error.refusal)
        except Exception as error:
            facts = {
                "rpc": request.scope["path"],
                "request_id": getattr(request.state, "request_id", ""),
            }
            status, details = status_of(error, **facts)
            retry_after = error.retry_after if isinstance(error, NoRoom) else None
            return error_response(HTTP_STATUS[status], details, retry_after)

    return answer


def refusal(refused: Refusal) -> Response:
    """What a transport was told, over HTTP."""
    return error_response(HTTP_STATUS[refused.status], refused.details, refused.retry_after)


def error_response(status: int, details: str, retry_after: float | None = None) -> Response:
    """`{"error": details}`; `retry_after` is in seconds, and HTTP knows whole ones only."""
    headers = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": details}, status, headers)


async def http_exception(request: Request, error: Exception) -> Response:
    """For Starlette's own: no such path, or not by this method."""
    assert isinstance(error, HTTPException)
    details = f"{request.method} {request.scope['path']}: {error.detail}"
    response = error_response(error.status_code, details)
    response.headers.update(error.headers or {})
    return response
