"""A client that knows nothing beforehand, as grpcurl: protocol by reflection, messages as JSON."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Digits
from driving import Arrays, drive, run_model, serving
from numpy.typing import NDArray

from serving.pb import inference_pb2 as pb

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Path:
    return tmp_path_factory.mktemp(f"reflection-{transport}")


@pytest.fixture(scope="module")
def seen(folder: Path, digits: Digits, transport: str) -> Iterator[Any]:
    """What the client saw, typed and raw contents among it."""
    images = digits.images[:2]
    shape = {"name": "images", "datatype": "UINT8", "shape": [2, 28, 28]}
    typed = {**shape, "contents": {"uint_contents": images.ravel().tolist()}}
    raw = base64.b64encode(images.tobytes()).decode()
    top = {"name": "probabilities", "parameters": {"classification": {"int64_param": 1}}}
    calls = {
        "live": ("ServerLive", {}),
        "metadata": ("ModelMetadata", {"name": "classifier"}),
        "typed": ("ModelInfer", {"model_name": "classifier", "id": "7", "inputs": [typed]}),
        "raw": (
            "ModelInfer",
            {
                "model_name": "classifier",
                "inputs": [shape],
                "outputs": [top],
                "raw_input_contents": [raw],
            },
        ),
        "wrong": ("ModelInfer", {"model_name": "nobody"}),
    }
    with serving(folder, digits, transport) as address:
        yield drive("reflection", address, {"calls": calls, "health": "classifier"}, folder)


@pytest.fixture(scope="module")
def expected(folder: Path, seen: Any, digits: Digits) -> Arrays:
    """ONNX Runtime's own answer to the images."""
    return run_model(folder, "classifier", {"images": digits.images[:2]})


def contents(answer: Any, index: int, dtype: str) -> NDArray[Any]:
    """An output's values, out of the base64 that JSON has for bytes."""
    raw = base64.b64decode(answer["raw_output_contents"][index])
    return np.frombuffer(raw, dtype).reshape([int(n) for n in answer["outputs"][index]["shape"]])


def test_the_services_are_listed(seen: Any) -> None:
    assert seen["services"] == [
        "digits.v1.Digits",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]
    assert seen["health"] == {"status": "SERVING"}


def test_every_method_of_the_protocol_is_described(seen: Any) -> None:
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert seen["methods"] == {
        method.name: [method.input_type.name, method.output_type.name] for method in service.methods
    }
    assert seen["streaming"] == ["ModelStreamInfer"]


def test_typed_contents_are_answered_as_onnx_runtime_does(seen: Any, expected: Arrays) -> None:
    answer = seen["answers"]["typed"]
    assert [answer["model_name"], answer["model_version"], answer["id"]] == ["classifier", "1", "7"]
    assert contents(answer, 1, "<i8").tolist() == expected["labels"].tolist()
    np.testing.assert_allclose(contents(answer, 0, "<f4"), expected["probabilities"], atol=1e-6)


def test_raw_contents_are_answered_with_the_requested_top_class(
    seen: Any, expected: Arrays
) -> None:
    answer = seen["answers"]["raw"]
    assert answer["outputs"] == [
        {"name": "probabilities", "datatype": "BYTES", "shape": ["2", "1"]}
    ]
    text = base64.b64decode(answer["raw_output_contents"][0])
    best, label = expected["probabilities"][0].max(), int(expected["labels"][0])
    assert f"{best:f}:{label}:{'37'[label]}".encode() in text


def test_metadata_and_liveness_need_no_stub(seen: Any) -> None:
    answers = seen["answers"]
    assert answers["live"] == {"live": True}
    assert answers["metadata"]["labels"] == ["3", "7"]
    assert answers["wrong"] == ["NOT_FOUND", "model 'nobody' is unknown"]
