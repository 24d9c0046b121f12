"""The benchmark of estimated accuracy: what it does to images, what a real server says of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quality
from benchmarks.perturbed import Perturbation
from benchmarks.quality_table import Result, checks, table
from serving.config import ServerConfig
from training.__main__ import main
from training.dataset import Dataset

CLEAN = Perturbation("clean")
BLUR = Perturbation("blur", 1.5)
TURNED = Perturbation("rotation", 90.0)
INVERSION = Perturbation("inversion")


def test_blur_is_a_gaussian_with_black_beyond_the_border() -> None:
    dots = np.zeros((2, 28, 28), np.uint8)
    dots[0, 10, 14], dots[1, 0, 0] = 255, 255
    blurred = BLUR.of(dots)
    bell = np.exp(-(np.arange(-40, 41) ** 2) / (2 * 1.5**2))
    bell /= bell.sum()
    for image, (row, column) in zip(blurred, ((10, 14), (0, 0)), strict=True):
        rows, columns = bell[40 - row : 68 - row], bell[40 - column : 68 - column]
        assert np.abs(image - 255 * np.outer(rows, columns)).max() <= 0.501


def test_noise_is_the_same_every_time_and_as_strong_as_asked() -> None:
    grey = np.full((4, 28, 28), 128, np.uint8)
    noisy = Perturbation("noise", 0.1).of(grey)
    np.testing.assert_array_equal(noisy, Perturbation("noise", 0.1).of(grey))
    assert noisy.std() == pytest.approx(25.5, rel=0.05)
    assert noisy.mean() == pytest.approx(128, abs=1.5)


def test_images_are_turned_by_the_angle_and_inverted(digits_3_7: Dataset) -> None:
    images = digits_3_7.valid.images[:5]
    np.testing.assert_array_equal(TURNED.of(images), np.rot90(images, axes=(1, 2)))
    np.testing.assert_array_equal(INVERSION.of(images), 255 - images)
    np.testing.assert_array_equal(CLEAN.of(images), images)


def result(perturbation: Perturbation, true: float, estimated: float, index: float) -> Result:
    """What a server that goes by 0.25 says of a model."""
    indices = {"ink": index, "confidence": 0.0, "label": 0.0}
    return Result("m", "fp32", perturbation, 1000, true, estimated, index < 0.25, 0.0, indices)


GOOD = (
    result(CLEAN, 0.98, 0.985, 0.01),
    result(BLUR, 0.90, 0.95, 0.3),
    result(INVERSION, 0.3, 0.99, 0.3),
)


def test_results_as_they_should_be_miss_nothing() -> None:
    assert [check.missed for check in checks(GOOD, 0.25)] == [[], [], [], [], []]
    text = table(GOOD, 0.25, {"versions": {}, **dict.fromkeys(FACTS, "")})
    assert "| blur 1.5 px | 0.9000 | 0.9500 | +5.00 | 0.0000 | 0.300 |" in text
    assert text.count(": met\n") == 5


FACTS = ("processor", "cores", "memory_gib", "python", "commit", "date")


@pytest.mark.parametrize(
    ("at", "changes", "missed"),
    [
        (0, {"estimated_accuracy": 0.9901}, [0]),
        (0, {"stability_index": {"ink": 0.1}}, [1]),
        (1, {"estimated_accuracy": 0.9851}, [2]),
        (1, {"reliable": True}, [4]),
        (2, {"reliable": True}, [3, 4]),
    ],
)
def test_each_result_that_is_otherwise_is_named(
    at: int, changes: dict[str, object], missed: list[int]
) -> None:
    results = list(GOOD)
    results[at] = dataclasses.replace(results[at], **changes)  # type: ignore[arg-type]
    found = [check.missed for check in checks(results, 0.25)]
    assert [number for number, each in enumerate(found) if each] == missed
    for number in missed:
        assert found[number][0].startswith(f"m, fp32, {results[at].perturbation}: ")


@pytest.mark.mnist
def test_a_server_estimates_its_accuracy_on_clean_digits_and_tells_that_others_drifted(
    mnist_3_7: Dataset, mnist_dir: Path, tmp_path: Path
) -> None:
    command = ["--models", "linear", "--epochs", "3", "--data-dir", str(mnist_dir)]
    assert main([*command, "--model-repository", str(tmp_path)]) == 0
    config = ServerConfig(
        model_repository=tmp_path,
        grpc_port=0,
        metrics_port=0,
        drift_window=20,
        probe_interval=0,
        precision="fp32",
    )
    manifests = quality.with_quality(tmp_path)
    valid = {mnist_3_7.labels: mnist_3_7.valid}
    results = [
        each
        for perturbation in (CLEAN, INVERSION)
        for each in quality.measure(manifests, valid, config, perturbation)
    ]
    assert [check.missed for check in checks(results, 0.25)] == [[], [], [], [], []]
    clean, inverted = results
    assert abs(clean.off) <= 1
    assert max(clean.stability_index.values()) < 0.1
    assert inverted.stability_index["ink"] > 1
    assert inverted.off > 10
