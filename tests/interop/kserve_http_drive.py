"""Drives a server with KServe's InferenceRESTClient and prints what it saw, section by section.

Run by test_kserve_http.py with the interpreter that has kserve: ADDRESS INPUTS.json
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request(images: Any, binary: bool) -> InferRequest:
    array = np.array(images, np.uint8)
    tensor = InferInput("images", list(array.shape), "UINT8")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model_name="classifier", infer_inputs=[tensor], request_id="seven")


async def outcome(call: Awaitable[Any]) -> Any:
    """The answer's outputs, or the status and the text of the error instead."""
    try:
        answer = await call
    except httpx.HTTPStatusError as error:
        return [error.response.status_code, str(error)]
    values = {output.name: output.as_numpy().tolist() for output in answer.outputs}
    return {"id": answer.id, "model": answer.model_name, **values}


async def drive(url: str, images: Any) -> dict[str, Any]:
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        return {
            "health": {
                "live": await client.is_server_live(url),
                "ready": await client.is_server_ready(url),
                "classifier": await client.is_model_ready(url, "classifier"),
                "unknown": await client.is_model_ready(url, "nobody"),
            },
            "binary": await outcome(client.infer(url, request(images, True), "classifier")),
            "json": await outcome(client.infer(url, request(images, False), "classifier")),
            "wrong": await outcome(client.infer(url, request([[1]], False), "classifier")),
            "unknown": await outcome(client.infer(url, request(images, True), "nobody")),
        }


def main(address: str, path: str) -> None:
    logging.disable()  # the client logs each error that it raises
    with open(path) as stream:
        inputs = json.load(stream)
    json.dump(asyncio.run(drive(f"http://{address}", inputs["images"])), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
