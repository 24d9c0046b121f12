"""The client's channel and stub: which replicas calls go to, and which calls are repeated."""

from __future__ import annotations

import json
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from serving.pb import inference_pb2 as pb

Question = TypeVar("Question", bound=Message)
Reply = TypeVar("Reply", bound=Message)

# V2's own package, in which this server, Triton, KServe and MLServer have it.
V2_SERVICE = "inference.GRPCInferenceService"
TORCHSERVE_SERVICE = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"
DIGITS_SERVICE = "digits.v1.Digits"

# What may be repeated: a server that is asked twice does each once, and of replicas two count a
# label at worst, which is better than none. Not ServerReady or ModelReady, which are to say how it
# is now.
_REPEATED = {
    V2_SERVICE: ("ModelInfer", "ModelMetadata"),
    DIGITS_SERVICE: ("SendFeedback", "GetQuality"),
}
# gRPC makes five attempts at most. Pauses of 0.2, 0.6, 1.8 and 3 s are those of a server that
# answers that it cannot; while there is none, no attempt is made, and none is lost.
_RETRY_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.2s",
    "maxBackoff": "3s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
# A request beyond that size is not repeated; gRPC's default is 256 KiB, of all requests 1 MiB.
_REPEATED_BYTES = 64 << 20
# Milliseconds between looks at the name server, where connections end; gRPC's default is 30,000.
_DNS_INTERVAL = 1_000
# Milliseconds until a server that was away is tried again, first and at most; gRPC's defaults, of
# 1,000 and 120,000, leave one that is long back alone.
_RECONNECT = (200, 5_000)


class V2Stub:
    """What a client calls of V2's service; the generated stub knows it in V2's own package only."""

    def __init__(self, channel: grpc.Channel, service: str) -> None:
        def method(
            name: str, question: type[Question], reply: type[Reply]
        ) -> grpc.UnaryUnaryMultiCallable[Question, Reply]:
            path = f"/{service}/{name}"
            return channel.unary_unary(path, question.SerializeToString, reply.FromString)

        self.ServerReady = method("ServerReady", pb.ServerReadyRequest, pb.ServerReadyResponse)
        self.ModelReady = method("ModelReady", pb.ModelReadyRequest, pb.ModelReadyResponse)
        self.ModelMetadata = method(
            "ModelMetadata", pb.ModelMetadataRequest, pb.ModelMetadataResponse
        )
        self.ModelInfer = method("ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)


def open_channel(
    address: str,
    service: str,
    load_balancing: str,
    retry: bool,
    credentials: grpc.ChannelCredentials | None = None,
) -> grpc.Channel:
    """A channel that is not connected yet; `service` is in V2's place.

    gRPC looks up names anew when a connection of the channel ends, and then learns of replicas
    that were added; a server that ends connections now and then makes itself be looked up.
    """
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # A connection of its own: all of a process's would else go to one of several workers.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.dns_min_time_between_resolutions_ms", _DNS_INTERVAL),
        ("grpc.initial_reconnect_backoff_ms", _RECONNECT[0]),
        ("grpc.max_reconnect_backoff_ms", _RECONNECT[1]),
        ("grpc.per_rpc_retry_buffer_size", _REPEATED_BYTES),
        ("grpc.service_config", json.dumps(_service_config(service, load_balancing, retry))),
    ]
    if credentials:
        return grpc.secure_channel(address, credentials, options)
    return grpc.insecure_channel(address, options)


def _service_config(service: str, load_balancing: str, retry: bool) -> dict[str, object]:
    """https://github.com/grpc/grpc/blob/master/doc/service_config.md"""
    config: dict[str, object] = {"loadBalancingConfig": [{load_balancing: {}}]}
    if retry:
        named = [
            {"service": service if each == V2_SERVICE else each, "method": method}
            for each, methods in _REPEATED.items()
            for method in methods
        ]
        repeated = {"name": named, "waitForReady": True, "retryPolicy": _RETRY_POLICY}
        config["methodConfig"] = [repeated]
    return config
