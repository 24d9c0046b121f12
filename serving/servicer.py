"""InferenceServicer: the V2 RPCs over grpcio, and the one table from errors to status codes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import grpc

from serving import tensors
from serving.admission import Admission
from serving.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    ModelNotFound,
    ModelNotReady,
    QueueFull,
    RequestCancelled,
)
from serving.metrics import Metrics
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc
from serving.registry import ModelRegistry, ServedModel

# An error's status is its class's, or else that of the nearest class it inherits from.
STATUS: dict[type[BaseException], grpc.StatusCode] = {
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    ModelNotReady: grpc.StatusCode.UNAVAILABLE,
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    RequestCancelled: grpc.StatusCode.CANCELLED,
    ModelFailed: grpc.StatusCode.INTERNAL,
}
# Names that a client chose appear in messages, and gRPC carries those in a header of 8 KiB.
_MAX_DETAILS = 1000

log = logging.getLogger(__name__)


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """What to answer; an error outside the table is logged, and its text kept to ourselves."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind], str(error)[:_MAX_DETAILS]
    log.error("unexpected error", exc_info=error)
    return grpc.StatusCode.INTERNAL, "internal error"


class InferenceServicer(pb_grpc.GRPCInferenceServiceServicer):
    """Answers for the models of a registry; `ready` tells whether traffic is wanted."""

    def __init__(
        self,
        registry: ModelRegistry,
        metrics: Metrics,
        admission: Admission,
        version: str,
        ready: Callable[[], bool],
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._admission = admission
        self._version = version
        self._ready = ready

    def ServerLive(
        self, request: pb.ServerLiveRequest, context: grpc.ServicerContext
    ) -> pb.ServerLiveResponse:
        """True: the process answers."""
        return pb.ServerLiveResponse(live=True)

    def ServerReady(
        self, request: pb.ServerReadyRequest, context: grpc.ServicerContext
    ) -> pb.ServerReadyResponse:
        """Loading is over, at least one model is served, and the server does not drain."""
        return pb.ServerReadyResponse(ready=self._ready())

    def ModelReady(
        self, request: pb.ModelReadyRequest, context: grpc.ServicerContext
    ) -> pb.ModelReadyResponse:
        """False while the model loads or when it could not be; NOT_FOUND when it is unknown."""
        with _translated(context):
            try:
                self._registry.get(request.name, request.version)
            except ModelNotReady:
                return pb.ModelReadyResponse(ready=False)
            return pb.ModelReadyResponse(ready=True)

    def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ServerMetadataResponse:
        """Name and version; no extension of the protocol yet."""
        return pb.ServerMetadataResponse(name="digits", version=self._version)

    def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ModelMetadataResponse:
        """What the manifest says of the tensors and the class labels."""
        with _translated(context):
            served = self._registry.get(request.name, request.version)
            return _metadata(served)

    def ModelInfer(
        self, request: pb.ModelInferRequest, context: grpc.ServicerContext
    ) -> pb.ModelInferResponse:
        """Outputs for the inputs, always as raw contents."""
        started = time.monotonic()
        served = None
        try:
            served = self._registry.get(request.model_name, request.model_version)
            with self._admission.admitted():
                return _infer(served, request, context, started)
        except Exception as error:
            code, details = status_of(error)
        if served:
            served.metrics.failed(code.name, time.monotonic() - started)
        else:
            self._metrics.unknown_model(code.name)
        context.abort(code, details)


def _infer(
    served: ServedModel,
    request: pb.ModelInferRequest,
    context: grpc.ServicerContext,
    started: float,
) -> pb.ModelInferResponse:
    manifest = served.manifest
    outputs = tensors.requested_outputs(request, manifest.outputs)
    inputs = tensors.decode_inputs(request, manifest.inputs)
    pending = served.request(inputs, started + context.time_remaining())
    if not context.add_callback(pending.cancel):
        raise RequestCancelled("the request was cancelled")
    answer = served.infer(pending)
    response = pb.ModelInferResponse(
        model_name=manifest.name, model_version=str(manifest.version), id=request.id
    )
    tensors.encode_outputs(response, answer.outputs, outputs)
    return response


def _metadata(served: ServedModel) -> pb.ModelMetadataResponse:
    manifest = served.manifest
    response = pb.ModelMetadataResponse(
        name=manifest.name,
        versions=[str(manifest.version)],
        platform=served.model.variant.platform,
        labels=manifest.labels,
    )
    for spec in manifest.inputs:
        response.inputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    for spec in manifest.outputs:
        response.outputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return response


@contextlib.contextmanager
def _translated(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        code, details = status_of(error)
    else:
        return
    context.abort(code, details)
