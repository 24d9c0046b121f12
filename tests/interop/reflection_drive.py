"""Drives a server as grpcurl does, with reflection alone: no stub was generated beforehand.

Run by test_reflection.py with an interpreter that has grpcio-reflection: ADDRESS INPUTS.json
"""

from __future__ import annotations

import json
import sys
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

SERVICE = "inference.GRPCInferenceService"


def call(channel: grpc.Channel, method: MethodDescriptor, question: dict[str, Any]) -> Any:
    """A unary call of JSON and back, or the status and details of its error."""
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    path = f"/{method.containing_service.full_name}/{method.name}"
    stub = channel.unary_unary(
        path,
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    try:
        answer = stub(ParseDict(question, request()), timeout=10)
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return MessageToDict(answer, preserving_proto_field_name=True)


def main(address: str, path: str) -> None:
    with open(path) as stream:
        questions = json.load(stream)
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        methods = pool.FindServiceByName(SERVICE).methods_by_name
        health = pool.FindServiceByName("grpc.health.v1.Health").methods_by_name
        report = {
            "services": sorted(database.get_services()),
            "methods": {
                name: [method.input_type.name, method.output_type.name]
                for name, method in methods.items()
            },
            "streaming": [m.name for m in methods.values() if m.client_streaming],
            "health": call(channel, health["Check"], {"service": questions["health"]}),
            "answers": {
                name: call(channel, methods[method], question)
                for name, (method, question) in questions["calls"].items()
            },
        }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
