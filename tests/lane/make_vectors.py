"""What the Python server says of rows, and the ids it signs, for the tests of the lane's own.

`python -m tests.lane.make_vectors` writes, beside itself, lines of words:

    corpus/predictions.txt      case NAME, then until `end`:
                                plan CLASS SCORES IMAGE TEMPERATURE
                                image ROWS BYTES, where the model takes one
                                output NAME DATATYPE SHAPE BYTES
                                fact LABEL CONFIDENCE CALIBRATED INK
    corpus/prediction_ids.txt   KEY MILLISECONDS NUMBER LABEL CONFIDENCE ORIGIN ID

Bytes are hexadecimal, doubles the 16 digits of their bits; `-` is for what is not there.
"""

from __future__ import annotations

import math
import struct
from binascii import a2b_base64
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_repository import Manifest, Quality, TensorSpec
from serving.batch import Tensors
from serving.prediction_ids import Signer
from serving.predictions import Prediction, class_output, image_input, predictor, score_output

_KEYS = (b"sixteen bytes of", b"k" * 64, b"a key that is longer than a block of SHA-256" * 2)
_CONFIDENCES = (0.0, 1.0, 0.5, 0.99999, 1e-9, 0.123456789, math.nan, -0.5, 1.5)


class Case(NamedTuple):
    """One batch: what the model got and gave."""

    name: str
    outputs: Tensors
    image: NDArray[np.uint8] | None = None
    temperature: float = 1.0


def main(directory: Path) -> None:
    """Write both files."""
    (directory / "predictions.txt").write_text("".join(map(_told, cases())))
    (directory / "prediction_ids.txt").write_text("".join(ids()))


def cases() -> Iterator[Case]:
    """Batches of every kind of output."""
    random = np.random.default_rng(6)
    images = random.integers(0, 256, (4, 7, 9), np.uint8)
    scores = _shares(random.normal(size=(4, 10)), "f4")
    labels = scores.argmax(axis=1)
    both = {"probabilities": scores, "labels": labels}
    yield Case("digits", both, images)
    yield Case("digits-calibrated", both, images, 1.5)
    yield Case("int32-labels", {"labels": labels.astype("i4"), "probabilities": scores}, images)
    yield Case("labels-only", {"labels": labels}, images, 2.0)
    yield Case("no-image", {"probabilities": scores}, None, 0.7)
    yield Case("fp16", {"probabilities": _shares(random.normal(size=(5, 7)), "f2")}, None, 1.3)
    yield Case("fp64", {"probabilities": _shares(random.normal(size=(5, 9)), "f8")}, None, 1.3)
    for classes in (2, 8, 17, 137, 300):
        many = _shares(3 * random.normal(size=(3, classes)), "f4")
        yield Case(f"{classes}-classes", {"probabilities": many}, None, 0.8)
    yield Case("logits", {"logits": random.normal(size=(4, 10)).astype("f4")}, None, 1.5)
    yield Case("other-rows", {"labels": labels, "probabilities": scores[:3]}, images)
    yield Case("edges", {"probabilities": _edges()}, None, 2.0)
    yield Case("half-edges", {"probabilities": _edges().astype("f2")}, None, 2.0)
    yield from _around_rounding(random)
    yield Case("white", {"labels": labels[:2]}, np.full((2, 23, 53), 255, np.uint8))
    yield Case("one-image", {"labels": labels[:1]}, images[0])


def _edges() -> NDArray[np.float64]:
    """Ties, zeros, and rows that are no shares of one."""
    return np.array(
        [
            [0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [-0.0, 1.0, 0.0], [0.25, 0.25, 0.5],
            [np.nan, 1.0, 0.0], [0.0, np.nan, np.nan], [np.inf, 0.0, 0.0], [-np.inf, 1.0, 0.0],
            [-0.1, 1.1, 0.0], [0.0, 0.0, 0.0], [5.0, 6.0, 6.0], [6e-8, 1.0, 3e-5],
        ]
    )  # fmt: skip


def _around_rounding(random: np.random.Generator) -> Iterator[Case]:
    """Rows whose sums are as far from 1 as may just be, or just not: the order of adding shows."""
    for count, classes in ((24, 5), (24, 10), (8, 150)):
        rows = _shares(random.normal(size=(count, classes)), "f8")
        rows *= 1 + 5e-3 * np.where(np.arange(count) % 2, 1, -1)[:, np.newaxis]
        yield Case(f"rounding-{classes}", {"probabilities": rows.astype("f4")}, None, 1.1)


def _shares(logits: NDArray[np.float64], dtype: str) -> NDArray[np.floating]:
    powers = np.exp(logits)
    shares: NDArray[np.floating] = (powers / powers.sum(axis=1, keepdims=True)).astype(dtype)
    return shares


def _told(case: Case) -> str:
    manifest = _manifest(case)
    (label, score) = class_output(manifest), score_output(manifest)
    assert label
    wrapped = predictor(lambda inputs: dict(case.outputs), manifest)
    assert wrapped
    with np.errstate(all="ignore"):
        facts = wrapped.of(wrapped.run({} if case.image is None else {"image": case.image}))
    lines = [
        f"case {case.name}",
        f"plan {label.name} {score.name if score else '-'} {image_input(manifest) or '-'}"
        f" {_bits(case.temperature)}",
    ]
    if case.image is not None:
        lines.append(f"image {len(case.image)} {case.image.tobytes().hex()}")
    for spec in manifest.outputs:
        array = case.outputs[spec.name]
        shape = ",".join(map(str, array.shape))
        lines.append(f"output {spec.name} {spec.datatype} {shape} {array.tobytes().hex()}")
    lines += [f"fact {fact.label} {' '.join(map(_bits, fact[1:]))}" for fact in facts]
    return "\n".join([*lines, "end\n"])


def _manifest(case: Case) -> Manifest:
    taken = (
        TensorSpec("values", "FP32", (-1, 3))
        if case.image is None
        else TensorSpec("image", "UINT8", case.image.shape)
    )
    given = tuple(
        TensorSpec(name, _datatype(array), array.shape) for name, array in case.outputs.items()
    )
    quality = Quality(case.temperature, 0.01, 1000)
    return Manifest("m", 1, (taken,), given, (), {}, labels=("a", "b"), quality=quality)


def _datatype(array: NDArray[np.generic]) -> str:
    return ("FP" if array.dtype.kind == "f" else "INT") + str(8 * array.dtype.itemsize)


def ids() -> Iterator[str]:
    """Ids by several keys; when they were made and their numbers are read from them."""
    for key, (model, version) in zip(
        _KEYS, (("m", "1"), ("resnet18", "3"), ("modèle-ü", "12345")), strict=True
    ):
        predictions = [Prediction(7 * n, each) for n, each in enumerate(_CONFIDENCES)]
        signed = Signer([key]).ids(model, version, 1000, predictions)
        for text, (label, confidence, _, _) in zip(signed, predictions, strict=True):
            raw = a2b_base64(text.replace("-", "+").replace("_", "/") + "==")
            head, number = struct.unpack_from(">QQ", raw)
            yield (
                f"{key.hex()} {head & (1 << 56) - 1} {number} {label} {_bits(confidence)}"
                f" {version}/{model} {text}\n"
            )


def _bits(value: float) -> str:
    return struct.pack(">d", value).hex()


if __name__ == "__main__":
    main(Path(__file__).parent / "corpus")
