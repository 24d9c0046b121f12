"""V2's REST twin: health, metadata and inference; `v2_admin` has what changes the server.

Ready answers 200, or 503 as KServe does: what Kubernetes, proxies and clients take for "not now".
(Triton has 400 there; its clients look for 200 only.) Bodies are the messages that V2's text shows.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from serving.errors import NotSupported
from serving.http import asking, binary_tensors, encodings, infer_json, v2_admin
from serving.http.asking import asker_of
from serving.http.messages_json import as_json
from serving.http.services import Services
from serving.http.status import Endpoint, Refused, answering
from serving.http.strict_json import MOST_JSON
from serving.pb import inference_pb2 as pb
from serving.replies import Refusal, Reply
from serving.servicer import NO_SHARED_MEMORY
from serving.transport import timing_metadata

MODEL = "/v2/models/{model}"
VERSION = MODEL + "/versions/{version}"
# What only HTTP needs one for: in gRPC tensors are binary anyway. Its raw binary request, which has
# no JSON at all, is not taken: of a batch, the shape would have to be guessed from the length.
EXTENSIONS = ("binary_tensor_data",)

Given = ParamSpec("Given")
Made = TypeVar("Made")


def routes(services: Services) -> list[BaseRoute]:
    """The paths of this part."""
    v2 = _V2(services)
    return [
        _get("/v2", v2.server_metadata),
        _get("/v2/health/live", v2.live),
        _get("/v2/health/ready", v2.ready),
        _get("/v2/models/stats", v2.statistics),  # before that of a model of the name
        *(route for path in (MODEL, VERSION) for route in v2.of_model(path)),
        *v2_admin.routes(services),
        *(
            Route(f"/v2/{kind}sharedmemory/{path}", answering(_no_shared_memory), methods=[method])
            for kind in ("system", "cuda")
            for method, path in (
                ("GET", "status"),
                ("GET", "region/{name}/status"),
                ("POST", "region/{name}/register"),
                ("POST", "unregister"),
                ("POST", "region/{name}/unregister"),
            )
        ),
    ]


class _V2:
    """The endpoints of a server. What waits for nothing runs on the event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._v2 = services.v2

    def of_model(self, path: str) -> list[Route]:
        """The paths of one model, or of one version."""
        return [
            _get(path, self.metadata),
            _get(f"{path}/ready", self.model_ready),
            _get(f"{path}/config", self.config),
            _get(f"{path}/stats", self.statistics),
            Route(f"{path}/infer", answering(self.infer), methods=["POST"]),
        ]

    async def live(self, request: Request) -> Response:
        """200: the process answers."""
        return JSONResponse(as_json(self._v2.ServerLive(pb.ServerLiveRequest(), asker_of(request))))

    async def ready(self, request: Request) -> Response:
        """200 or 503."""
        found = self._v2.ServerReady(pb.ServerReadyRequest(), asker_of(request))
        return JSONResponse(as_json(found), 200 if found.ready else 503)

    async def model_ready(self, request: Request) -> Response:
        """200, or 503, also for a model that is not known, as gRPC says "not ready" of both."""
        name, version = _model(request)
        asked = pb.ModelReadyRequest(name=name, version=version)
        found = self._v2.ModelReady(asked, asker_of(request))
        return JSONResponse({"name": name, **as_json(found)}, 200 if found.ready else 503)

    async def server_metadata(self, request: Request) -> Response:
        """Name, version, and extensions."""
        found = as_json(self._v2.ServerMetadata(pb.ServerMetadataRequest(), asker_of(request)))
        return JSONResponse({**found, "extensions": [*found["extensions"], *EXTENSIONS]})

    async def metadata(self, request: Request) -> Response:
        """A model's."""
        name, version = _model(request)
        asked = pb.ModelMetadataRequest(name=name, version=version)
        return JSONResponse(as_json(self._v2.ModelMetadata(asked, asker_of(request))))

    async def config(self, request: Request) -> Response:
        """A model's."""
        name, version = _model(request)
        asked = pb.ModelConfigRequest(name=name, version=version)
        return JSONResponse(as_json(self._v2.ModelConfig(asked, asker_of(request)).config))

    async def statistics(self, request: Request) -> Response:
        """A model's, or all; on a thread, as it reads the counters' files."""
        name, version = _model(request)
        asked = pb.ModelStatisticsRequest(name=name, version=version)
        found = await run_in_threadpool(self._v2.ModelStatistics, asked, asker_of(request))
        return JSONResponse(as_json(found))

    async def infer(self, request: Request) -> Response:
        """An answer in JSON, with binary data behind it where that was asked for."""
        asking.admit(self._services, request)
        name, version = _model(request)
        with asking.counted(self._services, request):
            header, data = await self._read(request)
            size = len(header) + len(data)
            asked = await _translated(size, infer_json.asked, name, version, header, data)
        (outcome,) = await asking.ask(self._services, request, [asked.message])
        if isinstance(outcome, Refusal):
            raise Refused(outcome)
        encoding = encodings.wanted(request.headers.get("accept-encoding", ""))
        return await _translated(len(outcome.message), _answer, outcome, asked.binary, encoding)

    async def _read(self, request: Request) -> tuple[bytes, memoryview]:
        """The JSON and the binary data of a request."""
        json_length = request.headers.get(binary_tensors.HEADER)
        most = self._services.config.max_message_bytes
        instead = ""
        if json_length is None and most > MOST_JSON:
            most = MOST_JSON
            instead = f", which is for JSON; with {binary_tensors.HEADER} it may be larger"
        body = await asking.body(self._services, request, most, instead)
        encoding = request.headers.get("content-encoding", "").lower()
        if encoding:
            inflate = partial(encodings.inflated, body, encoding, most, instead)
            body = await run_in_threadpool(inflate)
        header, data = binary_tensors.split(body, json_length)
        if len(header) > MOST_JSON:
            raise HTTPException(413, f"the JSON is larger than {MOST_JSON} bytes")
        return header, data


def _answer(reply: Reply, binary: binary_tensors.Wanted, encoding: str) -> Response:
    answered = infer_json.answered(reply.message, binary)
    headers = dict(timing_metadata(reply.timing))
    kind = "application/json"
    if answered.json_length is not None:
        headers[binary_tensors.HEADER] = str(answered.json_length)
        kind = "application/octet-stream"
    body = answered.body
    if encoding and len(body) >= encodings.LEAST:
        headers["Content-Encoding"] = encoding
        body = encodings.deflated(body, encoding)
    return Response(body, 200, headers, kind)


async def _translated(
    size: int, make: Callable[Given, Made], *args: Given.args, **kwargs: Given.kwargs
) -> Made:
    """Of so many bytes."""
    if size <= asking.LITTLE:
        return make(*args, **kwargs)
    return await run_in_threadpool(make, *args, **kwargs)


async def _no_shared_memory(request: Request) -> Response:
    raise NotSupported(NO_SHARED_MEMORY)


def _get(path: str, endpoint: Endpoint) -> Route:
    return Route(path, answering(endpoint), methods=["GET"])


def _model(request: Request) -> tuple[str, str]:
    """Name and version of the path; empty where it has none."""
    return request.path_params.get("model", ""), request.path_params.get("version", "")
