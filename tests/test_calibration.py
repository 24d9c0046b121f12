"""Calibration: the temperature, its error, and what a manifest says of a model's answers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_repository import CONFIDENCE_EDGES, INK_EDGES, MANIFEST, Quality
from training import export
from training.calibration import (
    Floats,
    calibrated,
    distribution,
    expected_calibration_error,
    fit_temperature,
    ink,
    quality,
    reliability,
)
from training.dataset import Dataset, Split
from training.learner import Epoch
from training.recipes import recipe_for
from training.reliability_diagram import wilson
from training.run import publish_trained, published_alike, train


class Silent:
    """An observer that shows nothing."""

    def batch(self, epoch: int, done: int, batches: int) -> None:
        """Ignore a step."""

    def epoch(self, row: Epoch) -> None:
        """Ignore an epoch."""


def answers(images: int, classes: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Probabilities that are right as often as they say, and labels drawn by them."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (images, classes))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    draws = random.random((images, 1))
    return shares, (shares.cumsum(axis=1) < draws).sum(axis=1)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7, 4.0])
def test_a_known_temperature_is_found_and_undone(classes: int, temperature: float) -> None:
    true, labels = answers(50_000, classes)
    spoilt = calibrated(true, 1 / temperature)  # as sure as if it had been divided by so much
    assert fit_temperature(spoilt, labels) == pytest.approx(temperature, rel=0.03)
    np.testing.assert_allclose(calibrated(spoilt, temperature), true, rtol=1e-9)


def test_calibrated_confidence_is_as_often_right_as_it_says_on_other_images() -> None:
    shares, labels = answers(40_000, 10)
    spoilt = calibrated(shares, 0.4)
    fitted, other = slice(0, 20_000), slice(20_000, None)
    temperature = fit_temperature(spoilt[fitted], labels[fitted])
    before = reliability(spoilt[other], labels[other])
    after = reliability(calibrated(spoilt[other], temperature), labels[other])
    assert expected_calibration_error(before) > 0.1
    assert expected_calibration_error(after) < 0.01


def test_calibration_changes_neither_the_order_nor_the_sum_of_a_row() -> None:
    shares, _ = answers(100, 5)
    for temperature in (0.1, 10.0):
        flat = calibrated(shares.astype(np.float32), temperature)
        np.testing.assert_allclose(flat.sum(axis=1), 1)
        np.testing.assert_array_equal(flat.argmax(axis=1), shares.argmax(axis=1))


def test_probabilities_of_exactly_0_and_1_stay_what_they_are() -> None:
    shares = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    np.testing.assert_array_equal(calibrated(shares, 3.0), shares)


def test_a_model_that_makes_no_error_is_not_told_to_be_sure_of_everything() -> None:
    shares = np.tile([0.9, 0.1], (600, 1))
    temperature = fit_temperature(shares, np.zeros(600, np.int64))
    confidence = calibrated(shares, temperature).max(axis=1).mean()
    assert confidence == pytest.approx(600.5 / 601, abs=1e-5)
    assert 0.25 < temperature < 0.35


def test_a_model_that_is_always_sure_and_sometimes_wrong_gets_a_finite_temperature() -> None:
    shares = np.tile(np.array([1.0, 0.0], np.float32), (100, 1))
    labels = np.array([0] * 90 + [1] * 10)
    assert fit_temperature(shares, labels) == pytest.approx(10.0, abs=1e-5)  # the bound


def test_the_expected_calibration_error_by_hand() -> None:
    # Bins of a fifteenth: 0.6 belongs to (8/15, 9/15], 0.95 and 1.0 to the last.
    shares = np.array([[0.6, 0.4], [0.4, 0.6], [0.95, 0.05], [1.0, 0.0]])
    labels = np.array([0, 0, 0, 1])
    bins = reliability(shares, labels)
    assert [(each.images, each.accuracy) for each in bins] == [(2, 0.5), (2, 0.5)]
    assert [each.confidence for each in bins] == pytest.approx([0.6, 0.975])
    assert expected_calibration_error(bins) == pytest.approx(0.5 * 0.1 + 0.5 * 0.475)


def test_a_value_on_an_edge_belongs_to_the_bin_below_it() -> None:
    found = distribution(np.array([0.0, 0.5, 0.5001, 0.75, 1.0]), (0.5, 0.75))
    assert found.edges == (0.5, 0.75)
    assert found.shares == pytest.approx((0.4, 0.4, 0.2))


def test_ink_is_the_mean_pixel_as_a_share_of_white() -> None:
    images = np.zeros((3, 28, 28), np.uint8)
    images[1] = 255
    images[2, :14] = 51
    assert ink(images).tolist() == pytest.approx([0.0, 1.0, 0.1])


def test_validation_images_have_no_say(digits_3_7: Dataset) -> None:
    random = np.random.default_rng(0)
    shares = random.dirichlet((1, 1), len(digits_3_7.calibration.labels)).astype(np.float32)
    valid = Split(255 - digits_3_7.valid.images, 1 - digits_3_7.valid.labels)
    spoilt = dataclasses.replace(digits_3_7, valid=valid)
    assert quality(shares, digits_3_7) == quality(shares, spoilt)


def test_the_manifest_says_what_the_published_model_answers_to_the_calibration_images(
    digits_3_7: Dataset, tmp_path: Path
) -> None:
    recipe = recipe_for("pixel_similarity", "best", 2)
    trained = train("pixel_similarity", "best", recipe, digits_3_7, seed=0, observer=Silent())
    published = publish_trained(trained, digits_3_7, "baseline", tmp_path)
    found = published.manifest.quality
    assert found is not None
    held = digits_3_7.calibration
    shares, predicted = export.onnx_runner(published.directory / "model.onnx")(held.images)
    assert found.images == len(held.labels)
    confidence = calibrated(shares, found.temperature).max(axis=1)
    right = int((predicted == held.labels).sum())
    assert confidence.mean() == pytest.approx((right + 0.5) / (len(held.labels) + 1), abs=1e-4)
    assert found.labels == pytest.approx(np.bincount(predicted) / len(predicted))
    assert found.ink is not None
    assert found.confidence is not None
    assert (found.ink.edges, found.confidence.edges) == (INK_EDGES, CONFIDENCE_EDGES)
    darkest = (digits_3_7.train.images.mean(axis=(1, 2)) / 255 <= INK_EDGES[2]).sum()
    darkest += (held.images.mean(axis=(1, 2)) / 255 <= INK_EDGES[2]).sum()
    images = len(digits_3_7.train.labels) + len(held.labels)
    assert sum(found.ink.shares[:3]) == pytest.approx(darkest / images)


def test_a_version_from_before_there_was_quality_is_not_kept(
    digits_3_7: Dataset, tmp_path: Path
) -> None:
    recipe = recipe_for("pixel_similarity", "best", 2)
    trained = train("pixel_similarity", "best", recipe, digits_3_7, seed=0, observer=Silent())
    directory = publish_trained(trained, digits_3_7, "baseline", tmp_path).directory

    def kept() -> Path | None:
        return published_alike(directory.parent, "best", recipe, digits_3_7, seed=0)

    assert kept() == directory
    path = directory / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quality": None}))
    assert kept() is None


def test_intervals_are_wilsons() -> None:
    low, high = wilson(np.array([0.0, 0.5, 1.0]), np.array([10, 100, 10]))
    # Of 0 of 10, 50 of 100 and 10 of 10, without continuity correction.
    assert low == pytest.approx([0.0, 0.40383, 0.72247], abs=1e-5)
    assert high == pytest.approx([0.27753, 0.59617, 1.0], abs=1e-5)


@pytest.mark.mnist
@pytest.mark.parametrize("model", ["pixel_similarity", "linear", "mlp"])
def test_calibrated_confidence_estimates_the_accuracy_on_images_never_seen(
    mnist_3_7: Dataset, model: str, tmp_path: Path
) -> None:
    recipe = recipe_for(model, "best", 2)
    trained = train(model, "best", recipe, mnist_3_7, seed=0, observer=Silent(), epochs=3)
    runner = export.eager_runner(trained.classifier)
    known = quality(export.answer(runner, mnist_3_7.calibration.images, 256)[0], mnist_3_7)
    clean, soft = (_estimate(runner, mnist_3_7.valid, known, blurred) for blurred in (False, True))
    assert abs(clean[0] - clean[1]) <= 0.01
    assert soft[0] < clean[0]
    assert soft[1] < clean[1]


def _estimate(
    runner: export.Runner, valid: Split, known: Quality, blurred: bool
) -> tuple[float, float]:
    """Estimated and true accuracy."""
    images = valid.images
    if blurred:  # the mean of 7x7 pixels
        padded = np.pad(images.astype(np.float64), ((0, 0), (3, 3), (3, 3)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(1, 2))
        images = windows.mean(axis=(-1, -2)).astype(np.uint8)
    shares, predicted = export.answer(runner, images, 256)
    estimate = calibrated(shares, known.temperature).max(axis=1).mean()
    return float(estimate), float((predicted == valid.labels).mean())
