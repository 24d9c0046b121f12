"""Whatever picture of a digit comes, ResNet18 is as right as on MNIST's own: within one point.

The models are the trained ones that the page is tested with; their answers come from ONNX Runtime,
without a server, as what is in question is `digit_image`.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import ROOT
from numpy.typing import NDArray
from PIL import Image

from deploy.service import latest
from digit_image import read_digit
from model_repository import read_manifest
from training.idx import read_mnist

REPOSITORY = Path(os.environ.get("MODEL_REPOSITORY", ROOT / "models"))
IMAGES = 500
POINT = 0.01

Pixels = NDArray[np.uint8]


def picture(digit: Pixels, place: np.random.Generator) -> bytes:
    """A JPEG of 280x280 ink on paper, dark on light, with more paper on some sides than others."""
    ink = Image.fromarray(255 - digit).resize((280, 280), Image.Resampling.BICUBIC)
    top, bottom, left, right = place.integers(0, 200, 4).tolist()
    page = Image.new("L", (280 + left + right, 280 + top + bottom), 255)
    page.paste(ink, (left, top))
    file = io.BytesIO()
    page.save(file, "JPEG")
    return file.getvalue()


def labels(model: str, images: Pixels) -> list[str]:
    """What the model's latest version says of each."""
    directory = latest(REPOSITORY, model)
    manifest = read_manifest(directory)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        directory / manifest.variants[0].file, options, providers=["CPUExecutionProvider"]
    )
    found = [
        session.run(["labels"], {"images": images[at : at + 100]})[0]
        for at in range(0, len(images), 100)
    ]
    return [manifest.labels[each] for each in np.concatenate(found).tolist()]


@pytest.mark.mnist
@pytest.mark.parametrize(
    ("model", "classes"), [("resnet18_0_9", tuple("0123456789")), ("resnet18", ("3", "7"))]
)
def test_resnet18_is_as_right_of_pictures_as_of_mnist(
    model: str, classes: tuple[str, ...], mnist_dir: Path
) -> None:
    valid = read_mnist(mnist_dir, classes)[1]
    some = np.random.default_rng(5).choice(len(valid.images), IMAGES, replace=False)
    plain, truths = valid.images[some], [classes[each] for each in valid.labels[some].tolist()]
    place = np.random.default_rng(7)
    pictured = np.stack([read_digit(picture(each, place)) for each in plain])

    def accuracy(images: Pixels) -> float:
        return float(np.mean(np.equal(labels(model, images), truths)))

    before, after = accuracy(plain), accuracy(pictured)
    assert before > 0.97
    assert after >= before - POINT, f"{after:.3f} of pictures, {before:.3f} of MNIST"
