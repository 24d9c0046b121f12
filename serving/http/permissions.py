"""Which path needs what of a caller's token; asked before a request's body is read."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from serving.errors import ServingError
from serving.http.asking import caller_of, tokens_of
from serving.http.services import Services
from serving.http.status import answering, refusal
from serving.tokens import Need

_MODEL = "/v2/models/{model}"
_VERSION = _MODEL + "/versions/{version}"

# As `authorization` has it of the same RPCs. What the page is made of is for all, and what it asks
# is not.
PATHS: Mapping[str, Need] = {
    "/": Need.NOTHING,
    "/static/{name}": Need.NOTHING,
    "/openapi.json": Need.NOTHING,
    "/v2": Need.TOKEN,
    "/v2/health/live": Need.NOTHING,
    "/v2/health/ready": Need.NOTHING,
    "/v2/models/stats": Need.TOKEN,
    **{
        path + what: need
        for path in (_MODEL, _VERSION)
        for what, need in {
            "": Need.TOKEN,
            "/ready": Need.NOTHING,
            "/config": Need.TOKEN,
            "/stats": Need.TOKEN,
            "/infer": Need.INFER,
        }.items()
    },
    "/v2/repository/index": Need.TOKEN,
    "/v2/repository/models/{model}/load": Need.ADMIN,
    "/v2/repository/models/{model}/unload": Need.ADMIN,
    "/v2/trace/setting": Need.TOKEN,  # to read them; the servicer asks for more
    "/v2/models/{model}/trace/setting": Need.TOKEN,
    "/v2/logging": Need.TOKEN,
    **{
        f"/v2/{kind}sharedmemory/{what}": Need.TOKEN
        for kind in ("system", "cuda")
        for what in (
            "status",
            "region/{name}/status",
            "region/{name}/register",
            "unregister",
            "region/{name}/unregister",
        )
    },
    "/v1/classify": Need.INFER,
    "/v1/feedback": Need.FEEDBACK,
    "/v1/quality": Need.TOKEN,
    "/v1/overview": Need.TOKEN,
    "/v1/models/{name}/versions/{version}/report": Need.TOKEN,
}


def permitted(services: Services, route: BaseRoute) -> Route:
    """The route, for those only whose token allows it. KeyError where that was not decided."""
    assert isinstance(route, Route)
    need = PATHS[route.path]
    if need is Need.NOTHING or not services.authorization.required:
        return route
    endpoint = route.endpoint
    rpc = "Classify" if route.path == "/v1/classify" else "ModelInfer"

    @functools.wraps(endpoint)
    async def checked(request: Request) -> Response:
        tokens = tokens_of(request)
        try:
            services.authorization.require(need, tokens)
        except ServingError as error:
            if need is not Need.INFER:
                raise
            caller = functools.partial(caller_of, rpc, request)
            return refusal(services.inference.refuse(error, caller=caller))
        request.state.roles = services.authorization.roles(tokens)
        response: Response = await endpoint(request)
        return response

    return Route(route.path, answering(checked), methods=list(route.methods or ()))
