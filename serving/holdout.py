"""What a version must reach on its own labelled images: before it takes traffic, and while it does.

Owns how `holdout.npz` is read and judged: arrays named as the inputs, and `labels` (N,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from model_repository import HOLDOUT, Manifest, Variant
from serving.datatypes import DATATYPES
from serving.errors import ModelLoadError
from serving.predictions import class_output, classes
from serving.session import Tensors, first_line, verified

LABELS = "labels"
# Standard errors that a sample's share may lie below the share over the whole validation set.
SAMPLING_ERRORS = 3.0
# Of a holdout, what stays in memory to be replayed while the version is served.
KEPT_ROWS = 1000
KEPT_BYTES = 64 << 20
MAX_UNPACKED = 1 << 30  # bytes; a small archive can hold a thousand times its size


@dataclass(frozen=True, slots=True)
class Holdout:
    """Labelled rows: `inputs` by name, each (N, ...), and the index of each row's class (N,)."""

    inputs: Tensors
    labels: NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Standard:
    """Labelled rows, and the least share of them that must be right."""

    holdout: Holdout
    least: float

    def shortfall(self, reached: float) -> str:
        """What is wrong with having reached that share; empty where nothing is."""
        if reached >= self.least - 1e-9:
            return ""
        rows = len(self.holdout.labels)
        found = f"accuracy {reached:.4f} on its {rows} holdout rows"
        return f"{found}, at least {self.least:.4f} is required"


def read(directory: Path, manifest: Manifest) -> Holdout | None:
    """The version's holdout; None where it has none, or one without labels.

    Raises ModelLoadError for a file other than the manifest's, or that does not suit the inputs.
    """
    if HOLDOUT not in manifest.files:
        return None
    path = directory / HOLDOUT
    with verified(directory, HOLDOUT, manifest.files[HOLDOUT]) as copy:
        try:
            found = _arrays(copy, {LABELS, *(spec.name for spec in manifest.inputs)})
        except (
            Exception
        ) as error:  # those of zip, of what packs it, and NumPy's have no common class
            raise ModelLoadError(f"{path}: unreadable: {first_line(error)}", "holdout") from None
    if LABELS not in found or any(spec.name == LABELS for spec in manifest.inputs):
        return None
    labels: NDArray[Any] = found.pop(LABELS)
    inputs = {spec.name: found[spec.name] for spec in manifest.inputs if spec.name in found}
    if fault := _fault(manifest, inputs, labels):
        raise ModelLoadError(f"{path}: {fault}", "holdout")
    return Holdout(inputs, labels)


def _arrays(file: BinaryIO, names: set[str]) -> Tensors:
    """Those of the archive's arrays that have such names."""
    archive = np.load(file, allow_pickle=False)
    if isinstance(archive, np.ndarray):
        raise ValueError("it is a single array")
    with archive:
        unpacked = sum(member.file_size for member in archive.zip.infolist())
        if unpacked > MAX_UNPACKED:
            raise ValueError(f"it unpacks to {unpacked} bytes, more than {MAX_UNPACKED}")
        found = {name: archive[name] for name in archive.files if name in names}
    for name, array in found.items():
        if not isinstance(array, np.ndarray):  # a member that does not begin as arrays do
            raise ValueError(f"{name!r} is not an array")
    return found


def promised(variant: Variant) -> float | None:
    """The accuracy on the holdout that the manifest tells, or that on the whole validation set."""
    return variant.accuracy if variant.holdout_accuracy is None else variant.holdout_accuracy


def floor(variant: Variant, images: int, tolerance: float, *, whole: bool = True) -> float | None:
    """The least accuracy on the holdout with which a variant is served; None asks for none.

    Where the manifest knows the accuracy on the whole validation set only, the holdout is a sample
    of that, and may be unlucky; so it is with a part of a holdout that is not `whole`.
    """
    share = promised(variant)
    if share is None:
        return None
    if whole and variant.holdout_accuracy is not None:
        return share - tolerance
    return share - tolerance - SAMPLING_ERRORS * math.sqrt(share * (1 - share) / max(1, images))


def kept(holdout: Holdout, variant: Variant, tolerance: float) -> Standard | None:
    """The standard to hold a served version to; of a large holdout, rows evenly spread over it."""
    rows = len(holdout.labels)
    row_bytes = sum(array.nbytes for array in holdout.inputs.values()) // rows
    room = max(1, min(rows, KEPT_ROWS, KEPT_BYTES // max(1, row_bytes)))
    least = floor(variant, room, tolerance, whole=room == rows)
    if least is None:
        return None
    if room == rows:
        return Standard(holdout, least)
    chosen = np.linspace(0, rows - 1, room).astype(np.intp)
    inputs = {name: array[chosen] for name, array in holdout.inputs.items()}
    return Standard(Holdout(inputs, holdout.labels[chosen]), least)


def accuracy(
    holdout: Holdout, manifest: Manifest, run: Callable[[Tensors], Tensors], rows: int
) -> float | None:
    """The share of right labels, `rows` at a time; None where no output tells a class.

    The last run is filled up by repeating its last row, as runs on a GPU may come in one size only.
    """
    spec = class_output(manifest)
    if spec is None:
        return None
    right = 0
    for start in range(0, len(holdout.labels), rows):
        part = {name: _filled(array[start : start + rows], rows) for name, array in _all(holdout)}
        predicted = classes(run(part), spec)
        truth = holdout.labels[start : start + rows]
        right += int((predicted[: len(truth)] == truth).sum())
    return right / len(holdout.labels)


def _all(holdout: Holdout) -> list[tuple[str, NDArray[np.generic]]]:
    return list(holdout.inputs.items())


def _filled(array: NDArray[np.generic], rows: int) -> NDArray[np.generic]:
    missing = rows - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def _fault(manifest: Manifest, inputs: Tensors, labels: NDArray[np.generic]) -> str | None:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        return f"labels are {labels.dtype} {labels.shape}, not integers (N,) of at least one row"
    for spec in manifest.inputs:
        array = inputs.get(spec.name)
        if array is None:
            return f"has no array {spec.name!r}"
        wanted = (len(labels), *spec.shape[1:])
        fits = len(array.shape) == len(wanted) and all(
            size in (actual, -1) for size, actual in zip(wanted, array.shape, strict=True)
        )
        if not fits or (spec.datatype != "BYTES" and array.dtype != DATATYPES[spec.datatype].dtype):
            return f"{spec.name!r} is {array.dtype} {array.shape}, not {spec.datatype} {wanted}"
    return None
