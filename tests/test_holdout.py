"""A version must answer its own labelled images as its manifest says before it takes traffic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from conftest import Digits, publish_proven
from numpy.typing import NDArray

from model_repository import HOLDOUT, ONNX_PLATFORM, Variant, read_manifest
from serving import holdout
from serving.device import Runtime
from serving.errors import ModelLoadError
from serving.model import Model, load

CPU = Runtime("cpu", "fp32", 1, max_batch_size=8)
Arrays = Mapping[str, NDArray[np.generic]]


def fp32(accuracy: float | None = None, holdout_accuracy: float | None = None) -> Variant:
    return Variant("model.onnx", ONNX_PLATFORM, "fp32", "", accuracy, holdout_accuracy)


def labelled(digits: Digits, wrong: int = 0, rows: int = 50) -> Arrays:
    """The first images, and their classes, of which so many are swapped."""
    labels = digits.classes[:rows].copy()
    labels[:wrong] = 1 - labels[:wrong]
    return {"images": digits.images[:rows], "labels": labels}


def loaded(directory: Path, runtime: Runtime = CPU) -> Model:
    return load(directory, read_manifest(directory), runtime)


def refused(directory: Path, runtime: Runtime = CPU) -> ModelLoadError:
    with pytest.raises(ModelLoadError) as caught:
        loaded(directory, runtime)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def right(digits: Digits, tmp_path: Path) -> float:
    """The share of the first 50 images that the classifier gets right, counted by hand."""
    directory = publish_proven(tmp_path / "plain", digits, fp32())
    answer = loaded(directory).run({"images": digits.images[:50]})
    return float((answer["labels"] == digits.classes[:50]).mean())


def test_a_version_that_is_as_good_as_its_manifest_says_is_loaded_and_noted(
    tmp_path: Path, digits: Digits, right: float
) -> None:
    directory = publish_proven(
        tmp_path, digits, fp32(holdout_accuracy=right), holdout=labelled(digits)
    )
    assert loaded(directory).notes == (f"fp32 got {right:.4f} of 50 holdout rows right",)


@pytest.mark.parametrize("buckets", [(), (4,), (16, 64)])
def test_buckets_do_not_change_what_is_counted(
    tmp_path: Path, digits: Digits, right: float, buckets: tuple[int, ...]
) -> None:
    directory = publish_proven(
        tmp_path, digits, fp32(holdout_accuracy=0.5), holdout=labelled(digits)
    )
    runtime = Runtime("cpu", "fp32", 1, max_batch_size=64, buckets=buckets)
    assert loaded(directory, runtime).notes == (f"fp32 got {right:.4f} of 50 holdout rows right",)


def test_a_version_below_its_accuracy_is_refused_and_within_the_tolerance_taken(
    tmp_path: Path, digits: Digits, right: float
) -> None:
    variant = fp32(accuracy=0.1, holdout_accuracy=right)
    directory = publish_proven(tmp_path, digits, variant, holdout=labelled(digits, wrong=2))
    error = refused(directory)
    assert error.reason == "holdout"
    assert f"accuracy {right - 0.04:.4f} on its 50 holdout rows" in str(error)
    assert f"at least {right - 0.01:.4f} is required" in str(error)
    tolerant = Runtime("cpu", "fp32", 1, max_batch_size=8, holdout_tolerance=0.04)
    assert loaded(directory, tolerant).variant.holdout_accuracy == right


def test_the_accuracy_on_all_images_allows_for_an_unlucky_sample() -> None:
    assert holdout.floor(fp32(0.9), 100, 0.01) == pytest.approx(0.9 - 0.01 - 3 * 0.03)
    assert holdout.floor(fp32(0.9, 0.93), 100, 0.01) == pytest.approx(0.92)
    assert holdout.floor(fp32(), 100, 0.01) is None
    assert holdout.floor(fp32(1.0), 100, 0.01) == pytest.approx(0.99)


def test_a_model_that_answers_at_random_is_refused_by_its_accuracy_on_all_images(
    tmp_path: Path, digits: Digits
) -> None:
    swapped = labelled(digits, wrong=25)
    directory = publish_proven(tmp_path, digits, fp32(accuracy=0.99), holdout=swapped)
    assert refused(directory).reason == "holdout"


@pytest.mark.parametrize(
    ("variant", "arrays"),
    [
        (fp32(0.99), None),
        (fp32(), {"images": np.zeros((3, 28, 28), np.uint8), "labels": np.zeros(3, np.int64)}),
        (fp32(0.99), {"images": np.zeros((3, 28, 28), np.uint8)}),
    ],
    ids=["no holdout", "no accuracy", "no labels"],
)
def test_without_labelled_images_or_an_accuracy_nothing_is_checked(
    tmp_path: Path, digits: Digits, variant: Variant, arrays: Arrays | None
) -> None:
    directory = publish_proven(tmp_path, digits, variant, holdout=arrays)
    assert loaded(directory).notes == ()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.zeros(3, np.int64)}, "has no array 'images'"),
        (
            {"images": np.zeros((3, 28, 28), np.float32), "labels": np.zeros(3, np.int64)},
            "'images' is float32 (3, 28, 28), not UINT8 (3, 28, 28)",
        ),
        (
            {"images": np.zeros((3, 8, 8), np.uint8), "labels": np.zeros(3, np.int64)},
            "'images' is uint8 (3, 8, 8), not UINT8 (3, 28, 28)",
        ),
        (
            {"images": np.zeros((2, 28, 28), np.uint8), "labels": np.zeros(3, np.int64)},
            "'images' is uint8 (2, 28, 28), not UINT8 (3, 28, 28)",
        ),
        (
            {"images": np.zeros((3, 28, 28), np.uint8), "labels": np.zeros(3)},
            "labels are float64 (3,), not integers (N,)",
        ),
        ({"images": np.zeros((0, 28, 28), np.uint8), "labels": np.zeros(0, int)}, "one row"),
        ({"labels": np.array([{}], dtype=object)}, "unreadable"),
    ],
)
def test_a_holdout_that_does_not_suit_the_model_is_refused(
    tmp_path: Path, digits: Digits, arrays: Arrays, message: str
) -> None:
    directory = publish_proven(tmp_path, digits, fp32(0.9), holdout=arrays)
    error = refused(directory)
    assert error.reason == "holdout"
    assert message in str(error)


def test_a_holdout_that_was_tampered_with_is_refused(tmp_path: Path, digits: Digits) -> None:
    directory = publish_proven(tmp_path, digits, fp32(0.9), holdout=labelled(digits))
    np.savez(directory / HOLDOUT, **labelled(digits, wrong=1))  # type: ignore[arg-type]
    error = refused(directory)
    assert error.reason == "checksum"
    assert "holdout.npz: sha256 is" in str(error)
