"""/v1/overview: models, versions, and how they did over the last minutes, for the page."""

from __future__ import annotations

from starlette.routing import BaseRoute

from serving.http.services import Services


def routes(services: Services) -> list[BaseRoute]:
    """The paths of this part."""
    return []
