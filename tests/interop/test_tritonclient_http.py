"""Triton's Python client, unchanged, over HTTP: every path that it has a method for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ECHO_TYPES, THREES_AND_SEVENS, Digits
from driving import ECHOED, HTTP, Arrays, classes, drive, run_model, serving
from numpy.typing import NDArray

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def images(digits: Digits) -> NDArray[np.uint8]:
    """Ten digits, threes and sevens among them."""
    return digits.images[:10]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tritonclient-http")


@pytest.fixture(scope="module")
def seen(folder: Path, digits: Digits, images: NDArray[np.uint8]) -> Iterator[Any]:
    """What the client saw of a server without `spare`, where an administrator may load it.

    A lone request waits 50 ms for company, so that one with less time surely has too little.
    """
    names = "classifier,echo,echo_fixed"
    options = ["--allow-admin", "--model-control-mode", "explicit", "--load-model", names]
    options += ["--max-queue-delay", "0.05"]
    with serving(folder, digits, "grpcio", *options, says=HTTP) as address:
        inputs = {"images": images.tolist(), "echoed": ECHOED}
        yield drive("tritonclient", address, inputs, folder, script="tritonclient_http")


@pytest.fixture(scope="module")
def expected(folder: Path, seen: Any, images: NDArray[np.uint8]) -> Arrays:
    """ONNX Runtime's own answer to the images."""
    return run_model(folder, "classifier", {"images": images})


def test_server_and_models_are_live_and_ready(seen: Any) -> None:
    assert seen["health"] == {
        "live": True,
        "ready": True,
        "classifier": True,
        "classifier 1": True,
        "spare": False,
    }


def test_metadata_and_config_have_numbers_where_the_protocol_has_them(seen: Any) -> None:
    server, model = seen["metadata"]["server"], seen["metadata"]["model"]
    assert {"binary_tensor_data", "statistics"} <= set(server["extensions"])
    assert (model["name"], model["versions"]) == ("classifier", ["1"])
    assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28]}]
    batched, fixed = seen["config"]["classifier"], seen["config"]["echo_fixed"]
    assert batched["input"][0]["dims"] == [28, 28]
    assert (batched["max_batch_size"], fixed["max_batch_size"]) == (64, 0)


@pytest.mark.parametrize("given", ["binary", "json"])
@pytest.mark.parametrize("taken", ["binary", "json"])
def test_answers_are_those_of_onnx_runtime(
    seen: Any, expected: Arrays, given: str, taken: str
) -> None:
    answer = seen["infer"][f"{given} {taken}"]
    assert (answer["id"], answer["model"]) == ("seven", ["classifier", "1"])
    assert answer["labels"] == expected["labels"].tolist()
    np.testing.assert_allclose(answer["probabilities"], expected["probabilities"], atol=1e-6)
    assert len(set(answer["prediction_ids"])) == 10


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_read_and_compressed_answers_given(
    seen: Any, expected: Arrays, algorithm: str
) -> None:
    assert seen["compressed"][algorithm] == expected["labels"].tolist()


def test_classification_gives_value_index_and_label_of_each_row(
    seen: Any, expected: Arrays
) -> None:
    rows = expected["probabilities"]
    assert seen["classification"] == [classes(row, THREES_AND_SEVENS) for row in rows]


def test_asynchronous_requests_are_all_answered(seen: Any, expected: Arrays) -> None:
    assert seen["asynchronous"] == expected["labels"].tolist()


@pytest.mark.parametrize("model", ["echo", "echo_fixed"])
@pytest.mark.parametrize("form", ["binary", "json"])
@pytest.mark.parametrize("datatype", ECHO_TYPES)
def test_every_datatype_survives_the_round_trip(
    seen: Any, model: str, form: str, datatype: str
) -> None:
    assert seen["echo"][model][form][datatype] == ECHOED[datatype]


def test_priority_and_timeout_are_heeded(seen: Any, expected: Arrays) -> None:
    answers, labels = seen["parameters"], expected["labels"].tolist()
    assert (answers["urgent"], answers["sequence"]) == (labels, labels)
    assert answers["timeout"][0] == "504"
    error = "parameter 'timeout' must be a whole number from 0, got -1"
    assert answers["negative"] == ["400", error]


def test_statistics_count_requests_and_rows(seen: Any) -> None:
    before, after = seen["statistics"]["before"], seen["statistics"]["after"]
    assert after["inference_count"] - before["inference_count"] == 6
    assert after["execution_count"] - before["execution_count"] == 3
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert 2 in {batch["batch_size"] for batch in after["batch_stats"]}
    assert sorted(seen["statistics"]["all"]) == ["classifier", "echo", "echo_fixed"]


def test_a_model_is_loaded_listed_and_unloaded(seen: Any, expected: Arrays) -> None:
    repository = seen["repository"]
    assert repository["before"][0] == "503"
    assert repository["loaded"] == expected["labels"].tolist()
    assert repository["index"]["spare"] == ["1", "READY"]
    assert repository["ready"] is False
    assert repository["index after"]["spare"][1] == "UNAVAILABLE"
    assert repository["after"][0] == "503"
    assert repository["index after"]["classifier"] == ["1", "READY"]
    assert repository["unknown"][0] == "404"


def test_trace_and_log_settings_are_told_and_changed(seen: Any) -> None:
    settings = seen["settings"]
    assert settings["trace"]["trace_level"] == ["OFF"]
    assert settings["trace after"]["trace_rate"] == "7"
    assert settings["trace of"] == settings["trace after"]
    assert settings["trace unknown"][0] == "400"
    assert settings["log"]["log_verbose_level"] == 0
    assert settings["log after"]["log_verbose_level"] == 1


def test_shared_memory_says_that_it_is_not_implemented(seen: Any) -> None:
    answers = seen["shared_memory"]
    for call in ("status", "register", "cuda"):
        assert answers[call][0] == "501"
        assert "this server has no shared memory" in answers[call][1]
    assert answers["output"] == ["400", "output 'labels': shared memory is not supported"]
    assert answers["input"] == ["400", "input 'images': shared memory is not supported"]


@pytest.mark.parametrize(
    ("mistake", "status", "message"),
    [
        ("model", "404", "model 'nobody' is unknown"),
        ("version", "404", "version '9'"),
        ("shape", "400", "expected shape [-1, 28, 28], got [1, 1]"),
        ("datatype", "400", "expected datatype UINT8, got 'FP32'"),
        ("output", "400", "output 'logits' is unknown"),
        ("metadata", "404", "is unknown"),
    ],
)
def test_mistakes_are_told_with_their_status(
    seen: Any, mistake: str, status: str, message: str
) -> None:
    assert seen["errors"][mistake][0] == status
    assert message in seen["errors"][mistake][1]
