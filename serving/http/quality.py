"""/v1/feedback and /v1/quality: true labels in, how right each version was out."""

from __future__ import annotations

from starlette.routing import BaseRoute

from serving.http.services import Services


def routes(services: Services) -> list[BaseRoute]:
    """The paths of this part."""
    return []
