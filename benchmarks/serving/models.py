"""The models that are compared: their files, real images, and ONNX Runtime's own answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.serving.wire import Images, Probabilities
from model_repository import (
    HOLDOUT,
    ONNX_PLATFORM,
    TORCHSCRIPT_PLATFORM,
    read_manifest,
    versions,
)


@dataclass(frozen=True, slots=True)
class Model:
    """One variant of a published model; `expected` are the probabilities of all `images`."""

    name: str
    precision: str
    onnx: Path
    torchscript: Path
    images: Images
    expected: Probabilities

    def batch(self, rows: int) -> tuple[Images, Probabilities]:
        """So many images and what must come back, over and again from the start."""
        index = np.arange(rows) % len(self.images)
        return self.images[index], self.expected[index]


class NoVariant(Exception):
    """The model was not published in this precision."""


def load_model(repository: Path, name: str, precision: str) -> Model:
    """The latest version's files; ONNX Runtime answers for its holdout images here and now."""
    directory = repository / name / str(versions(repository / name)[-1])
    manifest = read_manifest(directory)
    onnx = manifest.variant(ONNX_PLATFORM, precision)
    torchscript = manifest.variant(TORCHSCRIPT_PLATFORM, "fp32")
    if onnx is None or torchscript is None:
        raise NoVariant(f"{name} has no {precision} variant")
    with np.load(directory / HOLDOUT, allow_pickle=False) as holdout:
        images = np.ascontiguousarray(holdout["images"])
    path = (directory / onnx.file).resolve()
    expected = session(path).run(["probabilities"], {"images": images})[0]
    script = (directory / torchscript.file).resolve()
    return Model(name, precision, path, script, images, expected)


def session(path: Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime as every contestant runs it: on the CPU with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
