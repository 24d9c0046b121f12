"""/v1/classify: an image of a digit in, what each model says of it out."""

from __future__ import annotations

from starlette.routing import BaseRoute

from serving.http.services import Services


def routes(services: Services) -> list[BaseRoute]:
    """The paths of this part."""
    return []
