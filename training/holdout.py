"""A version's holdout.npz: labelled rows that a model is proven on, when published and later.

Owns the format: an array per input, named as it is, of N rows each (a scalar input's is a scalar),
and optionally `labels`, INT64 (N,), the index of each row's true class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_repository import TensorSpec
from training.dataset import DataError
from training.onnx_file import DTYPES, Array, Arrays, OnnxError, Runnable, fits

TRUTH = "labels"  # the array of true classes, and the output that predicts them
ROWS = 64  # in one run, where the model leaves the number open
MAX_UNPACKED = 1 << 30  # bytes, as much as a server reads

_PREDICTION = TensorSpec(TRUTH, "INT64", (-1,))


@dataclass(frozen=True, slots=True)
class Holdout:
    """N rows for every input, and their true classes where they are known."""

    inputs: Arrays
    truth: NDArray[np.int64] | None  # (N,)
    rows: int
    rows_per_run: int


def measure(path: Path, runnable: Runnable, classes: int) -> float | None:
    """Run every row; the share of right labels, or None where the file has no true classes.

    `classes` is the number of the model's labels, 0 if it has none. DataError, without the path,
    where the file and the model do not go together.
    """
    holdout = read_holdout(path, runnable.inputs, classes)
    if holdout.truth is None:
        for _ in _answers(runnable, holdout):
            pass  # that they run is what is asked
        return None
    name = _scoring_output(runnable, classes)
    answers = [answer[name] for answer in _answers(runnable, holdout)]
    predicted = np.concatenate([a.argmax(axis=1) if a.ndim == 2 else a for a in answers])
    if predicted.shape != (holdout.rows,):
        raise DataError(f"the model gives {len(predicted)} predictions for {holdout.rows} rows")
    return float((predicted == holdout.truth).mean())


def read_holdout(path: Path, inputs: tuple[TensorSpec, ...], classes: int) -> Holdout:
    """The rows for these inputs, checked; DataError, without the path."""
    arrays = _read_arrays(path)
    names = {spec.name for spec in inputs}
    truth = arrays.pop(TRUTH, None) if TRUTH not in names else None
    if set(arrays) != names:
        raise DataError(f"its arrays are {sorted(arrays)}, the model's inputs {sorted(names)}")
    feeds = {spec.name: _as_input(arrays[spec.name], spec) for spec in inputs}
    rows = _rows([array for array in feeds.values() if array.ndim])
    rows_per_run = _rows_per_run(inputs, rows)
    return Holdout(feeds, _as_truth(truth, rows, classes), rows, rows_per_run)


def _read_arrays(path: Path) -> Arrays:
    try:
        with path.open("rb") as stream:  # np.load would leave it open where it is no archive
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("it is a single array")
            unpacked = sum(member.file_size for member in archive.zip.infolist())
            if unpacked > MAX_UNPACKED:
                raise ValueError(f"it unpacks to {unpacked} bytes, more than {MAX_UNPACKED}")
            found = {name: archive[name] for name in archive.files}
        for name, array in found.items():
            if not isinstance(array, np.ndarray):  # a member that does not begin as arrays do
                raise ValueError(f"{name!r} is not an array")
        return found
    except Exception as error:  # those of zip, of what packs it, and NumPy's have no common class
        reason = getattr(error, "strerror", None) or str(error).split(".")[0]
        raise DataError(f"cannot be read as an .npz of plain arrays: {reason}") from None


def _as_input(array: Array, spec: TensorSpec) -> Array:
    """The array as ONNX Runtime takes it: NumPy's own strings become objects."""
    if spec.datatype == "BYTES" and array.dtype.kind == "U":
        array = array.astype(object)
    if array.dtype != DTYPES[spec.datatype]:
        raise DataError(f"array {spec.name!r} is {array.dtype}, the input is {spec.datatype}")
    if array.ndim != len(spec.shape) or not fits(array.shape[1:], spec.shape[1:]):
        shapes = f"{list(array.shape)}, the input has {list(spec.shape)}"
        raise DataError(f"array {spec.name!r} has shape {shapes}")
    return array


def _rows(arrays: list[Array]) -> int:
    counts = {len(array) for array in arrays}
    if len(counts) != 1 or 0 in counts:
        given = ", ".join(map(str, sorted(counts))) or "none"
        raise DataError(f"its arrays must have the same number of rows, at least one; got {given}")
    return counts.pop()


def _rows_per_run(inputs: tuple[TensorSpec, ...], rows: int) -> int:
    """The number of rows that the model is made for, ROWS where it takes any."""
    made_for = {spec.shape[0] for spec in inputs if spec.shape} - {-1}
    if not made_for:
        return ROWS
    if len(made_for) > 1 or 0 in made_for or rows % max(made_for):
        sizes = ", ".join(map(str, sorted(made_for)))
        raise DataError(f"its {rows} rows cannot be fed to inputs of exactly {sizes} rows")
    return made_for.pop()


def _as_truth(truth: Array | None, rows: int, classes: int) -> NDArray[np.int64] | None:
    if truth is None:
        return None
    if truth.dtype != np.int64 or truth.shape != (rows,):
        given = f"{truth.dtype} {list(truth.shape)}"
        raise DataError(f"array {TRUTH!r} is {given}, expected int64 [{rows}]")
    known = truth.astype(np.int64, copy=False)
    if known.min() < 0 or (classes and known.max() >= classes):
        raise DataError(f"array {TRUTH!r} holds an index that is no class's")
    return known


def _answers(runnable: Runnable, holdout: Holdout) -> Iterator[Arrays]:
    for at in range(0, holdout.rows, holdout.rows_per_run):
        rows = slice(at, at + holdout.rows_per_run)
        feeds = {
            name: array[rows] if array.ndim else array for name, array in holdout.inputs.items()
        }
        try:
            yield runnable.run(feeds)
        except OnnxError as error:
            raise DataError(str(error)) from None


def _scoring_output(runnable: Runnable, classes: int) -> str:
    """The output of class indices (n,), or of scores (n, C) for n rows; DataError if none is."""
    if _PREDICTION in runnable.outputs:
        return TRUTH
    for spec in runnable.outputs:
        scores = len(spec.shape) == 2 and spec.datatype not in ("BOOL", "BYTES")
        if scores and classes and runnable.widths[spec.name] == classes:
            return spec.name
    raise DataError(
        f"has {TRUTH!r}, but the model has no output to compare them with: neither {TRUTH!r}, INT64"
        " [-1], nor [-1, C] for the C class names of --labels"
    )
