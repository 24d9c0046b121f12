"""The stability index against values computed by hand; what a window of counts says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repository import CONFIDENCE_EDGES, INK_EDGES
from serving.counter_directory import Sums
from serving.drift import (
    PARTS,
    DriftWindow,
    Reference,
    judge,
    least_drift,
    models,
    stability_index,
)
from serving.families import Exported, Kept

MODEL = ("digits", "1")
INK, CONFIDENCE = len(INK_EDGES) + 1, len(CONFIDENCE_EDGES) + 1

# At most two decimals, so that many bins are empty and many shares equal.
weights = st.lists(st.integers(0, 100), min_size=2, max_size=19).filter(any)


def shares(counts: Sequence[float]) -> list[float]:
    return [count / sum(counts) for count in counts]


def test_the_index_is_what_one_computes_by_hand() -> None:
    """200 rows of each: 50 / 201 * ln(150.5 / 100.5), which is 0.10045, and 50 / 201 *
    ln(100.5 / 50.5), which is 0.17119."""
    index = stability_index([150, 50], Reference(200, [0.5, 0.5]))
    assert index == pytest.approx(0.27164, abs=1e-5)


def test_the_larger_sample_is_taken_as_one_of_the_smaller_ones_size() -> None:
    same = stability_index([15, 5], Reference(20, [0.5, 0.5]))
    assert stability_index([15_000, 5_000], Reference(20, [0.5, 0.5])) == pytest.approx(same)
    assert stability_index([15, 5], Reference(20_000, [0.5, 0.5])) == pytest.approx(same)


def test_what_lies_in_bins_that_were_empty_counts_and_is_finite() -> None:
    """1000 rows: p = (0.5, 1000.5) / 1001, q the other way round."""
    index = stability_index([0, 1000], Reference(1000, [1.0, 0.0]))
    assert index == pytest.approx(2 * 1000 / 1001 * math.log(1000.5 / 0.5))


def test_no_rows_are_no_drift() -> None:
    assert stability_index([0, 0, 0], Reference(100, [0.2, 0.3, 0.5])) == 0


@given(weights, st.integers(1, 10_000), st.data())
def test_the_index_is_never_negative(counts: list[int], images: int, data: st.DataObject) -> None:
    size = len(counts)
    other = data.draw(st.lists(st.integers(0, 100), min_size=size, max_size=size).filter(any))
    assert stability_index(counts, Reference(images, shares(other))) >= 0


@given(weights, st.integers(1, 1000), st.integers(1, 10_000))
def test_equal_shares_have_the_index_0(counts: list[int], times: int, images: int) -> None:
    more = [count * times for count in counts]
    assert stability_index(more, Reference(images, shares(counts))) == pytest.approx(0, abs=1e-12)


@given(weights, weights)
def test_the_index_is_that_of_the_same_bins_in_another_order(
    counts: list[int], other: list[int]
) -> None:
    size = min(len(counts), len(other))
    pairs = list(zip(counts[:size], other[:size], strict=True))
    if not any(a for a, _ in pairs) or not any(b for _, b in pairs):
        return
    both = [
        stability_index([a for a, _ in order], Reference(100, shares([b for _, b in order])))
        for order in (pairs, pairs[::-1])
    ]
    assert both[0] == pytest.approx(both[1])


def test_chance_alone_is_no_drift_however_small_the_samples_and_the_threshold() -> None:
    """Ten classes, equally often in truth; two samples of them by chance, a thousand times over."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(1000):
        seen, expected = (random.multinomial(size, [0.1] * 10) for size in (200, 140))
        reference = Reference(140, shares(expected.tolist()))
        index = stability_index(seen.tolist(), reference)
        assert index < least_drift(200, reference, 0.01)
        found.append(index)
    assert np.mean(found) == pytest.approx(9 / 200 + 9 / 140, rel=0.1)


@pytest.mark.parametrize(
    ("rows", "images", "used", "least"),
    [
        (200, 3000, 10, 0.25),  # 9 + 2 * sqrt(9 * 9.21) + 2 * 9.21 is 45.6; by 1 / 200 + 1 / 3000
        (200, 140, 10, 0.554),
        (10**9, 140, 10, 0.326),
        (10**9, 10**9, 100, 0.25),
    ],
)
def test_few_rows_or_few_images_raise_the_index_from_which_it_is_drift(
    rows: int, images: int, used: int, least: float
) -> None:
    expected = Reference(images, [1 / used] * used + [0.0] * 5)
    assert least_drift(rows, expected, 0.25) == pytest.approx(least, abs=1e-3)


def kept(expected: Mapping[str, list[float]], temperature: float = 1.5) -> Sums:
    """What a worker notes of a manifest with these shares of 1000 images, by feature."""
    sums: Sums = {Kept.temperature.series(*MODEL): [temperature]}
    for feature in ("ink", "confidence", "label"):
        each = expected.get(feature, [])
        slots = [float(len(each)), 1000.0, *each]
        slots += [0.0] * (Kept.reference.slots - len(slots))
        sums[Kept.reference.series(*MODEL, feature)] = slots
    return sums


def bins(size: int, **counts: float) -> list[float]:
    """So many bins, of which some hold something: b3=5."""
    slots = [0.0] * size
    for name, count in counts.items():
        slots[int(name[1:])] = count
    return slots


def counted(ink: list[float], confidence: list[float], total: float, label: list[float]) -> Sums:
    """What was counted over a window; `total` is the sum of the confidences."""
    return {
        Exported.ink.series(*MODEL): [*ink, 0.0],
        Exported.confidence.series(*MODEL): [*confidence, total],
        Kept.predicted.series(*MODEL): [*label, *[0.0] * (Kept.predicted.slots - len(label))],
    }


EXPECTED = {
    "ink": bins(INK, b4=0.5, b5=0.5),
    "confidence": bins(CONFIDENCE, b8=0.25, b11=0.75),
    "label": [0.5, 0.5],
}


def test_what_is_expected_is_reliable_and_its_accuracy_the_mean_confidence() -> None:
    window = counted(
        bins(INK, b4=200, b5=200), bins(CONFIDENCE, b8=100, b11=300), 384.0, [200.0, 200.0]
    )
    judgement = judge(window, kept(EXPECTED), MODEL, 0.25)
    assert judgement.rows == 400
    assert judgement.estimated_accuracy == 0.96
    assert judgement.reliable == 1
    assert judgement.psi == pytest.approx({"ink": 0, "confidence": 0, "label": 0}, abs=1e-12)


def test_one_feature_that_drifted_makes_the_estimate_unreliable() -> None:
    window = counted(bins(INK, b15=400), bins(CONFIDENCE, b8=100, b11=300), 384.0, [200.0, 200.0])
    judgement = judge(window, kept(EXPECTED), MODEL, 0.25)
    assert judgement.psi["ink"] > 5
    assert judgement.psi["label"] == pytest.approx(0, abs=1e-12)
    assert (judgement.estimated_accuracy, judgement.reliable) == (0.96, 0)
    assert judgement.limits == dict.fromkeys(("ink", "confidence", "label"), 0.25)
    assert judge(window, kept(EXPECTED), MODEL, judgement.psi["ink"]).reliable == 0
    assert judge(window, kept(EXPECTED), MODEL, judgement.psi["ink"] + 1e-9).reliable == 1


def test_with_too_few_rows_nothing_is_said() -> None:
    window = counted(bins(INK, b15=199), bins(CONFIDENCE, b8=199), 190.0, [199.0, 0.0])
    judgement = judge(window, kept(EXPECTED), MODEL, 0.25)
    assert judgement.rows == 199
    assert math.isnan(judgement.estimated_accuracy)
    assert math.isnan(judgement.reliable)
    assert all(map(math.isnan, judgement.psi.values()))


def test_a_feature_without_reference_has_no_index_and_does_not_decide() -> None:
    window = counted(bins(INK, b15=400), bins(CONFIDENCE, b8=100, b11=300), 384.0, [200.0, 200.0])
    expected = {"confidence": EXPECTED["confidence"]}
    judgement = judge(window, kept(expected), MODEL, 0.25)
    assert [math.isnan(judgement.psi[each]) for each in ("ink", "confidence", "label")] == [
        True,
        False,
        True,
    ]
    assert judgement.reliable == 1
    assert math.isnan(judge(window, kept({}), MODEL, 0.25).reliable)


def test_confidence_that_is_not_calibrated_estimates_nothing() -> None:
    window = counted(
        bins(INK, b4=200, b5=200), bins(CONFIDENCE, b8=100, b11=300), 384.0, [200.0, 200.0]
    )
    assert math.isnan(judge(window, kept(EXPECTED, temperature=0), MODEL, 0.25).estimated_accuracy)
    assert list(models(kept({}))) == [MODEL]


def test_a_feature_that_few_rows_have_says_nothing() -> None:
    """A model whose scores are hardly ever probabilities has no confidence otherwise."""
    window = counted(bins(INK, b4=200, b5=200), bins(CONFIDENCE, b11=150), 150.0, [200.0, 200.0])
    judgement = judge(window, kept(EXPECTED), MODEL, 0.25)
    assert judgement.rows == 400
    assert math.isnan(judgement.psi["confidence"])
    assert math.isnan(judgement.limits["confidence"])
    assert math.isnan(judgement.estimated_accuracy)
    assert judgement.psi["label"] == pytest.approx(0, abs=1e-12)
    assert judgement.reliable == 1


def test_a_model_that_counted_nothing_yet_has_no_rows() -> None:
    assert judge({}, kept(EXPECTED), MODEL, 0.25).rows == 0


LABELS = Kept.predicted.series(*MODEL)


def test_the_window_forgets() -> None:
    window = DriftWindow(10.0, start=0.0)
    rows = [window.add(float(now), {LABELS: [float(now)]})[LABELS][0] for now in range(1, 31)]
    assert rows[:10] == list(range(1, 11))
    assert rows[10:] == [10.0] * 20


def test_a_series_that_comes_later_counts_from_its_beginning() -> None:
    window = DriftWindow(10.0, start=0.0)
    other = Kept.predicted.series("other", "1")
    assert window.add(1.0, {LABELS: [3.0]}) == {LABELS: [3.0]}
    assert window.add(9.0, {LABELS: [3.0], other: [2.0]}) == {LABELS: [3.0], other: [2.0]}
    assert window.add(18.0, {LABELS: [4.0], other: [2.5]}) == {LABELS: [1.0], other: [2.5]}
    assert window.add(19.0, {LABELS: [4.0], other: [2.5]}) == {LABELS: [1.0], other: [0.5]}
    assert window.add(99.0, {other: [2.5]}) == {other: [0.0]}


def test_a_version_that_was_replaced_counts_from_there_on() -> None:
    window = DriftWindow(10.0, start=0.0)
    other = Kept.predicted.series("digits", "2")
    window.add(1.0, {LABELS: [3.0], other: [2.0]})
    window.restart(MODEL, {LABELS: [4.0], other: [2.0]})
    assert window.add(2.0, {LABELS: [4.0], other: [2.0]}) == {LABELS: [0.0], other: [2.0]}
    assert window.add(10.5, {LABELS: [6.0], other: [2.0]}) == {LABELS: [2.0], other: [2.0]}


def test_a_sum_that_lost_its_last_bit_is_not_negative() -> None:
    window = DriftWindow(10.0, start=0.0)
    window.add(1.0, {LABELS: [math.nextafter(0.6, 1)]})
    window.add(2.0, {LABELS: [0.6]})
    assert window.add(11.5, {LABELS: [0.6]}) == {LABELS: [0.0]}


def test_only_what_is_compared_is_remembered() -> None:
    window = DriftWindow(10.0, start=0.0)
    other = Exported.inferences.series(*MODEL)
    assert window.add(1.0, {LABELS: [1.0], other: [1.0]}) == {LABELS: [1.0]}


@given(st.lists(st.floats(0.001, 50), min_size=1, max_size=300))
def test_a_window_is_as_long_as_asked_for_or_one_part_longer_however_often_it_is_shown_sums(
    pauses: list[float],
) -> None:
    """Here one row a second comes, so that rows are seconds."""
    length, now = 10.0, 0.0
    window = DriftWindow(length, start=0.0)
    for pause in pauses:
        now += pause
        rows = window.add(now, {LABELS: [now]})[LABELS][0]
        assert rows >= min(now, length) - 1e-9
        assert rows <= length + length / PARTS + 2 * max(pauses) + 1e-9
        assert len(window) <= PARTS + 2
