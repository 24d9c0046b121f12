"""KServe's Python client, unchanged, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Digits
from driving import HTTP, Arrays, drive, run_model, serving

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kserve-http")


@pytest.fixture(scope="module")
def seen(folder: Path, digits: Digits) -> Iterator[Any]:
    with serving(folder, digits, "grpcio", says=HTTP) as address:
        inputs = {"images": digits.images[:4].tolist()}
        yield drive("kserve", address, inputs, folder, script="kserve_http")


@pytest.fixture(scope="module")
def expected(folder: Path, seen: Any, digits: Digits) -> Arrays:
    """ONNX Runtime's own answer to the images."""
    return run_model(folder, "classifier", {"images": digits.images[:4]})


def test_server_and_models_are_live_and_ready(seen: Any) -> None:
    assert seen["health"] == {"live": True, "ready": True, "classifier": True, "unknown": False}


@pytest.mark.parametrize("form", ["binary", "json"])
def test_answers_are_those_of_onnx_runtime(seen: Any, expected: Arrays, form: str) -> None:
    answer = seen[form]
    assert (answer["id"], answer["model"]) == ("seven", "classifier")
    assert answer["labels"] == expected["labels"].tolist()
    np.testing.assert_allclose(answer["probabilities"], expected["probabilities"], atol=1e-6)


def test_mistakes_are_told(seen: Any) -> None:
    assert seen["wrong"][0] == 400
    assert "expected shape [-1, 28, 28], got [1, 1]" in seen["wrong"][1]
    assert seen["unknown"][0] == 404
    assert "model 'nobody' is unknown" in seen["unknown"][1]
