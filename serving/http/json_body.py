"""A body of JSON: read, bounded, and parsed where the event loop does not wait for it."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from serving.http.asking import body
from serving.http.services import Services
from serving.http.strict_json import MOST_JSON, parsed


async def json_body(services: Services, request: Request) -> object:
    """What was sent, whatever its declared type: `curl --data` says that it sends a form.

    Raises InvalidInput for what is no JSON; what `asking.body` raises for what is too large.
    """
    most = min(MOST_JSON, services.config.max_message_bytes)
    return await run_in_threadpool(parsed, await body(services, request, most))
