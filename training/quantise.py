"""Twins of an ONNX model at less precision: int8 by static quantisation, and fp16 for GPUs.

Source: ONNX Runtime's quantisation guide; QDQ format, one scale per output channel of a weight.
Whether a twin is good enough to publish is `run`'s business.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

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


def halve(source: Path, target: Path) -> None:
    """Write `target`, the fp16 form of `source`: weights and arithmetic, not inputs and outputs.

    Raises onnx.checker.ValidationError where the converter's graph is not valid ONNX.
    """
    model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, target)
