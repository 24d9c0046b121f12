"""The HTTP application: all routes, behind the guard, each for those whom `permissions` names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Lifespan

from serving.http import classify, openapi, page, panel, quality, v2
from serving.http.guard import Guard
from serving.http.permissions import permitted
from serving.http.services import Services
from serving.http.status import http_exception

PARTS = (v2, classify, quality, panel, openapi, page)


def application(services: Services) -> Starlette:
    """An ASGI application that answers from a server's parts."""
    routes = [permitted(services, each) for part in PARTS for each in part.routes(services)]
    return Application(
        routes, lambda: services.inference.draining, lambda app: services.history.kept()
    )


class Application(Starlette):
    """Routes behind the guard, which itself answers for what goes wrong: Starlette's own layer for
    that would send an answer past it, and have uvicorn log the error once more."""

    def __init__(
        self,
        routes: Sequence[BaseRoute],
        draining: Callable[[], bool],
        lifespan: Lifespan[Starlette] | None = None,
    ) -> None:
        super().__init__(routes=routes, lifespan=lifespan)
        # /v2/ is not /v2: a redirect would name the address that the client gave, whatever it is.
        self.router.redirect_slashes = False
        self._draining = draining

    def build_middleware_stack(self) -> ASGIApp:
        """What Starlette calls before the first request."""
        handlers = {HTTPException: http_exception}
        return Guard(ExceptionMiddleware(self.router, handlers=handlers), self._draining)
