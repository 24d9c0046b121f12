"""Drives a server with tritonclient's gRPC client and prints what it saw, section by section.

Run by test_tritonclient.py with the interpreter that has tritonclient: ADDRESS INPUTS.json
"""

from __future__ import annotations

import json
import queue
import sys
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

IN_FLIGHT = 50
BAD = 17  # which of the stream's requests is at fault


def tensor(name: str, datatype: str, values: Any) -> triton.InferInput:
    array = np.array(values, object if datatype == "BYTES" else triton_to_np_dtype(datatype))
    given = triton.InferInput(name, array.shape, datatype)
    given.set_data_from_numpy(array)
    return given


def values(result: triton.InferResult, name: str) -> Any:
    """An output as JSON can hold it."""
    array = result.as_numpy(name)
    if array.dtype == object:
        return np.array([item.decode() for item in array.flat]).reshape(array.shape).tolist()
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
        self._images = [tensor("images", "UINT8", inputs["images"])]

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
        server = self._client.get_server_metadata(as_json=True)
        return {
            "server": server,
            "model": self._client.get_model_metadata("classifier", as_json=True),
        }

    def config(self) -> Any:
        names = ("classifier", "echo_fixed")
        return {n: self._client.get_model_config(n, as_json=True)["config"] for n in names}

    def infer(self) -> Any:
        answer = self._client.infer("classifier", self._images, request_id="seven")
        response = answer.get_response()
        return {
            "id": response.id,
            "model": [response.model_name, response.model_version],
            "probabilities": values(answer, "probabilities"),
            "labels": values(answer, "labels"),
            "prediction_ids": response.parameters["prediction_ids"].string_param.split(","),
        }

    def compressed(self) -> Any:
        return self._labels(compression_algorithm="gzip")

    def requested(self) -> Any:
        wanted = [triton.InferRequestedOutput("labels")]
        answer = self._client.infer("classifier", self._images, outputs=wanted)
        return [output.name for output in answer.get_response().outputs]

    def classification(self) -> Any:
        wanted = [
            triton.InferRequestedOutput("probabilities", class_count=5),
            triton.InferRequestedOutput("labels"),
        ]
        answer = self._client.infer("classifier", self._images, outputs=wanted)
        return {name: values(answer, name) for name in ("probabilities", "labels")}

    def asynchronous(self) -> Any:
        done: queue.Queue[tuple[Any, Any]] = queue.Queue()
        for image in self._pixels:
            given = [tensor("images", "UINT8", [image])]
            name = str(len(image))
            self._client.async_infer(
                "classifier",
                given,
                lambda result, error: done.put((result, error)),
                request_id=name,
            )
        answers = [done.get(timeout=30) for _ in self._pixels]
        errors = [str(error) for _, error in answers if error]
        return {"errors": errors, "labels": sorted(values(r, "labels")[0] for r, _ in answers if r)}

    def stream(self) -> Any:
        """Many requests at once on one stream, of which one is at fault."""
        done: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client.start_stream(lambda result, error: done.put((result, error)))
        for index in range(IN_FLIGHT):
            image = self._pixels[index % len(self._pixels)]
            given = tensor("images", "UINT8", [image if index != BAD else [[1]]])
            self._client.async_stream_infer("classifier", [given], request_id=str(index))
        answers = [done.get(timeout=30) for _ in range(IN_FLIGHT)]
        self._client.stop_stream()
        return {
            "errors": [error.message() for _, error in answers if error],
            "labels": {r.get_response().id: values(r, "labels")[0] for r, _ in answers if r},
        }

    def echo(self) -> Any:
        """Every datatype through a model with a dynamic first dimension, and one without."""
        return {name: self._echo(name) for name in ("echo", "echo_fixed")}

    def _echo(self, model: str) -> Any:
        given = [tensor(f"in_{t}", t, items) for t, items in self._echoed.items()]
        answer = self._client.infer(model, given)
        return {t: values(answer, f"out_{t}") for t in self._echoed}

    def parameters(self) -> Any:
        return {
            "urgent": self._labels(priority=1, timeout=10_000_000, parameters={"x": "y"}),
            "beyond": self._labels(priority=99),
            "sequence": self._labels(sequence_id=3),
            "timeout": refused(self._labels, timeout=1000),
            "negative": refused(self._labels, timeout=-1),
            "client_timeout": refused(self._labels, client_timeout=0.01),
        }

    def _labels(self, model: str = "classifier", **options: Any) -> Any:
        return values(self._client.infer(model, self._images, **options), "labels")

    def statistics(self) -> Any:
        """Before and after three requests of two images."""
        before = self._client.get_inference_statistics("classifier", as_json=True)
        for _ in range(3):
            self._client.infer("classifier", [tensor("images", "UINT8", self._pixels[:2])])
        after = self._client.get_inference_statistics("classifier", as_json=True)
        everything = self._client.get_inference_statistics(as_json=True)
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
        models = self._client.get_model_repository_index().models
        return {model.name: [model.version, model.state] for model in models}

    def settings(self) -> Any:
        client = self._client
        return {
            "trace": client.get_trace_settings(as_json=True),
            "trace after": client.update_trace_settings(
                settings={"trace_rate": "7", "trace_level": ["TIMESTAMPS"]}, as_json=True
            ),
            "trace of": client.get_trace_settings("classifier", as_json=True),
            "trace unknown": refused(client.update_trace_settings, settings={"colour": "green"}),
            "log": client.get_log_settings(as_json=True),
            "log after": client.update_log_settings({"log_verbose_level": 1}, as_json=True),
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
            "cuda": refused(client.get_cuda_shared_memory_status),
            "output": refused(client.infer, "classifier", self._images, outputs=[wanted]),
            "input": refused(client.infer, "classifier", [given]),
        }

    def errors(self) -> Any:
        infer = self._client.infer
        wanted = [triton.InferRequestedOutput("logits")]
        return {
            "model": refused(infer, "nobody", self._images),
            "version": refused(infer, "classifier", self._images, model_version="9"),
            "shape": refused(infer, "classifier", [tensor("images", "UINT8", [[1]])]),
            "datatype": refused(infer, "classifier", [tensor("images", "FP32", [[[1.0]]])]),
            "output": refused(infer, "classifier", self._images, outputs=wanted),
            "metadata": refused(self._client.get_model_metadata, str(uuid.UUID(int=0))),
        }


def main(address: str, path: str) -> None:
    with open(path) as stream:
        inputs = json.load(stream)
    with triton.InferenceServerClient(address) as client:
        drive = Drive(client, inputs)
        sections = [name for name in vars(Drive) if not name.startswith("_")]
        report: dict[str, Any] = {}
        for name in sections:
            try:
                report[name] = getattr(drive, name)()
            except (InferenceServerException, queue.Empty) as error:
                report[name] = {"failed": repr(error)}  # the section's own test tells of it
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
