"""Real servers say of real digits how right they probably are, and when not to believe it."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    CLASSIFIER_OUTPUTS,
    IMAGES,
    PATIENCE,
    Digits,
    Running,
    once_within,
    publish_calibrated,
    publish_classifier,
    quality_of,
    save_classifier,
)
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from test_workers import supervised

from model_repository import ONNX_PLATFORM, Draft, Variant, publish, staging
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc
from training.dataset import Dataset

Serve = Callable[..., AbstractContextManager[Running]]
Images = NDArray[np.uint8]
MOST = 2048  # rows in a request


class Quality:
    """What /metrics says of a version."""

    def __init__(self, url: str, model: str = "calibrated") -> None:
        text = urllib.request.urlopen(url, timeout=PATIENCE).read().decode()
        families = text_string_to_metric_families(text)
        self._samples = [
            sample
            for family in families
            for sample in family.samples
            if sample.labels.get("model") == model
        ]

    def values(self, name: str, by: str) -> dict[str, float]:
        """The samples of that name, by the value of one of their labels."""
        return {s.labels[by]: s.value for s in self._samples if s.name == name}

    def value(self, name: str) -> float:
        """The only sample of that name; NaN where there is none."""
        return next((s.value for s in self._samples if s.name == name), math.nan)

    @property
    def psi(self) -> dict[str, float]:
        return self.values("inference_drift_psi", "feature")

    @property
    def estimate(self) -> float:
        return self.value("inference_estimated_accuracy_ratio")

    @property
    def reliable(self) -> float:
        return self.value("inference_estimate_reliable")

    @property
    def as_expected(self) -> bool:
        """Every feature has the shares of its reference, and the window all that was answered."""
        same = len(self.psi) == 3 and all(index < 1e-9 for index in self.psi.values())
        return same and self.reliable == 1 and self.estimates_all

    @property
    def estimates_all(self) -> bool:
        """The window has all that was answered."""
        return abs(self.estimate - self.mean_confidence) < 1e-9

    @property
    def mean_confidence(self) -> float:
        """Over all that was ever answered."""
        name = "inference_confidence_ratio"
        return self.value(f"{name}_sum") / self.value(f"{name}_count")

    @property
    def answered(self) -> float:
        return sum(self.values("inference_predictions_total", "label").values())


def until(url: str, true: Callable[[Quality], bool]) -> Quality:
    """The first that is so, in time."""
    end = time.monotonic() + PATIENCE
    while not true(found := Quality(url)):
        assert time.monotonic() < end, (found.psi, found.estimate, found.reliable, found.answered)
    return found


def ask(
    stubs: Sequence[pb_grpc.GRPCInferenceServiceStub], images: Images, model: str = "calibrated"
) -> NDArray[np.int64]:
    """The classes of the images, of which an equal part is sent over each of the connections: over
    one, all at once, so that nobody can look when a part of them is counted."""
    classes = []
    for number, part in enumerate(np.array_split(images, len(stubs))):
        request = pb.ModelInferRequest(model_name=model, raw_input_contents=[part.tobytes()])
        request.inputs.add(name="images", datatype="UINT8", shape=part.shape)
        answer = stubs[number].ModelInfer(request, timeout=PATIENCE)
        classes.append(np.frombuffer(answer.raw_output_contents[1], np.int64))
    return np.concatenate(classes)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Path:
    """Models `calibrated`, whose reference are all the digits, and `classifier`, without one."""
    path = tmp_path_factory.mktemp("models")
    publish_calibrated(path, digits, digits)
    publish_classifier(path, digits)
    return path


@pytest.fixture
def watched(serve: Serve, repository: Path) -> Iterator[Running]:
    """A server that looks back two seconds."""
    with serve(repository, drift_window=2, max_batch_size=MOST) as running:
        yield running


def test_clean_digits_have_not_drifted_and_their_estimated_accuracy_is_the_true_one(
    watched: Running, digits: Digits
) -> None:
    classes = ask([watched.stub], digits.images)
    found = until(watched.metrics_url, lambda quality: quality.as_expected)
    assert found.estimate == pytest.approx((classes == digits.classes).mean(), abs=1e-5)
    assert found.answered == len(digits.images)


@pytest.mark.parametrize(
    ("changed", "feature"),
    [(lambda x: 255 - x, "ink"), (lambda x: np.rot90(x, axes=(1, 2)), "confidence")],
    ids=["inverted", "rotated"],
)
def test_digits_that_confidence_misjudges_have_drifted_and_that_is_logged_once(
    watched: Running,
    digits: Digits,
    caplog: pytest.LogCaptureFixture,
    changed: Callable[[Images], Images],
    feature: str,
) -> None:
    caplog.set_level(logging.WARNING, "serving.drift")
    classes = ask([watched.stub], changed(digits.images))
    found = until(watched.metrics_url, lambda quality: quality.reliable == 0)
    assert found.psi[feature] > 1 > found.values("inference_drift_limit_psi", "feature")[feature]
    assert found.estimate > (classes == digits.classes).mean() + 0.1
    ask([watched.stub], changed(digits.images))
    until(watched.metrics_url, lambda quality: math.isnan(quality.reliable))
    ask([watched.stub], digits.images)
    until(watched.metrics_url, lambda q: q.reliable == 1 and q.psi[feature] < 0.1)
    lines = [line for line in caplog.messages if f" {feature} " in line]
    assert [line.split("(")[0] for line in lines] == [
        f"model calibrated version 1: {feature} has drifted, its estimated accuracy is unreliable ",
        f"model calibrated version 1: {feature} has drifted back ",
    ]


def test_when_nobody_asks_any_more_nothing_is_said(watched: Running, digits: Digits) -> None:
    assert math.isnan(until(watched.metrics_url, lambda quality: len(quality.psi) == 3).psi["ink"])
    ask([watched.stub], digits.images)
    until(watched.metrics_url, lambda quality: quality.reliable == 1)
    found = until(watched.metrics_url, lambda quality: math.isnan(quality.reliable))
    assert math.isnan(found.estimate)
    assert all(map(math.isnan, found.psi.values()))


def test_a_model_without_reference_is_counted_and_not_judged(
    watched: Running, digits: Digits
) -> None:
    classes = ask([watched.stub], digits.images, "classifier")
    ask([watched.stub], digits.images)
    until(watched.metrics_url, lambda quality: quality.reliable == 1)
    found = Quality(watched.metrics_url, "classifier")
    predictions = found.values("inference_predictions_total", "label")
    assert predictions == {"3": (classes == 0).sum(), "7": (classes == 1).sum()}
    assert found.value("inference_ink_ratio_sum") == pytest.approx(digits.images.mean() / 255 * 362)
    assert found.value("inference_confidence_ratio_sum") == pytest.approx(
        Quality(watched.metrics_url).value("inference_confidence_ratio_count"), rel=0.01
    )
    assert found.psi == {}
    assert math.isnan(found.estimate)


def test_what_a_version_answered_before_its_content_was_replaced_is_not_held_against_it(
    serve: Serve, tmp_path: Path, digits: Digits
) -> None:
    inverted = Digits(255 - digits.images, digits.classes)
    first, second = tmp_path / "first", tmp_path / "second"
    publish_calibrated(first, digits, digits)
    publish_calibrated(second, digits, inverted)
    with serve(first, poll_interval=3600.0, drift_window=20, max_batch_size=MOST) as running:
        ask([running.stub], digits.images)
        until(running.metrics_url, lambda quality: quality.reliable == 1)
        (first / "calibrated" / "1").rename(tmp_path / "replaced")
        (second / "calibrated" / "1").rename(first / "calibrated" / "1")
        running.server.inference.control.poll()
        until(running.metrics_url, lambda quality: math.isnan(quality.reliable))
        ask([running.stub], inverted.images)
        found = until(running.metrics_url, lambda quality: not math.isnan(quality.reliable))
    assert found.reliable == 1
    assert max(found.psi.values()) < 0.1


def test_rows_that_fill_a_batch_up_are_not_counted(
    serve: Serve, repository: Path, digits: Digits
) -> None:
    with serve(repository, batch_buckets=(1, 64)) as running:
        classes = ask([running.stub], digits.images[:40])
        found = Quality(running.metrics_url)
        assert found.answered == len(classes) == 40
        assert found.value("inference_ink_ratio_count") == 40


def test_workers_are_judged_by_what_they_counted_together(repository: Path, digits: Digits) -> None:
    """Half of the digits would have another index than 0."""
    with supervised(repository, "--drift-window", "10") as process:
        workers = process.started()
        with workers.connections() as stubs:
            classes = ask(stubs, digits.images)
            found = until(workers.metrics_url, lambda quality: quality.as_expected)
            assert found.answered == len(digits.images)
            assert found.estimate == pytest.approx((classes == digits.classes).mean(), abs=1e-5)
            ask(stubs, 255 - digits.images)
            found = until(workers.metrics_url, lambda quality: quality.reliable == 0)
            assert found.psi["ink"] > 1


@pytest.mark.mnist
def test_on_mnist_the_estimate_is_within_a_point_and_only_spoilt_images_have_drifted(
    serve: Serve, tmp_path: Path, mnist_3_7: Dataset
) -> None:
    """The reference are the calibration images; nothing of the validation images was seen."""
    train, calibration, valid = (
        Digits(split.images, split.labels)
        for split in (mnist_3_7.train, mnist_3_7.calibration, mnist_3_7.valid)
    )
    publish_calibrated(tmp_path, train, calibration)
    options = {"drift_window": 5, "max_batch_size": MOST}
    with serve(tmp_path, **options) as running:
        classes = ask([running.stub], valid.images)
        found = until(running.metrics_url, lambda quality: quality.estimates_all)
        assert found.answered == len(valid.images)
        assert max(found.psi.values()) < 0.1
        assert found.estimate == pytest.approx((classes == valid.classes).mean(), abs=0.01)
    for spoilt in (255 - valid.images, np.rot90(valid.images, axes=(1, 2))):
        with serve(tmp_path, **options) as running:
            classes = ask([running.stub], spoilt)
            found = until(running.metrics_url, lambda quality: quality.reliable == 0)
            assert found.estimate > (classes == valid.classes).mean() + 0.2


def test_the_watch_ends_with_the_server(serve: Serve, repository: Path) -> None:
    def seconds_to_stop() -> float:
        with serve(repository, drift_window=7 * 86400):  # it would look again in five seconds
            began = time.monotonic()
        return time.monotonic() - began

    assert once_within(3, seconds_to_stop)


def test_a_variant_is_compared_with_what_it_answered_itself(
    serve: Serve, digits: Digits, tmp_path: Path
) -> None:
    with staging(tmp_path) as directory:
        for name in ("model.onnx", "model.int8.onnx"):
            save_classifier(directory / name, digits)
        own = quality_of(directory / "model.int8.onnx", digits)
        fp32 = Variant("model.onnx", ONNX_PLATFORM, "fp32", "")
        int8 = Variant("model.int8.onnx", ONNX_PLATFORM, "int8", "", quality=own)
        other = dataclasses.replace(own, temperature=50 * own.temperature)
        facts: dict[str, object] = {"labels": ("3", "7"), "quality": other}
        publish(directory, Draft("calibrated", (IMAGES,), CLASSIFIER_OUTPUTS, (fp32, int8), facts))
    expected = {"int8": 1.0, "fp32": 0.0}
    for precision, reliable in expected.items():
        options = {"drift_window": 2, "max_batch_size": MOST, "precision": precision}
        with serve(tmp_path, **options) as running:
            ask([running.stub], digits.images)
            found = until(running.metrics_url, lambda quality: not math.isnan(quality.reliable))
            assert found.reliable == reliable
