"""Feedback: which labels count, where, and why the others do not."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import CLASSIFIER_OUTPUTS, IMAGES, Digits, publish_classifier, publish_times

from model_repository import ONNX_PLATFORM, Manifest, TensorSpec, Variant, read_manifest
from repository_upkeep import rollback
from serving.counted_ids import CountedIds
from serving.families import DELAYS, MOST_LABELS, Exported
from serving.feedback import Feedback, Outcome, Result, published_labels
from serving.metrics import Metrics
from serving.prediction_ids import Signer
from serving.predictions import Prediction

TTL = 3600.0
KEY = b"a secret of this test"


@dataclass
class Setting:
    """Feedback over a directory, with a clock that the test sets."""

    directory: Path
    ttl: float = TTL
    published: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)
    later: float = 0.0

    def __post_init__(self) -> None:
        self.signer = Signer([KEY])
        self.metrics = Metrics(self.directory, "1")
        self.asked: list[tuple[str, int]] = []
        counted = CountedIds(self.directory, 1024)
        self.feedback = Feedback(
            self.signer, self.metrics, counted, self._published, self.ttl, self._clock
        )

    def _clock(self) -> float:
        return time.time() + self.later

    def _published(self, model: str, version: int) -> tuple[str, ...] | None:
        self.asked.append((model, version))
        return self.published.get((model, version))

    def serve(
        self,
        *labels: str,
        outputs: tuple[TensorSpec, ...] = CLASSIFIER_OUTPUTS,
        show: bool = True,
    ) -> None:
        variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "")
        manifest = Manifest("m", 1, (IMAGES,), outputs, (variant,), {}, labels=labels)
        self.feedback.expect(manifest, show=show)

    def id_of(self, label: int, model: str = "m", version: int = 1, classes: int = 1000) -> str:
        return self.signer.ids(model, str(version), classes, [Prediction(label, 0.9, 0.9, 0.1)])[0]

    def take(self, text: str, label: str) -> Result:
        return self.feedback.take([(text, label)])[0]

    def cells(self, model: str = "m", version: str = "1") -> dict[tuple[str, ...], float]:
        """By truth, predicted and correct."""
        return {
            series.labels[2:]: slots[0]
            for series, slots in self.metrics.sums().items()
            if series.name == Exported.feedback.name and series.labels[:2] == (model, version)
        }

    def refused(self) -> dict[str, float]:
        return {
            series.labels[0]: slots[0]
            for series, slots in self.metrics.sums().items()
            if series.name == Exported.feedback_refused.name
        }

    def delays(self) -> list[float]:
        return self.metrics.sums()[Exported.feedback_delay_seconds.series("m", "1")]


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


REASONS = ("repeated", "malformed", "forged", "expired", "unknown_model")


def test_every_cell_is_there_at_zero_before_the_first_label(setting: Setting) -> None:
    setting.serve("3", "7")
    assert setting.cells() == {
        ("3", "3", "true"): 0,
        ("7", "3", "false"): 0,
        ("other", "3", "false"): 0,
        ("3", "7", "false"): 0,
        ("7", "7", "true"): 0,
        ("other", "7", "false"): 0,
    }
    assert setting.delays() == [0] * (len(DELAYS) + 2)
    assert setting.refused() == dict.fromkeys(REASONS, 0)


def test_one_process_shows_the_cells_and_the_others_what_they_counted(setting: Setting) -> None:
    setting.serve("3", "7", show=False)
    assert setting.cells() == {}
    assert setting.take(setting.id_of(0), "7") == Result(Outcome.COUNTED)
    assert setting.cells() == {("7", "3", "false"): 1}
    assert setting.asked == []


def test_labels_are_counted_by_truth_and_prediction(setting: Setting) -> None:
    setting.serve("3", "7")
    told = [(0, "3"), (0, "3"), (0, "7"), (1, "7"), (1, "8"), (1, " 7")]
    results = setting.feedback.take([(setting.id_of(index), truth) for index, truth in told])
    assert results == [Result(Outcome.COUNTED)] * 6
    above = {labels: count for labels, count in setting.cells().items() if count}
    assert above == {
        ("3", "3", "true"): 2,
        ("7", "3", "false"): 1,
        ("7", "7", "true"): 1,
        ("other", "7", "false"): 2,
    }


def test_a_repeated_label_counts_once_whatever_it_says(setting: Setting) -> None:
    setting.serve("3", "7")
    text = setting.id_of(0)
    outcomes = [each.outcome for each in setting.feedback.take([(text, "3"), (text, "7")])]
    outcomes.append(setting.take(text, "3").outcome)
    assert outcomes == [Outcome.COUNTED, Outcome.REPEATED, Outcome.REPEATED]
    assert sum(setting.cells().values()) == setting.cells()["3", "3", "true"] == 1
    assert setting.refused() == dict.fromkeys(REASONS, 0) | {"repeated": 2}


def test_one_that_is_refused_fails_no_other_and_each_has_its_reason(setting: Setting) -> None:
    setting.serve("3", "7")
    foreign = Signer([b"a secret of others"]).ids("m", "1", 2, [Prediction(0, 1.0, 1.0, 0.1)])[0]
    results = setting.feedback.take(
        [
            (setting.id_of(0), "3"),
            ("no id", "3"),
            (setting.id_of(1), ""),
            (foreign, "3"),
            (setting.id_of(0, "gone"), "3"),
            (setting.id_of(1), "7"),
        ]
    )
    assert results == [
        Result(Outcome.COUNTED),
        Result(Outcome.MALFORMED, "not a prediction id"),
        Result(Outcome.MALFORMED, "no label"),
        Result(Outcome.FORGED, "not signed with a key of this server"),
        Result(Outcome.UNKNOWN_MODEL, "model 'gone' version 1 is not in the repository any more"),
        Result(Outcome.COUNTED),
    ]
    expected = {"repeated": 0, "malformed": 2, "forged": 1, "expired": 0, "unknown_model": 1}
    assert setting.refused() == expected
    assert sum(setting.cells().values()) == 2


def test_a_label_may_come_until_the_ttl_and_its_delay_is_counted(setting: Setting) -> None:
    setting.serve("3", "7")
    texts = [setting.id_of(0) for _ in range(4)]
    setting.later = -5.0  # another replica's clock runs ahead
    assert setting.take(texts[0], "3") == Result(Outcome.COUNTED)
    setting.later = 30.0
    assert setting.take(texts[1], "3") == Result(Outcome.COUNTED)
    setting.later = TTL - 60
    assert setting.take(texts[2], "3") == Result(Outcome.COUNTED)
    setting.later = TTL + 1
    assert setting.take(texts[3], "3") == Result(Outcome.EXPIRED, "older than 3600 seconds")
    *buckets, total = setting.delays()
    assert dict(zip(DELAYS, buckets, strict=False)) == {
        **dict.fromkeys(DELAYS, 0),
        1.0: 1,
        60.0: 1,
        3600.0: 1,
    }
    assert total == pytest.approx(30 + TTL - 60, abs=20)


def test_a_ttl_of_many_days_is_told_in_full(tmp_path: Path) -> None:
    setting = Setting(tmp_path, ttl=30 * 86400.0)
    setting.serve("3", "7")
    text = setting.id_of(0)
    setting.later = setting.ttl + 1
    assert setting.take(text, "3") == Result(Outcome.EXPIRED, "older than 2592000 seconds")


def test_a_class_named_other_has_what_is_no_class_beside_it(setting: Setting) -> None:
    setting.serve("a", "other")
    results = [setting.take(setting.id_of(1), truth).outcome for truth in ("other", "é", "b")]
    assert results == [Outcome.COUNTED] * 3
    above = {labels: count for labels, count in setting.cells().items() if count}
    assert above == {("other", "other", "true"): 1, ("other", "other", "false"): 2}


def test_a_model_of_very_many_classes_is_counted_as_right_or_wrong_only(setting: Setting) -> None:
    setting.serve(*map(str, range(MOST_LABELS + 1)))
    for index, truth in ((100, "100"), (99, "100"), (0, "none of them")):
        assert setting.take(setting.id_of(index), truth) == Result(Outcome.COUNTED)
    assert setting.cells() == {("", "", "true"): 1, ("", "", "false"): 2}


def test_a_matrix_goes_up_to_a_hundred_classes(setting: Setting) -> None:
    setting.serve(*map(str, range(MOST_LABELS)))
    assert len(setting.cells()) == MOST_LABELS * (MOST_LABELS + 1)


def test_a_model_that_tells_no_class_has_no_cells(setting: Setting) -> None:
    setting.serve()
    setting.serve("3", "7", outputs=(TensorSpec("embedding", "FP32", (-1,)),))
    assert setting.cells() == {}


def test_labels_of_a_version_that_is_served_no_more_come_from_the_repository_once(
    setting: Setting,
) -> None:
    setting.published["old", 4] = ("a", "b")
    for index, truth in itertools.product((0, 1), ("a", "b")):
        result = setting.take(setting.id_of(index, "old", 4), truth)
        assert result == Result(Outcome.COUNTED)
    assert setting.asked == [("old", 4)]
    assert setting.cells("old", "4") == {
        ("a", "a", "true"): 1,
        ("b", "a", "false"): 1,
        ("other", "a", "false"): 0,
        ("a", "b", "false"): 1,
        ("b", "b", "true"): 1,
        ("other", "b", "false"): 0,
    }


def test_an_id_of_more_classes_than_the_version_has_is_refused(setting: Setting) -> None:
    setting.serve("3", "7")
    assert setting.take(setting.id_of(2), "3").outcome == Outcome.UNKNOWN_MODEL


def test_the_repository_tells_labels_also_of_what_was_rolled_back(
    tmp_path: Path, digits: Digits
) -> None:
    for _ in range(2):
        publish_classifier(tmp_path, digits)
    publish_times(tmp_path)
    assert published_labels(tmp_path, "classifier", 2) == ("3", "7")
    rollback(tmp_path / "classifier", lambda line: None)
    assert not (tmp_path / "classifier" / "2").exists()
    assert published_labels(tmp_path, "classifier", 2) == ("3", "7")
    assert published_labels(tmp_path, "classifier", 1) == ("3", "7")
    assert published_labels(tmp_path, "classifier", 3) is None
    assert published_labels(tmp_path, "times", 1) is None
    assert published_labels(tmp_path / "classifier", "../classifier", 1) is None
    (tmp_path / "classifier" / "1").rename(tmp_path / "classifier" / "7")
    assert read_manifest(tmp_path / "classifier" / "7").version == 1
    assert published_labels(tmp_path, "classifier", 7) is None
