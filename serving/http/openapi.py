"""/openapi.json: what there is to ask, for programs."""

from __future__ import annotations

from starlette.routing import BaseRoute

from serving.http.services import Services


def routes(services: Services) -> list[BaseRoute]:
    """The paths of this part."""
    return []
