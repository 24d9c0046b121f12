"""An int8 twin of an ONNX model, by static quantisation with calibration images.

Source: ONNX Runtime's quantisation guide; QDQ format, one scale per output channel of a weight.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

BATCH = 64


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Hands the calibration images to ONNX Runtime, a batch at a time."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.batches: Iterator[NDArray[np.uint8]] = iter(
            np.array_split(images, max(1, len(images) // BATCH))
        )

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next feed, or None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises on the root logger to do what is done here already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def quantise(source: Path, target: Path, calibration: NDArray[np.uint8]) -> None:
    """Write `target`, the int8 form of `source`, calibrated on (N, 28, 28) uint8 images."""
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        prepared = Path(directory) / "prepared.onnx"
        quant_pre_process(source, prepared)
        quantize_static(
            prepared,
            target,
            _Images(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
