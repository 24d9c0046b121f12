"""Triton's Python client, unchanged, over gRPC: every RPC that it has a method for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ECHO_TYPES, THREES_AND_SEVENS, Digits
from driving import ECHOED, Arrays, classes, drive, run_model, serving
from numpy.typing import NDArray

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def images(digits: Digits) -> NDArray[np.uint8]:
    """Ten digits, threes and sevens among them."""
    return digits.images[:10]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Path:
    return tmp_path_factory.mktemp(f"tritonclient-{transport}")


@pytest.fixture(scope="module")
def seen(folder: Path, digits: Digits, images: NDArray[np.uint8], transport: str) -> Iterator[Any]:
    """What the client saw of a server without `spare`, where an administrator may load it.

    A lone request waits 50 ms for company, so that one with less time surely has too little.
    """
    names = "classifier,echo,echo_fixed"
    options = ["--allow-admin", "--model-control-mode", "explicit", "--load-model", names]
    with serving(folder, digits, transport, *options, "--max-queue-delay", "0.05") as address:
        inputs = {"images": images.tolist(), "echoed": ECHOED}
        yield drive("tritonclient", address, inputs, folder)


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


def test_metadata_names_the_extensions_and_gives_the_batch_dimension_as_variable(seen: Any) -> None:
    server, model = seen["metadata"]["server"], seen["metadata"]["model"]
    assert server["name"] == "digits"
    assert {"classification", "statistics", "model_repository"} <= set(server["extensions"])
    assert (model["name"], model["versions"]) == ("classifier", ["1"])
    assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": ["-1", "28", "28"]}]
    shapes = {output["name"]: output["shape"] for output in model["outputs"]}
    assert shapes == {"probabilities": ["-1", "2"], "labels": ["-1"]}


def test_config_omits_the_batch_dimension_where_requests_are_batched(seen: Any) -> None:
    batched, fixed = seen["config"]["classifier"], seen["config"]["echo_fixed"]
    assert batched["name"] == "classifier"
    assert batched["max_batch_size"] > 1
    assert batched["input"][0]["data_type"] == "TYPE_UINT8"
    assert batched["input"][0]["dims"] == ["28", "28"]
    assert fixed.get("max_batch_size", 0) == 0
    assert {tuple(each["dims"]) for each in fixed["input"]} == {("1", "3")}


def test_answers_are_those_of_onnx_runtime(seen: Any, expected: Arrays) -> None:
    answer = seen["infer"]
    assert (answer["id"], answer["model"]) == ("seven", ["classifier", "1"])
    assert answer["labels"] == expected["labels"].tolist()
    np.testing.assert_allclose(answer["probabilities"], expected["probabilities"], atol=1e-6)


def test_each_row_has_a_prediction_id_in_the_response_parameters(seen: Any) -> None:
    assert len(set(seen["infer"]["prediction_ids"])) == 10


def test_compressed_requests_are_read(seen: Any, expected: Arrays) -> None:
    assert seen["compressed"] == expected["labels"].tolist()


def test_only_the_requested_outputs_come(seen: Any) -> None:
    assert seen["requested"] == ["labels"]


def test_classification_gives_value_index_and_label_of_each_row(
    seen: Any, expected: Arrays
) -> None:
    rows = expected["probabilities"]
    assert seen["classification"] == {
        "probabilities": [classes(row, THREES_AND_SEVENS) for row in rows],
        "labels": expected["labels"].tolist(),
    }


def test_asynchronous_requests_are_all_answered(seen: Any, expected: Arrays) -> None:
    labels = sorted(expected["labels"].tolist())
    assert seen["asynchronous"] == {"errors": [], "labels": labels}


def test_on_a_stream_only_the_bad_one_of_fifty_requests_fails(seen: Any, expected: Arrays) -> None:
    labels = expected["labels"].tolist()
    assert seen["stream"]["labels"] == {str(i): labels[i % 10] for i in range(50) if i != 17}
    (message,) = seen["stream"]["errors"]
    assert "input 'images': expected shape [-1, 28, 28], got [1, 1, 1]" in message


@pytest.mark.parametrize("model", ["echo", "echo_fixed"])
@pytest.mark.parametrize("datatype", ECHO_TYPES)
def test_every_datatype_survives_the_round_trip(seen: Any, model: str, datatype: str) -> None:
    assert seen["echo"][model][datatype] == ECHOED[datatype]


def test_priority_timeout_and_deadline_are_heeded(seen: Any, expected: Arrays) -> None:
    answers, labels = seen["parameters"], expected["labels"].tolist()
    # As in Triton, a priority beyond the levels is the default, and sequences are another model's.
    for name in ("urgent", "beyond", "sequence"):
        assert (name, answers[name]) == (name, labels)
    assert answers["timeout"][0] == "StatusCode.DEADLINE_EXCEEDED"
    assert answers["negative"][0] == "StatusCode.INVALID_ARGUMENT"
    assert "parameter 'timeout' must be a whole number from 0, got -1" in answers["negative"][1]
    assert answers["client_timeout"][0] == "StatusCode.DEADLINE_EXCEEDED"


def test_statistics_count_requests_rows_and_each_stage_alike(seen: Any) -> None:
    before, after = seen["statistics"]["before"], seen["statistics"]["after"]
    assert int(after["version"]) == 1
    assert int(after["inference_count"]) - int(before["inference_count"]) == 6
    assert int(after["execution_count"]) - int(before["execution_count"]) == 3
    for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        was, now = (int(stats["inference_stats"][stage]["count"]) for stats in (before, after))
        assert (stage, now - was) == (stage, 3)
        assert int(after["inference_stats"][stage]["ns"]) > 0
    assert 2 in {int(batch["batch_size"]) for batch in after["batch_stats"]}
    assert sorted(seen["statistics"]["all"]) == ["classifier", "echo", "echo_fixed"]


def test_a_model_is_loaded_listed_and_unloaded(seen: Any, expected: Arrays) -> None:
    repository = seen["repository"]
    assert repository["before"][0] == "StatusCode.UNAVAILABLE"
    assert repository["loaded"] == expected["labels"].tolist()
    assert repository["index"]["spare"] == ["1", "READY"]
    assert repository["ready"] is False
    assert repository["index after"]["spare"][1] == "UNAVAILABLE"
    assert repository["after"][0] == "StatusCode.UNAVAILABLE"
    assert repository["index after"]["classifier"] == ["1", "READY"]
    assert repository["unknown"][0] == "StatusCode.NOT_FOUND"


def test_trace_and_log_settings_are_told_and_changed(seen: Any) -> None:
    settings = seen["settings"]
    assert "trace_level" in settings["trace"]["settings"]
    assert "trace_level" in settings["trace of"]["settings"]
    assert settings["trace after"]["settings"]["trace_rate"]["value"] == ["7"]
    assert settings["trace unknown"][0] == "StatusCode.INVALID_ARGUMENT"
    assert "log_verbose_level" in settings["log"]["settings"]
    assert settings["log after"]["settings"]["log_verbose_level"] == {"uint32_param": 1}


def test_shared_memory_says_that_it_is_not_implemented(seen: Any) -> None:
    answers = seen["shared_memory"]
    for call in ("status", "register", "cuda"):
        assert answers[call][0] == "StatusCode.UNIMPLEMENTED"
        assert "shared memory" in answers[call][1].lower()
    assert answers["output"] == [
        "StatusCode.INVALID_ARGUMENT",
        "output 'labels': shared memory is not supported",
    ]
    assert answers["input"] == [
        "StatusCode.INVALID_ARGUMENT",
        "input 'images': shared memory is not supported",
    ]


@pytest.mark.parametrize(
    ("mistake", "status", "message"),
    [
        ("model", "NOT_FOUND", "model 'nobody' is unknown"),
        ("version", "NOT_FOUND", "version '9'"),
        ("shape", "INVALID_ARGUMENT", "expected shape [-1, 28, 28], got [1, 1]"),
        ("datatype", "INVALID_ARGUMENT", "expected datatype UINT8, got 'FP32'"),
        ("output", "INVALID_ARGUMENT", "output 'logits' is unknown"),
        ("metadata", "NOT_FOUND", "is unknown"),
    ],
)
def test_mistakes_are_told_with_their_status(
    seen: Any, mistake: str, status: str, message: str
) -> None:
    assert seen["errors"][mistake][0] == f"StatusCode.{status}"
    assert message in seen["errors"][mistake][1]
