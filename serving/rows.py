"""Whether requests may share a run of a model: are its rows independent of each other?

A first dimension that varies need not be a batch: it may be a sequence, or be averaged over.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model_repository import Manifest, TensorSpec
from serving.datatypes import DATATYPES
from serving.session import Tensors, first_line

# A batch may round otherwise than a row alone, and an int8 model that scales by what it sees may
# differ by some steps; rows that are mixed differ by far more.
TOLERANCE = 0.05  # of the largest magnitude


def why_not_shared(manifest: Manifest, run: Callable[[Tensors], Tensors]) -> str | None:
    """Why requests cannot be stacked, or None where they can.

    Two different rows are run together and each alone: their answers must be the same.
    """
    if any(spec.shape[:1] != (-1,) for spec in manifest.inputs + manifest.outputs):
        return "a tensor has no variable first dimension"
    rows = [filled(manifest.inputs, 1, value) for value in (1, 0)]
    together = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    try:  # ONNX Runtime's errors have no common class
        alone = [run(row) for row in rows]
    except Exception as error:  # sizes beside the rows were guessed wrong, perhaps
        return f"its rows could not be shown to be independent: {first_line(error)}"
    try:
        both = run(together)
    except Exception as error:
        return f"two rows do not run: {first_line(error)}"
    outputs = manifest.outputs
    # Where scores tell, classes need not: of equal scores either class may be named.
    floats = tuple(spec for spec in outputs if spec.datatype.startswith("FP"))
    found = [_other_rows(spec, alone, both) for spec in outputs]
    found += [_differs(spec, alone, both) for spec in floats or outputs]
    return next(filter(None, found), None)


def filled(specs: tuple[TensorSpec, ...], rows: int, value: int = 0) -> Tensors:
    """Inputs of so many rows of that value; 1 for whatever else is variable."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for spec in specs:
        shape = tuple(1 if size < 0 else size for size in spec.shape)
        shape = (rows, *shape[1:]) if spec.shape[:1] == (-1,) else shape
        dtype = DATATYPES[spec.datatype].dtype
        arrays[spec.name] = np.full(shape, str(value) if dtype.hasobject else value, dtype)
    return arrays


def _other_rows(spec: TensorSpec, alone: list[Tensors], both: Tensors) -> str | None:
    if any(len(each[spec.name]) != 1 for each in alone) or len(both[spec.name]) != 2:
        return f"output {spec.name!r} has not a row for each row of the inputs"
    return None


def _differs(spec: TensorSpec, alone: list[Tensors], both: Tensors) -> str | None:
    if any(each[spec.name].shape[1:] != both[spec.name].shape[1:] for each in alone):
        return f"output {spec.name!r} changes its shape with the number of rows"
    one_by_one = np.concatenate([each[spec.name] for each in alone])
    if not spec.datatype.startswith("FP"):
        same = np.array_equal(one_by_one, both[spec.name])
        return None if same else f"the rows of output {spec.name!r} depend on each other"
    expected, got = np.float64(one_by_one), np.float64(both[spec.name])
    limit = TOLERANCE * np.abs(expected).max(initial=0, where=np.isfinite(expected)) + 1e-6
    if np.allclose(expected, got, rtol=0, atol=limit, equal_nan=True):
        return None
    return f"the rows of output {spec.name!r} depend on each other"
