"""The comparison of runtimes: a small real model, a real server, all but TorchServe."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from conftest import CLASSIFIER_OUTPUTS, IMAGES, THREES_AND_SEVENS, Digits, save_classifier
from onnx import numpy_helper

from benchmarks.parity.__main__ import main
from benchmarks.parity.measure import Measured, shortfalls
from model_repository import (
    ONNX_PLATFORM,
    TORCHSCRIPT_PLATFORM,
    Draft,
    Variant,
    publish,
    staging,
)
from training.dataset import Dataset
from training.models import Classifier, build


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, digits_3_7: Dataset) -> Path:
    """The tests' linear classifier as ONNX, and as TorchScript of the same parameters."""
    digits = Digits(digits_3_7.train.images, digits_3_7.train.labels)
    repository = tmp_path_factory.mktemp("models")
    with staging(repository) as directory:
        save_classifier(directory / "model.onnx", digits)
        graph = onnx.load(directory / "model.onnx").graph
        constants = {each.name: numpy_helper.to_array(each).copy() for each in graph.initializer}
        classifier = Classifier(build("linear", 2, standardise=False), one_logit=False).eval()
        weight, bias = torch.tensor(constants["weights"].T), torch.tensor(constants["bias"])
        classifier.load_state_dict({"network.1.1.weight": weight, "network.1.1.bias": bias})
        torch.jit.script(classifier).save(str(directory / "model.pt"))
        variants = (
            Variant("model.onnx", ONNX_PLATFORM, "fp32", ""),
            Variant("model.pt", TORCHSCRIPT_PLATFORM, "fp32", ""),
        )
        recipe = {"network": "linear", "loss": "cross_entropy", "standardise": False}
        facts: dict[str, object] = {"labels": THREES_AND_SEVENS, "recipe": recipe}
        publish(directory, Draft("linear", (IMAGES,), CLASSIFIER_OUTPUTS, variants, facts))
    return repository


def compare(models: Path, output: Path) -> int:
    arguments = ["--model-repository", str(models), "--models", "linear", "--dataset", "digits"]
    arguments += ["--torchserve", str(output / "absent"), "--output", str(output)]
    return main([*arguments, "--requests", "3"])


def test_what_runs_here_agrees_and_what_does_not_is_named(
    models: Path, digits_3_7: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(models, tmp_path) == 0
    record = json.loads((tmp_path / "parity.json").read_text())
    images = len(digits_3_7.valid.labels)
    assert record["images"]["count"] == images
    rows = {row["runtime"]: row for row in record["rows"]}
    for runtime in ("eager PyTorch", "TorchScript", "ONNX Runtime, CPU", "digits, gRPC, CPU"):
        measured = rows[runtime]["measured"]
        assert measured["label_disagreements"] == 0
        assert measured["max_probability_difference"] <= 1e-5
        assert measured["accuracy"] == rows["eager PyTorch"]["measured"]["accuracy"] > 0.9
        assert rows[runtime]["faults"] == []
    absent = rows["TorchServe, V2 gRPC"]
    assert (absent["measured"], absent["why_not"]) == (
        None,
        "TorchServe is not installed in absent",
    )
    text = capsys.readouterr().out
    assert f"give eager PyTorch's label for each of {images} images" in text
    assert "from digits; without MNIST, this is no full check" in text
    page = (tmp_path / "parity.html").read_text()
    assert page.count("<tr>") == 1 + len(record["rows"])
    assert not re.search(r"https?://|src=|@import|url\(", page)


def test_a_file_that_is_not_what_was_published_is_not_opened(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models, tmp_path / "models")
    with (tmp_path / "models" / "linear" / "1" / "model.pt").open("ab") as file:
        file.write(b"more")
    assert compare(tmp_path / "models", tmp_path) == 2
    assert re.search(r"model\.pt: sha256 is \w+, the manifest says", capsys.readouterr().err)


def measured(disagreements: int = 0, difference: float = 0.0, accuracy: float = 0.98) -> Measured:
    return Measured(disagreements, difference, accuracy, 0.001, 1000.0)


@pytest.mark.parametrize(
    ("precision", "seen", "promised", "faults"),
    [
        ("fp32", measured(), 0.98, ()),
        ("fp32", measured(difference=1e-4), None, ()),
        ("fp32", measured(1, 2e-4), None, ("1 labels differ", "probabilities differ by 2.0e-04")),
        ("fp32", measured(difference=float("nan")), None, ("probabilities differ by nan",)),
        ("int8", measured(40, 0.3), 0.98, ()),  # other labels, as often right
        ("int8", measured(accuracy=0.979), 0.979, ()),
        (
            "fp16",
            measured(accuracy=0.9785),
            0.98,
            (
                "accuracy is 0.9785, eager PyTorch's 0.9800",
                "accuracy is 0.9785, the manifest says 0.9800",
            ),
        ),
    ],
)
def test_what_a_runtime_may_differ_in_depends_on_its_precision(
    precision: str, seen: Measured, promised: float | None, faults: tuple[str, ...]
) -> None:
    assert shortfalls(precision, seen, 0.98, promised, images=2038) == faults


def test_of_few_images_one_may_be_wrong_in_another_precision() -> None:
    assert shortfalls("int8", measured(accuracy=0.96), 0.98, 0.98, images=50) == ()
