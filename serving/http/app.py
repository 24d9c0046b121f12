"""The HTTP application: all routes, behind the guard."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from serving.http import classify, openapi, page, panel, quality, v2
from serving.http.guard import Guard
from serving.http.services import Services
from serving.http.status import http_exception

PARTS = (v2, classify, quality, panel, openapi, page)


def application(services: Services) -> Starlette:
    """An ASGI application that answers from a server's parts."""
    return Starlette(
        routes=[route for part in PARTS for route in part.routes(services)],
        middleware=[Middleware(Guard)],
        exception_handlers={HTTPException: http_exception},
        lifespan=lambda app: services.history.kept(),
    )
