"""Triton's classification extension: a numeric output as its top classes, `value:index:label`.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Triton refuses FP16 too; here it is a precision that models are served in.
UNORDERED = frozenset({"BOOL", "BYTES"})


def top_classes(
    array: NDArray[np.generic], count: int, labels: Sequence[str], batched: bool
) -> NDArray[np.object_]:
    """The `count` highest elements of each row, or all where there are fewer, highest first.

    The result is `(rows, count)` where the first dimension is the rows', else `(count,)`;
    dimensions beyond are counted through in row-major order. Labels are the classes' names, and
    added only where a row has an element for each of them.
    """
    rows = array.reshape(len(array), -1) if batched and array.ndim else array.reshape(1, -1)
    names = labels if len(labels) == rows.shape[1] else ()
    count = min(count, rows.shape[1])
    texts = np.empty((len(rows), count), object)
    for row, values in enumerate(rows):
        texts[row] = [_text(values[index], int(index), names) for index in _top(values, count)]
    return texts if batched and array.ndim else texts[0]


def _top(values: NDArray[np.generic], count: int) -> NDArray[np.intp]:
    """Indices of the highest, of equal ones the lower index first; not-a-number comes last."""
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), -np.inf, values)
    ascending = np.argsort(values[::-1], kind="stable")
    return (len(values) - 1 - ascending[::-1])[:count]


def _text(value: np.generic, index: int, names: Sequence[str]) -> str:
    """As C++'s std::to_string writes numbers: six decimals, or none for a whole type."""
    text = f"{value:f}" if value.dtype.kind == "f" else str(value)
    return f"{text}:{index}:{names[index]}" if names else f"{text}:{index}"
