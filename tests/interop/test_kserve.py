"""KServe's Python client, unchanged, over gRPC; it tries again only what answers UNAVAILABLE."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Digits
from driving import Arrays, drive, run_model, serving

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Path:
    return tmp_path_factory.mktemp(f"kserve-{transport}")


@pytest.fixture(scope="module")
def seen(folder: Path, digits: Digits, transport: str) -> Iterator[Any]:
    """What the client saw of a server without `spare`, which it loads, unloads and loads again."""
    options = ["--allow-admin", "--model-control-mode", "explicit", "--load-model", "classifier"]
    with serving(folder, digits, transport, *options) as address:
        yield drive("kserve", address, {"images": digits.images[:4].tolist()}, folder)


@pytest.fixture(scope="module")
def expected(folder: Path, seen: Any, digits: Digits) -> Arrays:
    """ONNX Runtime's own answer to the images."""
    return run_model(folder, "classifier", {"images": digits.images[:4]})


def test_server_and_models_are_live_and_ready(seen: Any) -> None:
    assert seen["health"] == {
        "live": True,
        "ready": True,
        "classifier": True,
        "spare": False,
        "unknown": False,
    }


@pytest.mark.parametrize("contents", ["raw", "typed"])
def test_answers_are_those_of_onnx_runtime(seen: Any, expected: Arrays, contents: str) -> None:
    answer = seen[contents]
    assert (answer["id"], answer["model"]) == ("seven", "classifier")
    assert answer["labels"] == expected["labels"].tolist()
    np.testing.assert_allclose(answer["probabilities"], expected["probabilities"], atol=1e-6)


def test_mistakes_are_told_and_not_tried_again(seen: Any) -> None:
    assert seen["wrong"][0] == "INVALID_ARGUMENT"
    assert "expected shape [-1, 28, 28], got [1, 1]" in seen["wrong"][1]
    assert seen["unknown"] == ["NOT_FOUND", "model 'nobody' is unknown"]


def test_a_model_that_is_away_for_a_moment_is_waited_for(seen: Any, expected: Arrays) -> None:
    assert seen["impatient"][0] == "UNAVAILABLE"
    assert seen["healed"]["labels"] == expected["labels"].tolist()


def test_kserves_own_shape_of_load_and_unload_is_understood(seen: Any) -> None:
    assert seen["loaded"] == ["spare", True]
    assert seen["unloaded"] == ["spare", True]
    assert seen["ready after"] is False
