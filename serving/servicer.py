"""InferenceServicer: every RPC of the V2 service but inference itself, which is `transport`'s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from serving import describe, logs
from serving.admin import Admin, require_admin
from serving.authorization import Asker, Authorization
from serving.calls import peer_of, strict, tokens_of
from serving.config import ServerConfig
from serving.errors import InvalidInput, ModelNotFound, ModelNotReady, NotSupported
from serving.metrics import Metrics
from serving.pb import inference_pb2 as pb
from serving.registry import ModelRegistry
from serving.statistics import ModelTotals
from serving.status import status_of
from serving.trace import Tracer

NO_SHARED_MEMORY = "this server has no shared memory; send tensors in the request"
INFERENCE = ("ModelInfer", "ModelStreamInfer")
SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]


@dataclass(frozen=True, slots=True)
class InferenceServicer:
    """Answers for the models of a registry; `ready` tells whether traffic is wanted.

    Each RPC is a method of its name, from the request and who asks to the response. It
    raises a ServingError, which `handlers` turns into a status.
    """

    registry: ModelRegistry
    metrics: Metrics
    tracer: Tracer
    admin: Admin
    config: ServerConfig
    version: str
    ready: Callable[[], bool]

    def ServerLive(self, request: pb.ServerLiveRequest, asker: Asker) -> pb.ServerLiveResponse:
        """True: the process answers."""
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: pb.ServerReadyRequest, asker: Asker) -> pb.ServerReadyResponse:
        """Loading is over, at least one model is served, and the server does not drain."""
        return pb.ServerReadyResponse(ready=self.ready())

    def ModelReady(self, request: pb.ModelReadyRequest, asker: Asker) -> pb.ModelReadyResponse:
        """Whether the model is served; false, too, for one that is unknown, as in Triton."""
        try:
            self.registry.get(request.name, request.version)
        except (ModelNotReady, ModelNotFound):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    def ServerMetadata(
        self, request: pb.ServerMetadataRequest, asker: Asker
    ) -> pb.ServerMetadataResponse:
        """Name, version, and the protocol's extensions that are there."""
        return pb.ServerMetadataResponse(
            name="digits", version=self.version, extensions=describe.EXTENSIONS
        )

    def ModelMetadata(
        self, request: pb.ModelMetadataRequest, asker: Asker
    ) -> pb.ModelMetadataResponse:
        """What the manifest says of the tensors and the class labels."""
        served = self.registry.get(request.name, request.version)
        return describe.metadata(served, self.registry.versions(request.name))

    def ModelConfig(self, request: pb.ModelConfigRequest, asker: Asker) -> pb.ModelConfigResponse:
        """How the model is batched and where it runs."""
        return describe.config(self.registry.get(request.name, request.version), self.config)

    def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, asker: Asker
    ) -> pb.ModelStatisticsResponse:
        """Counts and durations of what is served, over all workers."""
        if request.name:
            self.registry.get(request.name, request.version)
        totals = self.metrics.totals()
        keys = [(each.manifest.name, each.version) for each in self.registry.served]
        wanted = [
            (name, version)
            for name, version in keys
            if request.name in ("", name) and request.version in ("", version)
        ]
        return describe.statistics([(*key, totals.get(key, ModelTotals())) for key in wanted])

    def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, asker: Asker
    ) -> pb.RepositoryIndexResponse:
        """Every version that is known of, and why it is not served."""
        return describe.index(self.registry.index, request.ready)

    def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, asker: Asker
    ) -> pb.RepositoryModelLoadResponse:
        """Load the model's versions by the version policy, in all workers."""
        require_admin(self.config.allow_admin, asker)
        if request.parameters:
            raise InvalidInput(f"load: parameter {min(request.parameters)!r} is not supported")
        name = request.model_name or request.repository_name
        self.admin.load(name)
        return pb.RepositoryModelLoadResponse(model_name=name, is_loaded=True)

    def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, asker: Asker
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload the model, in all workers. No model here depends on another."""
        require_admin(self.config.allow_admin, asker)
        if others := set(request.parameters) - {"unload_dependents"}:
            raise InvalidInput(f"unload: parameter {min(others)!r} is not supported")
        name = request.model_name or request.repository_name
        self.admin.unload(name)
        return pb.RepositoryModelUnloadResponse(model_name=name, is_unloaded=True)

    def TraceSetting(
        self, request: pb.TraceSettingRequest, asker: Asker
    ) -> pb.TraceSettingResponse:
        """Change trace settings where some are given; what holds then."""
        if request.model_name:
            self.registry.get(request.model_name)
        if request.settings:
            require_admin(self.config.allow_admin, asker)
            changes = {name: tuple(each.value) for name, each in request.settings.items()}
            self.admin.change_trace(changes, request.model_name)
        response = pb.TraceSettingResponse()
        for name, values in self.tracer.settings(request.model_name).items():
            response.settings[name].value.extend(values)
        return response

    def LogSettings(self, request: pb.LogSettingsRequest, asker: Asker) -> pb.LogSettingsResponse:
        """Change log settings where some are given; what holds then."""
        if request.settings:
            require_admin(self.config.allow_admin, asker)
            self.admin.change_logs(
                {name: _chosen(name, value) for name, value in request.settings.items()}
            )
        response = pb.LogSettingsResponse()
        for name, value in logs.settings().items():
            if isinstance(value, bool):
                response.settings[name].bool_param = value
            elif isinstance(value, int):
                response.settings[name].uint32_param = value
        return response


def handlers(
    servicer: InferenceServicer, authorization: Authorization
) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """A handler for every method of the service but inference, by its name."""
    return {
        method.name: unary(
            getattr(servicer, method.name, _shared_memory),
            GetMessageClass(method.input_type),
            authorization,
        )
        for method in SERVICE.methods
        if method.name not in INFERENCE
    }


def unary(
    method: Callable[[Any, Asker], Message], kind: type[Message], authorization: Authorization
) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler of a method of the request and who asks that raises ServingErrors."""

    def answer(request: Message, context: grpc.ServicerContext) -> Message:
        try:
            roles = authorization.roles(tokens_of(context.invocation_metadata()))
            return method(request, Asker(peer_of(context), roles))
        except Exception as error:
            status, details = status_of(error, rpc=kind.__name__.removesuffix("Request"))
        if status == "PERMISSION_DENIED" or status == "UNIMPLEMENTED":
            details = f"{kind.__name__.removesuffix('Request')}: {details}"
        context.abort(grpc.StatusCode[status], details)

    return strict(
        grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=kind.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
    )


def _shared_memory(request: Message, asker: Asker) -> Message:
    """The only methods that the servicer lacks."""
    raise NotSupported(NO_SHARED_MEMORY)


def _chosen(name: str, value: pb.LogSettingsRequest.SettingValue) -> bool | int | str:
    choice = value.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidInput(f"log setting {name!r} has no value")
    chosen: bool | int | str = getattr(value, choice)
    return chosen
