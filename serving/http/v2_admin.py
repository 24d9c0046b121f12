"""V2's REST twin: what is in the repository, and what an administrator changes in a server.

Who may is asked as over gRPC, by the role of a token, which no other page has, or by the peer's
address. A page that a browser was led to by a name (DNS rebinding) speaks from that very address,
so that without a token changes are taken under no name but localhost.

https://github.com/triton-inference-server/server/tree/main/docs/protocol
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from serving.authorization import Asker
from serving.errors import InvalidInput
from serving.http import asking, strict_json
from serving.http.guard import require_no_name
from serving.http.messages_json import as_json, listed
from serving.http.services import Services
from serving.http.status import answering
from serving.http.strict_json import Object
from serving.pb import inference_pb2 as pb
from serving.tokens import Need

# Bytes of settings.
MOST_SETTINGS = 64 * 2**10

_LIST = "trace_level"  # the one setting of traces that is several values


def routes(services: Services) -> list[BaseRoute]:
    """The paths of this part."""
    admin = _Admin(services)
    return [
        Route("/v2/repository/index", answering(admin.index), methods=["POST"]),
        Route("/v2/repository/models/{model}/load", answering(admin.load), methods=["POST"]),
        Route("/v2/repository/models/{model}/unload", answering(admin.unload), methods=["POST"]),
        *(
            Route(path, answering(admin.trace), methods=["GET", "POST"])
            for path in ("/v2/trace/setting", "/v2/models/{model}/trace/setting")
        ),
        Route("/v2/logging", answering(admin.logging), methods=["GET", "POST"]),
    ]


class _Admin:
    """The endpoints of a server. Changes run on threads: loading a model can take long, and all
    workers are told of each."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._v2 = services.v2

    async def index(self, request: Request) -> Response:
        """Every version, or with `ready` those that are served: an array."""
        ready = strict_json.optional(await self._given(request), "ready", False, "the request")
        asked = pb.RepositoryIndexRequest(ready=ready)
        found = self._v2.RepositoryIndex(asked, asking.asker_of(request))
        return JSONResponse(listed(found.models))

    async def load(self, request: Request) -> Response:
        """Load a model."""
        asked = pb.RepositoryModelLoadRequest(model_name=request.path_params["model"])
        _name_parameters(asked, await self._given(request))
        return await self._changed(request, self._v2.RepositoryModelLoad, asked)

    async def unload(self, request: Request) -> Response:
        """Unload a model."""
        asked = pb.RepositoryModelUnloadRequest(model_name=request.path_params["model"])
        _name_parameters(asked, await self._given(request))
        return await self._changed(request, self._v2.RepositoryModelUnload, asked)

    async def trace(self, request: Request) -> Response:
        """What holds, after what was given has been changed; null sets a setting back."""
        asked = pb.TraceSettingRequest(model_name=request.path_params.get("model", ""))
        for name, value in (await self._given(request)).items():
            asked.settings[_sound(name)].value.extend(_texts(name, value))
        found = await self._told(request, self._v2.TraceSetting, asked, bool(asked.settings))
        values = {name: list(each.value) for name, each in found.settings.items()}
        return JSONResponse({k: v if k == _LIST else v[0] for k, v in values.items()})

    async def logging(self, request: Request) -> Response:
        """What holds, after what was given has been changed."""
        asked = pb.LogSettingsRequest()
        for name, value in (await self._given(request)).items():
            _set_log(asked.settings[_sound(name)], name, value)
        found = await self._told(request, self._v2.LogSettings, asked, bool(asked.settings))
        chosen = {
            name: each.WhichOneof("parameter_choice") for name, each in found.settings.items()
        }
        return JSONResponse({n: getattr(found.settings[n], str(chosen[n])) for n in chosen})

    async def _given(self, request: Request) -> Object:
        """The body's object; a request without one asks for nothing special."""
        if request.method != "POST":
            return {}
        return strict_json.parsed_object(await asking.body(self._services, request, MOST_SETTINGS))

    async def _changed(
        self, request: Request, change: Callable[[Any, Asker], Message], asked: Message
    ) -> Response:
        return JSONResponse(as_json(await self._told(request, change, asked, True)))

    async def _told(
        self, request: Request, rpc: Callable[[Any, Asker], Any], asked: Message, changes: bool
    ) -> Any:
        asker = asking.asker_of(request)
        if changes and Need.ADMIN not in asker.roles:
            require_no_name(request.headers)
        return await run_in_threadpool(rpc, asked, asker)


def _name_parameters(
    asked: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest, given: Object
) -> None:
    """By their names alone it is decided which are taken, and none is of any effect."""
    parameters: Object = strict_json.optional(given, "parameters", {}, "the request")
    for name in parameters:
        asked.parameters[_sound(name)].SetInParent()


def _texts(name: str, value: object) -> list[str]:
    """A setting's values: texts or whole numbers, one or several, or null for none."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if set(map(type, values)) - {str, int}:
        raise InvalidInput(f"trace setting {name!r:.100} must be a text, or an array of texts")
    return [_sound(str(each)) for each in values]


def _set_log(setting: pb.LogSettingsRequest.SettingValue, name: str, value: object) -> None:
    if isinstance(value, bool):
        setting.bool_param = value
    elif isinstance(value, int) and 0 <= value < 2**32:
        setting.uint32_param = value
    elif isinstance(value, str):
        setting.string_param = _sound(value)
    else:
        raise InvalidInput(
            f"log setting {name!r:.100} must be true, false, a text or a whole number of 32 bits"
        )


def _sound(text: str) -> str:
    """The text, unless it is none that can be sent on."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput("a text of the JSON holds half of a surrogate pair") from None
    return text
