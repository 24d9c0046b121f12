"""What normalisation costs in accuracy and time: ``python -m benchmarks.normalisation``.

MNIST's validation images become files as people would send them; what digit_image makes of these is
shown to a published model, whose accuracy on the images as they were is beside.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.distorted import Distortion
from benchmarks.machine import describe, sentence
from digit_image import ImageError, read_digit
from model_repository import ONNX_PLATFORM, read_manifest, versions
from training.data import load_dataset
from training.dataset import Split

RESULTS = Path(__file__).parent / "results"
# Of ten digits, and of threes and sevens.
MODELS = ("resnet18_0_9", "resnet18")
# How far the accuracy may lie below that on the images as they were.
MOST_LOST = 0.01
ROWS = 100  # in one run of the model

JPEGS = tuple(Distortion(280, quality) for quality in (95, 75, 50, 30))
SIZES = (Distortion(84), Distortion(560), Distortion(1120), Distortion(280, 0, smooth=True))
KINDS = tuple(
    Distortion(280, what=what) for what in ("shadow", "dust and a frame", "thin pen", "thick pen")
)
DISTORTIONS = (*JPEGS, *SIZES, *KINDS)


@dataclass(frozen=True, slots=True)
class Result:
    """One model on one distortion."""

    model: str
    distortion: str
    promised: bool  # that no more than MOST_LOST is lost
    images: int
    plain: float  # accuracy on the images as they were
    accuracy: float
    difference: float  # mean over pixels from the image as it was, 0 ... 255
    milliseconds: float  # of one image, decoded and normalised

    @property
    def missed(self) -> bool:
        """More is lost than may be."""
        return self.promised and self.accuracy < self.plain - MOST_LOST


def measure(name: str, session: onnxruntime.InferenceSession, valid: Split) -> list[Result]:
    """One model, on everything."""
    plain = accuracy(session, valid.images, valid.labels)
    results = []
    for distortion in DISTORTIONS:
        digits, seconds = normalised(distortion, valid.images)
        far = float(np.abs(digits.astype(np.int16) - valid.images).mean())
        reached = accuracy(session, digits, valid.labels)
        promised = distortion in JPEGS
        per_image = round(1e3 * seconds / len(digits), 2)
        results.append(
            Result(name, str(distortion), promised, len(digits), plain, reached, far, per_image)
        )
        print(results[-1], flush=True)
    return results


def normalised(
    distortion: Distortion, images: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], float]:
    """What is made of the files, (N, 28, 28), black where no ink was found; and the seconds."""
    random = np.random.default_rng(0)
    digits, seconds = np.zeros_like(images), 0.0
    for index, image in enumerate(images):
        file = distortion.file(image, random)
        started = time.perf_counter()
        with contextlib.suppress(ImageError):
            digits[index] = read_digit(file)
        seconds += time.perf_counter() - started
    return digits, seconds


def accuracy(
    session: onnxruntime.InferenceSession, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> float:
    """The share of images whose highest probability is that of their class."""
    right = 0
    for at in range(0, len(images), ROWS):
        (shares,) = session.run(["probabilities"], {"images": images[at : at + ROWS]})
        right += int((shares.argmax(axis=1) == labels[at : at + ROWS]).sum())
    return right / len(images)


def table(results: list[Result], machine: dict[str, object]) -> str:
    """Markdown."""
    lines = [
        "# Normalisation",
        "",
        "MNIST's validation images, enlarged, inverted, put off the centre of a larger sheet and",
        "saved; then decoded and normalised by `digit_image`, and shown to the model. `plain` is",
        "its accuracy on the images as they were, `grey levels` how far the normalised are from",
        "those.",
        f"Of the JPEGs of 280 pixels, {MOST_LOST:.0%} at most may be lost.",
        "",
        f"`python -m benchmarks.normalisation`; {sentence(machine)}.",
        "",
        "| model | images | sent as | plain | reached | lost | grey levels | ms each |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for each in results:
        lost = f"{each.plain - each.accuracy:+.2%}" + (" **missed**" if each.missed else "")
        lines.append(
            f"| {each.model} | {each.images} | {each.distortion} | {each.plain:.2%} |"
            f" {each.accuracy:.2%} | {lost} | {each.difference:.1f} | {each.milliseconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print, write; 0 when what is promised is met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.normalisation", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MNIST_DIR"))
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    parser.add_argument("--images", type=int, help="the first so many only [all]")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results: list[Result] = []
    for name in MODELS:
        directory = arguments.model_repository / name
        directory /= str(versions(directory)[-1])
        manifest = read_manifest(directory)
        variant = manifest.variant(ONNX_PLATFORM, "fp32")
        assert variant
        session = onnxruntime.InferenceSession(directory / variant.file)
        valid = load_dataset("mnist", manifest.labels, arguments.data_dir).valid
        valid = Split(valid.images[: arguments.images], valid.labels[: arguments.images])
        results += measure(name, session, valid)
    machine = describe(("numpy", "pillow", "onnxruntime"))
    text = table(results, machine)
    record = {"machine": machine, "results": [dataclasses.asdict(each) for each in results]}
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "normalisation.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.output / "normalisation.md").write_text(text)
    print(text)
    return int(any(each.missed for each in results))


if __name__ == "__main__":
    sys.exit(main())
