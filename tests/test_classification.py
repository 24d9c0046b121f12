"""Top classes as Triton writes them: its number formatting, its order and its shapes."""

from __future__ import annotations

import numpy as np
import pytest

from serving.classification import top_classes


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([1, 5, 10, 4], "int64", ["10:2", "5:1"]),
        ([-128, 127], "int8", ["127:1", "-128:0"]),
        ([0, 255], "uint8", ["255:1", "0:0"]),
        ([2**64 - 1, 2**63], "uint64", ["18446744073709551615:0", "9223372036854775808:1"]),
        ([-(2**63), 0], "int64", ["0:1", "-9223372036854775808:0"]),
        ([0.1, 1e-7], "float32", ["0.100000:0", "0.000000:1"]),
        ([1e20, -2.5], "float64", ["100000000000000000000.000000:0", "-2.500000:1"]),
        ([0.5, 1.5], "float16", ["1.500000:1", "0.500000:0"]),
        ([float("nan"), -1.0], "float32", ["-1.000000:1", "nan:0"]),
        ([0.0, float("inf")], "float32", ["inf:1", "0.000000:0"]),
    ],
)
def test_numbers_are_written_as_in_c_and_the_highest_comes_first(
    values: list[float], dtype: str, expected: list[str]
) -> None:
    array = np.array([values], dtype)
    assert top_classes(array, 2, (), batched=True).tolist() == [expected]


def test_of_equal_values_the_lower_index_comes_first() -> None:
    array = np.array([[1, 3, 1, 3]])
    assert top_classes(array, 4, (), batched=True).tolist() == [["3:1", "3:3", "1:0", "1:2"]]


def test_each_row_of_a_batch_has_its_own_top_and_labels_are_appended() -> None:
    array = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    assert top_classes(array, 1, ("3", "7"), batched=True).tolist() == [
        ["0.750000:1:7"],
        ["1.000000:0:3"],
    ]


def test_more_classes_than_there_are_give_all_of_them() -> None:
    assert top_classes(np.array([[1, 2]]), 2**40, (), batched=True).shape == (1, 2)


def test_without_a_batch_dimension_the_whole_output_is_one_row() -> None:
    array = np.array([[1, 2], [4, 3]])
    assert top_classes(array, 3, (), batched=False).tolist() == ["4:2", "3:3", "2:1"]


def test_dimensions_beyond_the_rows_are_counted_through() -> None:
    array = np.arange(8).reshape(2, 2, 2)
    assert top_classes(array, 1, ("a", "b", "c", "d"), batched=True).tolist() == [
        ["3:3:d"],
        ["7:3:d"],
    ]


def test_one_number_per_row_is_not_taken_for_a_class_that_has_a_label() -> None:
    assert top_classes(np.array([7, 3]), 5, ("a", "b"), batched=True).tolist() == [
        ["7:0"],
        ["3:0"],
    ]


def test_a_single_number_without_dimensions_is_its_own_top() -> None:
    assert top_classes(np.array(2.0), 1, (), batched=True).tolist() == ["2.000000:0"]
