"""Drives a server with KServe's InferenceGRPCClient and prints what it saw, section by section.

Run by test_kserve.py with the interpreter that has kserve: ADDRESS INPUTS.json
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub


def request(model: str, images: Any, raw: bool = True) -> InferRequest:
    array = np.array(images, np.uint8)
    tensor = InferInput("images", list(array.shape), "UINT8")
    tensor.set_data_from_numpy(array, binary_data=raw)
    return InferRequest(model_name=model, infer_inputs=[tensor], request_id="seven")


async def outcome(call: Awaitable[Any]) -> Any:
    """The answer, or the status and details of the error instead."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return [error.code().name, error.details()]


def outputs(answer: Any) -> Any:
    if isinstance(answer, list):  # an error's status and details
        return answer
    values = {output.name: output.as_numpy().tolist() for output in answer.outputs}
    return {"id": answer.id, "model": answer.model_name, **values}


async def health(client: InferenceGRPCClient) -> Any:
    return {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "classifier": await client.is_model_ready("classifier"),
        "spare": await client.is_model_ready("spare"),
        "unknown": await outcome(client.is_model_ready("nobody")),
    }


async def load(stub: GRPCInferenceServiceStub) -> Any:
    answer = await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="spare"))
    return [answer.model_name, answer.isLoaded]


async def unload(stub: GRPCInferenceServiceStub) -> Any:
    answer = await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="spare"))
    return [answer.model_name, answer.isUnloaded]


async def drive(address: str, images: Any) -> dict[str, Any]:
    report: dict[str, Any] = {}
    # KServe's own default: up to three attempts, and only UNAVAILABLE is tried again.
    async with (
        InferenceGRPCClient(address, retries=5) as client,
        InferenceGRPCClient(address, retries=0) as impatient,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        report["health"] = await health(client)
        for name, raw in (("raw", True), ("typed", False)):
            report[name] = outputs(await client.infer(request("classifier", images, raw)))
        report["wrong"] = await outcome(client.infer(request("classifier", [[1]])))
        report["unknown"] = await outcome(client.infer(request("nobody", images)))
        report["loaded"] = await load(stub)
        report["unloaded"] = await unload(stub)
        report["ready after"] = await client.is_model_ready("spare")
        report["impatient"] = await outcome(impatient.infer(request("spare", images)))
        healing = asyncio.create_task(outcome(client.infer(request("spare", images))))
        await asyncio.sleep(0)  # let it be sent before the model is there again
        await load(stub)
        report["healed"] = outputs(await healing)
    return report


def main(address: str, path: str) -> None:
    logging.disable()  # the client logs each error that it raises
    with open(path) as stream:
        inputs = json.load(stream)
    json.dump(asyncio.run(drive(address, inputs["images"])), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
