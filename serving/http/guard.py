"""What holds for every answer: headers that tell browsers what not to do, and an id of the request.

And what no other site's page may have a browser do here: send anything.
"""

from __future__ import annotations

import ipaddress
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import NotAllowed
from serving.http.status import error_response

# Everything from here, nothing from elsewhere, and nothing inline. Images that people draw or drop
# are blobs of the page's own.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
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
    """In front of the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")[:LONGEST_ID] or uuid.uuid4().hex

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer.setdefault(name, value)
                answer["X-Request-Id"] = request_id
            await send(message)

        app = self._app
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and from_elsewhere(headers):
            app = error_response(403, "requests from other sites' pages are not taken")
        await app(scope, receive, guarded)


def from_elsewhere(headers: Headers) -> bool:
    """Whether a browser sent it on behalf of another site: those say so, and nobody else does.

    https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/Sec-Fetch-Site, and Origin for
    browsers without it.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


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
