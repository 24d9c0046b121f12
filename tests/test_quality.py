"""Quality: the sums of all workers as accuracy, its interval, and what is known without labels."""

from __future__ import annotations

import math

import pytest

from serving.counter_directory import Sums
from serving.families import Exported, Kept
from serving.feedback import cell
from serving.quality import Cell, Drift, Interval, Quality, qualities, wilson

NOTHING = Quality(0, 0, (), None, None, True, None, False, None)
KEY = ("m", "2")


def feedback(**counts: float) -> Sums:
    """By truth and prediction, as in a3b=1."""
    return {
        Exported.feedback.series(*KEY, key[0], key[1], str(key[0] == key[1]).lower()): [count]
        for key, count in counts.items()
    }


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(hits: int, trials: int, low: float, high: float) -> None:
    assert wilson(hits, trials) == pytest.approx((hits / trials, low, high), abs=5e-5)


def test_a_bound_lies_1_96_of_its_own_standard_errors_from_the_share() -> None:
    share, *bounds = wilson(9870, 10_000)
    for bound in bounds:
        error = math.sqrt(bound * (1 - bound) / 10_000)
        assert abs(share - bound) / error == pytest.approx(1.959964)


def test_the_interval_holds_the_share_and_stays_between_0_and_1() -> None:
    for trials in (1, 2, 3, 7, 1000, 10**9):
        for hits in {0, 1, trials // 2, trials - 1, trials}:
            interval = wilson(hits, trials)
            assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_accuracy_and_confusion_are_what_was_counted() -> None:
    found = qualities(feedback(aa=90, ab=4, bb=6, ba=0), ())[KEY]
    assert (found.feedback, found.correct) == (100, 96)
    assert found.confusion == (Cell("a", "a", 90), Cell("a", "b", 4), Cell("b", "b", 6))
    assert found.accuracy == wilson(96, 100)


def test_a_class_named_other_shares_its_cell_with_what_is_no_class() -> None:
    sums = {
        Exported.feedback.series(*KEY, *cell(("a", "other"), truth, predicted)): [count]
        for truth, predicted, count in (("other", "other", 5.0), ("b", "other", 2.0))
    }
    found = qualities(sums, ())[KEY]
    assert (found.feedback, found.correct) == (7, 5)
    assert found.confusion == (Cell("other", "other", 7),)


def test_of_very_many_classes_only_right_and_wrong_are_known() -> None:
    sums: Sums = {
        Exported.feedback.series(*KEY, "", "", "true"): [3.0],
        Exported.feedback.series(*KEY, "", "", "false"): [1.0],
    }
    found = qualities(sums, ())[KEY]
    assert (found.feedback, found.correct, found.confusion) == (4, 3, ())


def test_what_is_served_is_told_of_before_any_label_and_what_is_not_is_left_out() -> None:
    sums = feedback(aa=0, ab=0) | {Exported.estimated_accuracy.series("n", "1"): [math.nan]}
    assert qualities(sums, ()) == {}
    assert qualities(sums, [KEY, ("m", "10")]) == {KEY: NOTHING, ("m", "10"): NOTHING}
    assert list(qualities(sums, [("m", "10"), KEY])) == [KEY, ("m", "10")]
    assert NOTHING.accuracy is None


def test_what_is_known_without_labels_comes_from_the_gauges() -> None:
    sums: Sums = {
        Exported.accuracy.series(*KEY, "holdout"): [0.98],
        Exported.accuracy.series(*KEY, "probe"): [0.5],
        Exported.probe_passed.series(*KEY): [0.0],
        Exported.estimated_accuracy.series(*KEY): [0.9],
        Exported.estimate_reliable.series(*KEY): [1.0],
        Exported.drift.series(*KEY, "ink"): [0.1],
        Exported.drift.series(*KEY, "confidence"): [math.nan],
        Exported.drift.series(*KEY, "label"): [0.2],
        Kept.window_rows.series(*KEY): [1234.0],
    }
    drift = Drift({"ink": 0.1, "label": 0.2}, False, 1234)
    assert qualities(sums, ()) == {KEY: Quality(0, 0, (), 0.98, 0.5, False, 0.9, True, drift)}
    sums[Exported.estimate_reliable.series(*KEY)] = [0.0]
    drifted = qualities(sums, ())[KEY].drift
    assert drifted == Drift({"ink": 0.1, "label": 0.2}, True, 1234)


def test_with_too_few_rows_there_is_no_index_but_their_number() -> None:
    sums: Sums = {
        Exported.drift.series(*KEY, "ink"): [math.nan],
        Kept.window_rows.series(*KEY): [12.0],
    }
    assert qualities(sums, [KEY])[KEY].drift == Drift({}, False, 12)
    assert Interval(0.5, 0.0, 1.0) == (0.5, 0.0, 1.0)
