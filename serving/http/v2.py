"""V2's REST twin: the same protocol as gRPC's, in JSON and binary tensors."""

from __future__ import annotations

from starlette.routing import BaseRoute

from serving.http.services import Services


def routes(services: Services) -> list[BaseRoute]:
    """The paths of this part."""
    return []
