"""What holds for every answer: headers that tell browsers what not to do, and an id of the request.

And what no other site's page may have a browser do here: send anything.
"""

from __future__ import annotations

import asyncio
import ipaddress
import uuid
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import NotAllowed
from serving.http.status import HTTP_STATUS, error_response
from serving.status import status_of

# Everything from here, nothing from elsewhere, and nothing inline. Images that people draw or drop
# are shown on canvases, which is no loading of images.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# Of an id that a client chose, which goes into the log.
LONGEST_ID = 200


class Guard:
    """In front of the application. While the server is `draining`, each answer ends its connection,
    so that the client makes its next one to another server."""

    def __init__(self, app: ASGIApp, draining: Callable[[], bool]) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; or the application's own beginning and end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = scope["state"]["request_id"] = _id_of(headers)
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer.setdefault(name, value)
                answer["X-Request-Id"] = request_id
                if self._draining():
                    answer["Connection"] = "close"
            await send(message)

        app = self._app
        if not scope["query_string"].isascii():  # as the HTTP parser in front has it, too
            app = error_response(400, "the query is not ASCII: escape it")
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and from_elsewhere(headers):
            app = error_response(403, "requests from other sites' pages are not taken")
        try:
            await app(scope, receive, guarded)
        except (asyncio.CancelledError, ClientDisconnect):
            return  # there is nobody to be told: the server ends, or the client has gone
        except Exception as error:
            if started:
                raise  # uvicorn closes the connection, and logs it
            status, details = status_of(error, rpc=scope["path"], request_id=request_id)
            await error_response(HTTP_STATUS[status], details)(scope, receive, guarded)


def _id_of(headers: Headers) -> str:
    """The id that the client chose, where it can be told again as it is; else one of our own."""
    chosen = headers.get("x-request-id", "")[:LONGEST_ID]
    return chosen if chosen and chosen.isascii() and chosen.isprintable() else uuid.uuid4().hex


def from_elsewhere(headers: Headers) -> bool:
    """Whether a browser sent it on behalf of another site: those say so, and nobody else does.

    https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/Sec-Fetch-Site, and Origin for
    browsers without it.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc != headers.get("host")
    except ValueError:  # no URL at all, such as http://[
        return True


def require_no_name(headers: Headers) -> None:
    """Raise NotAllowed unless the server was addressed by number, or as localhost.

    Under a name of its own, another site's page counts as one of ours once that name is made to
    lead here (DNS rebinding); under these, no page does but those of this machine.
    """
    try:
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if host != "localhost":
            ipaddress.ip_address(host)
    except ValueError:
        raise NotAllowed(
            "administration is taken at an IP address or at localhost only: see the Host header"
        ) from None
