"""What the clients ask of a server, and the steps that their operations are made of.

An operation is a generator. It yields an `Ask`, and is given the reply or the RequestFailed; or it
yields a `Pause`, and goes on after it. Threads and event loops are for `client` and `async_client`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import Message

from serving.client_channel import DIGITS_SERVICE, V2_SERVICE
from serving.client_types import RequestFailed
from serving.pb import digits_pb2
from serving.pb import inference_pb2 as pb

Question = TypeVar("Question", bound=Message)
Reply = TypeVar("Reply", bound=Message)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Method(Generic[Question, Reply]):
    """A unary method; of V2's service, by the server's name for it, where no other is given."""

    name: str
    question: type[Question]
    reply: type[Reply]
    service: str = V2_SERVICE

    def path(self, v2_service: str) -> str:
        """Where the server has V2's service by that name."""
        return f"/{v2_service if self.service == V2_SERVICE else self.service}/{self.name}"


SERVER_READY = Method("ServerReady", pb.ServerReadyRequest, pb.ServerReadyResponse)
MODEL_READY = Method("ModelReady", pb.ModelReadyRequest, pb.ModelReadyResponse)
SERVER_METADATA = Method("ServerMetadata", pb.ServerMetadataRequest, pb.ServerMetadataResponse)
MODEL_METADATA = Method("ModelMetadata", pb.ModelMetadataRequest, pb.ModelMetadataResponse)
MODEL_INFER = Method("ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)
STATISTICS = Method("ModelStatistics", pb.ModelStatisticsRequest, pb.ModelStatisticsResponse)
INDEX = Method("RepositoryIndex", pb.RepositoryIndexRequest, pb.RepositoryIndexResponse)
FEEDBACK = Method(
    "SendFeedback", digits_pb2.SendFeedbackRequest, digits_pb2.SendFeedbackResponse, DIGITS_SERVICE
)
QUALITY = Method(
    "GetQuality", digits_pb2.GetQualityRequest, digits_pb2.GetQualityResponse, DIGITS_SERVICE
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One attempt of a call; with `wait`, made when there is a connection."""

    method: Method[Any, Any]
    request: Message
    timeout: float  # seconds
    wait: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing, for so long."""

    seconds: float


# What is sent into it is an Ask's reply; after a Pause, nothing.
Steps: TypeAlias = Generator[Ask | Pause, Any, Result]


def closed() -> RequestFailed:
    """How a call fails whose client was closed before it was answered."""
    return RequestFailed(grpc.StatusCode.CANCELLED, "the client is closed")


def failed(error: grpc.RpcError) -> RequestFailed:
    """What gRPC raised, of either kind, as the clients raise it."""
    call = cast(grpc.Call, error)  # every RpcError that a call raises is one
    trailers = {key: value for key, value in call.trailing_metadata() or ()}
    pushback = trailers.get("grpc-retry-pushback-ms")
    text = pushback.decode(errors="replace") if isinstance(pushback, bytes) else pushback
    return RequestFailed(call.code(), call.details(), text)
