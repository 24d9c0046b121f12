"""What a run says of each row: class, confidence, calibrated or not, ink; how it is counted."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import IMAGES, THREES_AND_SEVENS, Digits, save_classifier
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from model_repository import (
    CONFIDENCE_EDGES,
    INK_EDGES,
    Distribution,
    Manifest,
    Quality,
    TensorSpec,
)
from serving.batch import Tensors
from serving.counter_directory import Sums, read
from serving.families import MOST_LABELS, Exported, Kept
from serving.metrics import Metrics
from serving.prediction_counts import PredictionCounts
from serving.predictions import Prediction, calibrated, ink, predictor, shares
from training import calibration
from training.dataset import Dataset

PROBABILITIES = TensorSpec("probabilities", "FP32", (-1, 2))
LABELS = TensorSpec("labels", "INT64", (-1,))
MODEL = ("digits", "1")


def quality(temperature: float = 1.5, **known: object) -> Quality:
    return Quality(temperature, 0.01, 1000, **known)  # type: ignore[arg-type]


def manifest(
    *outputs: TensorSpec,
    inputs: tuple[TensorSpec, ...] = (IMAGES,),
    labels: tuple[str, ...] = THREES_AND_SEVENS,
    quality: Quality | None = None,
) -> Manifest:
    return Manifest(
        "digits", 1, inputs, outputs or (PROBABILITIES, LABELS), (), {}, labels=labels,
        quality=quality,
    )  # fmt: skip


def giving(**outputs: NDArray[np.generic]) -> Callable[[Tensors], Tensors]:
    return lambda inputs: dict(outputs)


def predicted(
    facts: Manifest, images: NDArray[np.generic], **outputs: NDArray[np.generic]
) -> list[Prediction]:
    found = predictor(giving(**outputs), facts)
    assert found
    return list(found.of(found.run({facts.inputs[0].name: images})))


def test_each_row_has_its_class_its_confidences_and_its_ink() -> None:
    """At temperature 2, of 0.8 and 0.2: their roots' shares, 2 / 3 and 1 / 3."""
    images = np.zeros((2, 28, 28), np.uint8)
    images[1, :7] = 255
    probabilities = np.array([[0.2, 0.8], [0.5, 0.5]], np.float32)
    rows = predicted(
        manifest(quality=quality(2.0)),
        images,
        probabilities=probabilities,
        labels=np.array([1, 0]),
    )
    assert rows[0] == pytest.approx((1, 0.8, 2 / 3, 0.0))
    assert rows[1] == pytest.approx((0, 0.5, 0.5, 0.25))


def test_without_quality_the_confidence_is_the_models_own() -> None:
    scores = np.array([[0.1, 0.9]], np.float32)
    (row,) = predicted(manifest(), np.zeros((1, 28, 28), np.uint8), probabilities=scores,
                       labels=np.array([1]))  # fmt: skip
    assert row.confidence == row.calibrated == pytest.approx(0.9)


def test_scores_that_are_no_shares_of_one_are_no_confidence() -> None:
    nan = np.nan
    scores = np.array([[3, -2], [0.4, 0.6], [1e30, 0.7], [nan, 0.5], [1.5, -0.5]], np.float32)
    rows = predicted(
        manifest(PROBABILITIES, quality=quality()),
        np.zeros((5, 28, 28), np.uint8),
        probabilities=scores,
    )
    assert [math.isnan(row.confidence) for row in rows] == [True, False, True, True, True]
    assert [math.isnan(row.calibrated) for row in rows] == [True, False, True, True, True]
    assert [row.label for row in rows] == [0, 1, 0, 0, 0]


def test_a_single_column_of_scores_tells_no_class() -> None:
    """As that of a sigmoid: the highest of one is always the first."""
    column = TensorSpec("probability", "FP32", (-1, 1))
    assert predictor(giving(), manifest(column)) is None
    (row,) = predicted(
        manifest(column, LABELS, quality=quality()),
        np.zeros((1, 28, 28), np.uint8),
        probability=np.array([[0.999]], np.float32),
        labels=np.array([1]),
    )
    assert row.label == 1
    assert math.isnan(row.confidence)
    assert math.isnan(row.calibrated)


def test_a_model_without_scores_or_images_has_classes_only() -> None:
    inputs = (TensorSpec("x", "FP32", (-1, 4)),)
    rows = predicted(
        manifest(LABELS, inputs=inputs), np.zeros((2, 4), np.float32), labels=np.array([1, 0])
    )
    assert [row.label for row in rows] == [1, 0]
    assert all(math.isnan(v) for row in rows for v in (row.confidence, row.calibrated, row.ink))


def test_a_single_image_without_a_dimension_for_rows_has_ink() -> None:
    image = np.full((28, 28), 51, np.uint8)
    facts = manifest(inputs=(TensorSpec("images", "UINT8", (28, 28)),))
    (row,) = predicted(
        facts, image, probabilities=np.array([[0.0, 1.0]], np.float32), labels=np.array([1])
    )
    assert row == (1, 1.0, 1.0, 0.2)


def test_no_rows_have_no_predictions() -> None:
    rows = predicted(
        manifest(quality=quality()),
        np.zeros((0, 28, 28), np.uint8),
        probabilities=np.zeros((0, 2), np.float32),
        labels=np.zeros(0, np.int64),
    )
    assert rows == []


@given(
    arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(2, 12)), elements=st.floats(
        0, 1, width=32)),
    st.floats(0.1, 10),
)  # fmt: skip
def test_calibration_is_the_definition_in_double_precision(
    weights: NDArray[np.float32], temperature: float
) -> None:
    weights[:, 0] += 1e-3  # no row is all zeros; single ones are
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    powers = probabilities.astype(np.float64) ** (1 / temperature)
    expected = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
    found = calibrated(probabilities, probabilities.max(axis=1), temperature)
    assert found == pytest.approx(expected, rel=1e-5)
    assert (found <= 1).all()


def test_calibration_takes_certainty_for_what_it_is() -> None:
    probabilities = np.array([[1, 0, 0], [0, 1e-38, 1]], np.float32)
    top = probabilities.max(axis=1)
    assert calibrated(probabilities, top, 0.1).tolist() == [1, 1]
    assert calibrated(probabilities, top, 10.0) == pytest.approx([1, 1 / (1 + 10**-3.8)])


@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 30), st.integers(1, 30))))
def test_ink_is_the_mean_as_a_share_of_255(images: NDArray[np.uint8]) -> None:
    expected = [float(image.mean(dtype=np.float64)) / 255 for image in images]
    assert ink(images, len(images)) == pytest.approx(expected, rel=1e-12, abs=0)


def test_ink_of_a_huge_row_does_not_overflow() -> None:
    row = np.broadcast_to(np.uint8(255), (1, 2**32 // 255 + 1))
    assert ink(row, 1) == pytest.approx(1.0, rel=1e-12)


def test_shares_within_the_rounding_of_half_precision_stay_as_they_are() -> None:
    scores = np.array([[0.499, 0.499], [0.498, 0.499]], np.float16).astype(np.float32)
    assert shares(scores) is scores


# Counting


def counting(directory: Path, facts: Manifest) -> PredictionCounts:
    return PredictionCounts(Metrics(directory, "test").model("digits", 1), facts)


def by_label(sums: Sums) -> dict[str, float]:
    name = Exported.predictions.name
    return {s.labels[2]: slots[0] for s, slots in sums.items() if s.name == name}


@given(
    st.lists(
        st.tuples(
            st.integers(-1, 2),
            st.sampled_from(CONFIDENCE_EDGES) | st.floats(0, 1) | st.just(math.nan),
            st.sampled_from(INK_EDGES) | st.floats(0, 1) | st.just(math.nan),
        ),
        max_size=20,
    )
)
def test_every_row_is_counted_in_the_bin_whose_upper_bound_it_does_not_exceed(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float, float]]
) -> None:
    directory = tmp_path_factory.mktemp("counters")
    counts = counting(directory, manifest())
    middle = len(rows) // 2
    for part in (rows[:middle], rows[middle:]):
        counts.add([Prediction(label, 0.5, sure, inked) for label, sure, inked in part])
    sums = read(directory).sums
    assert by_label(sums) == {
        name: sum(1 for label, _, _ in rows if label == index)
        for index, name in enumerate(THREES_AND_SEVENS)
    }
    assert sums[Kept.predicted.series(*MODEL)][:3] == [*by_label(sums).values(), 0]
    for family, column in ((Exported.confidence, 1), (Exported.ink, 2)):
        values = [float(row[column]) for row in rows if not math.isnan(row[column])]
        *bins, total = sums[family.series(*MODEL)]
        assert bins == [
            sum(1 for value in values if bisect_left(family.bounds, value) == index)
            for index in range(len(family.bounds) + 1)
        ]
        assert total == pytest.approx(sum(values))


def test_the_bins_of_a_value_at_an_edge_end_there(tmp_path: Path) -> None:
    counting(tmp_path, manifest()).add([Prediction(0, 0.9, 0.9, 0.1)])
    sums = read(tmp_path).sums
    assert sums[Exported.confidence.series(*MODEL)][CONFIDENCE_EDGES.index(0.9)] == 1
    assert sums[Exported.ink.series(*MODEL)][INK_EDGES.index(0.1)] == 1


def test_more_than_a_hundred_labels_are_not_counted_one_by_one(tmp_path: Path) -> None:
    for number in (MOST_LABELS, MOST_LABELS + 1):
        names = tuple(map(str, range(number)))
        facts = manifest(labels=names, quality=quality(labels=(1 / number,) * number))
        directory = tmp_path / str(number)
        directory.mkdir()
        counting(directory, facts).add([Prediction(0, 0.5, 0.5, 0.5)])
        sums = read(directory).sums
        assert sum(by_label(sums).values()) == (number == MOST_LABELS)
        expected = sums[Kept.reference.series(*MODEL, "label")]
        assert expected[0] == (number if number == MOST_LABELS else 0)
        assert sum(sums[Exported.confidence.series(*MODEL)][:-1]) == 1


def test_what_the_manifest_expects_is_noted_with_its_number_of_images(tmp_path: Path) -> None:
    inked = Distribution(INK_EDGES, tuple(i / 190 for i in range(1, 20)))
    counting(tmp_path, manifest(quality=quality(ink=inked, labels=(0.25, 0.75))))
    sums = read(tmp_path).sums
    assert sums[Kept.temperature.series(*MODEL)] == [1.5]
    assert sums[Kept.reference.series(*MODEL, "ink")][:21] == [19, 1000, *inked.shares]
    assert sums[Kept.reference.series(*MODEL, "label")][:4] == [2, 1000, 0.25, 0.75]
    assert sums[Kept.reference.series(*MODEL, "confidence")][0] == 0


def test_other_content_under_the_same_number_brings_its_own_reference(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "test").model("digits", 1)
    PredictionCounts(metrics, manifest(quality=quality(labels=(0.25, 0.75))))
    PredictionCounts(metrics, manifest())
    sums = read(tmp_path).sums
    assert sums[Kept.reference.series(*MODEL, "label")][0] == 0
    assert sums[Kept.temperature.series(*MODEL)] == [0]


def test_bins_other_than_the_servers_switch_a_feature_off_and_are_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    other = Distribution((0.5,), (0.4, 0.6))
    counting(tmp_path, manifest(quality=quality(ink=other, labels=(0.5, 0.5))))
    sums = read(tmp_path).sums
    assert sums[Kept.reference.series(*MODEL, "ink")][0] == 0
    assert sums[Kept.reference.series(*MODEL, "label")][0] == 2
    assert [record.getMessage() for record in caplog.records] == [
        "model digits version 1: no drift of ink, its manifest has other bins than this server"
    ]


def test_the_server_counts_in_the_bins_that_the_training_job_counted_in(
    tmp_path: Path, digits: Digits, digits_3_7: Dataset
) -> None:
    """A reference for itself: what it was computed from is counted as it says."""
    save_classifier(tmp_path / "model.onnx", digits)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")

    def run(inputs: Tensors) -> Tensors:
        return dict(zip(("probabilities", "labels"), session.run(None, inputs), strict=True))

    images = digits_3_7.calibration.images
    probabilities = run({"images": images})["probabilities"].astype(np.float32)
    known = calibration.quality(probabilities, digits_3_7)
    found = predictor(run, manifest(quality=known))
    assert found
    counts = counting(tmp_path, manifest(quality=known))
    counts.add(found.of(found.run({"images": images})))
    inked = np.concatenate([digits_3_7.train.images, images])
    sums = read(tmp_path).sums
    assert known.confidence
    assert known.ink
    assert sums[Exported.confidence.series(*MODEL)][:-1] == pytest.approx(
        [share * len(images) for share in known.confidence.shares]
    )
    assert list(by_label(sums).values()) == [share * len(images) for share in known.labels]
    other = tmp_path / "other"
    other.mkdir()
    counting(other, manifest()).add(found.of(found.run({"images": inked})))
    assert read(other).sums[Exported.ink.series(*MODEL)][:-1] == pytest.approx(
        [share * len(inked) for share in known.ink.shares]
    )
