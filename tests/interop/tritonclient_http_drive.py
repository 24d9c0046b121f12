"""Drives a server with tritonclient's HTTP client and prints what it saw, section by section.

Run by test_tritonclient_http.py with the interpreter that has tritonclient: ADDRESS INPUTS.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype


def tensor(name: str, datatype: str, values: Any, binary: bool = True) -> triton.InferInput:
    array = np.array(values, object if datatype == "BYTES" else triton_to_np_dtype(datatype))
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def values(result: triton.InferResult, name: str) -> Any:
    """An output as JSON can hold it; texts are bytes where they came as binary data."""
    array = result.as_numpy(name)
    if array.dtype == object:
        texts = [item.decode() if isinstance(item, bytes) else item for item in array.flat]
        return np.array(texts).reshape(array.shape).tolist()
    return array.tolist()


def refused(call: Callable[..., Any], *arguments: Any, **options: Any) -> list[str | None]:
    """Status and message of the error that the call must end with."""
    try:
        answer = call(*arguments, **options)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return ["no error", repr(answer)]


class Drive:
    """The client and the images; each public method is a section of the report."""

    def __init__(self, client: triton.InferenceServerClient, inputs: dict[str, Any]) -> None:
        self._client = client
        self._echoed = inputs["echoed"]
        self._pixels = inputs["images"]

    def _images(self, binary: bool = True) -> list[triton.InferInput]:
        return [tensor("images", "UINT8", self._pixels, binary)]

    def health(self) -> Any:
        client = self._client
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "classifier": client.is_model_ready("classifier"),
            "classifier 1": client.is_model_ready("classifier", "1"),
            "spare": client.is_model_ready("spare"),
        }

    def metadata(self) -> Any:
        return {
            "server": self._client.get_server_metadata(),
            "model": self._client.get_model_metadata("classifier", "1"),
        }

    def config(self) -> Any:
        return {n: self._client.get_model_config(n) for n in ("classifier", "echo_fixed")}

    def infer(self) -> Any:
        """Images and outputs as binary data or JSON, in all four ways."""
        return {
            f"{'binary' if given else 'json'} {'binary' if taken else 'json'}": self._infer(
                given, taken
            )
            for given in (True, False)
            for taken in (True, False)
        }

    def _infer(self, given: bool, taken: bool) -> Any:
        wanted = [
            triton.InferRequestedOutput(name, binary_data=taken)
            for name in ("probabilities", "labels")
        ]
        answer = self._client.infer(
            "classifier", self._images(given), outputs=wanted, request_id="seven"
        )
        response = answer.get_response()
        return {
            "id": response["id"],
            "model": [response["model_name"], response["model_version"]],
            "probabilities": values(answer, "probabilities"),
            "labels": values(answer, "labels"),
            "prediction_ids": response["parameters"]["prediction_ids"].split(","),
        }

    def compressed(self) -> Any:
        return {
            name: self._labels(
                request_compression_algorithm=name, response_compression_algorithm=name
            )
            for name in ("gzip", "deflate")
        }

    def classification(self) -> Any:
        wanted = [triton.InferRequestedOutput("probabilities", class_count=5)]
        answer = self._client.infer("classifier", self._images(), outputs=wanted)
        return values(answer, "probabilities")

    def asynchronous(self) -> Any:
        calls = [
            self._client.async_infer("classifier", [tensor("images", "UINT8", [image])])
            for image in self._pixels
        ]
        return [values(call.get_result(), "labels")[0] for call in calls]

    def echo(self) -> Any:
        """Every datatype through a model with a dynamic first dimension, and one without; all but
        FP16 also as JSON."""
        return {
            name: {"binary": self._echo(name, True), "json": self._echo(name, False)}
            for name in ("echo", "echo_fixed")
        }

    def _echo(self, model: str, binary: bool) -> Any:
        given = [
            tensor(f"in_{t}", t, items, binary or t == "FP16") for t, items in self._echoed.items()
        ]
        wanted = [
            triton.InferRequestedOutput(f"out_{t}", binary_data=binary or t == "FP16")
            for t in self._echoed
        ]
        answer = self._client.infer(model, given, outputs=wanted)
        return {t: values(answer, f"out_{t}") for t in self._echoed}

    def parameters(self) -> Any:
        return {
            "urgent": self._labels(priority=1, timeout=10_000_000, parameters={"x": "y"}),
            "sequence": self._labels(sequence_id=3),
            "timeout": refused(self._labels, timeout=1000),
            "negative": refused(self._labels, timeout=-1),
        }

    def _labels(self, model: str = "classifier", **options: Any) -> Any:
        return values(self._client.infer(model, self._images(), **options), "labels")

    def statistics(self) -> Any:
        """Before and after three requests of two images."""
        before = self._client.get_inference_statistics("classifier")
        for _ in range(3):
            self._client.infer("classifier", [tensor("images", "UINT8", self._pixels[:2])])
        after = self._client.get_inference_statistics("classifier", "1")
        everything = self._client.get_inference_statistics()
        return {
            "before": before["model_stats"][0],
            "after": after["model_stats"][0],
            "all": [stats["name"] for stats in everything["model_stats"]],
        }

    def repository(self) -> Any:
        """A model that was not loaded at the start comes and goes."""
        client = self._client
        seen: dict[str, Any] = {"before": refused(self._labels, "spare")}
        client.load_model("spare")
        seen["loaded"] = self._labels("spare")
        seen["index"] = self._index()
        client.unload_model("spare")
        seen["ready"] = client.is_model_ready("spare")
        seen["index after"] = self._index()
        seen["after"] = refused(self._labels, "spare")
        seen["unknown"] = refused(client.load_model, "nobody")
        return seen

    def _index(self) -> Any:
        models = self._client.get_model_repository_index()
        return {model["name"]: [model["version"], model["state"]] for model in models}

    def settings(self) -> Any:
        client = self._client
        return {
            "trace": client.get_trace_settings(),
            "trace after": client.update_trace_settings(
                settings={"trace_rate": "7", "trace_level": ["TIMESTAMPS"]}
            ),
            "trace of": client.get_trace_settings("classifier"),
            "trace unknown": refused(client.update_trace_settings, settings={"colour": "green"}),
            "log": client.get_log_settings(),
            "log after": client.update_log_settings({"log_verbose_level": 1}),
        }

    def shared_memory(self) -> Any:
        client = self._client
        wanted = triton.InferRequestedOutput("labels")
        wanted.set_shared_memory("region", 8)
        given = triton.InferInput("images", [1, 28, 28], "UINT8")
        given.set_shared_memory("region", 784)
        return {
            "status": refused(client.get_system_shared_memory_status),
            "register": refused(client.register_system_shared_memory, "region", "/region", 8),
            "cuda": refused(client.unregister_cuda_shared_memory, "region"),
            "output": refused(client.infer, "classifier", self._images(), outputs=[wanted]),
            "input": refused(client.infer, "classifier", [given]),
        }

    def errors(self) -> Any:
        infer = self._client.infer
        wanted = [triton.InferRequestedOutput("logits")]
        return {
            "model": refused(infer, "nobody", self._images()),
            "version": refused(infer, "classifier", self._images(), model_version="9"),
            "shape": refused(infer, "classifier", [tensor("images", "UINT8", [[1]])]),
            "datatype": refused(infer, "classifier", [tensor("images", "FP32", [[[1.0]]])]),
            "output": refused(infer, "classifier", self._images(), outputs=wanted),
            "metadata": refused(self._client.get_model_metadata, "nobody"),
        }


def main(address: str, path: str) -> None:
    with open(path) as stream:
        inputs = json.load(stream)
    with triton.InferenceServerClient(address, concurrency=4) as client:
        drive = Drive(client, inputs)
        report: dict[str, Any] = {}
        for name in (name for name in vars(Drive) if not name.startswith("_")):
            try:
                report[name] = getattr(drive, name)()
            except InferenceServerException as error:
                report[name] = {"failed": repr(error)}  # the section's own test tells of it
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
