"""Which images the clients take, what is made of them, and how one that is none is named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import Digits, publish_classifier, running_server
from numpy.typing import NDArray
from PIL import Image

import digit_image
from serving.client import Client
from serving.client_images import Images, Picture, images_of


@pytest.fixture
def digit(digits: Digits) -> NDArray[np.uint8]:
    """A three as MNIST would have held it."""
    return digit_image.normalise(digits.images[int(np.argmin(digits.classes))])


def drawn(digit: NDArray[np.uint8]) -> Image.Image:
    """The same as somebody may have it: ten times as large, black on white, in colour."""
    return Image.fromarray(255 - digit).resize((280, 280)).convert("RGB")


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_arrays_are_sent_as_they_are(digits: Digits) -> None:
    assert (images_of(digits.images) == digits.images).all()
    assert (images_of(digits.images[0]) == digits.images[:1]).all()
    assert (images_of(list(digits.images[:3])) == digits.images[:3]).all()


def test_pictures_of_any_kind_become_what_mnist_would_have_held(
    digit: NDArray[np.uint8], tmp_path: Path
) -> None:
    image = drawn(digit)
    png, jpeg = tmp_path / "3.png", tmp_path / "3.jpg"
    image.save(png)
    image.save(jpeg)
    kinds: list[Picture] = [image, png, str(png), encoded(image, "PNG")]
    wanted = digit_image.normalise(image)
    for each in kinds:
        assert (images_of(each) == wanted).all()
        assert images_of(each).shape == (1, 28, 28)
    assert (images_of([*kinds, digit]) == [wanted] * 4 + [digit]).all()
    difference = np.abs(images_of(jpeg)[0].astype(float) - digit)
    assert difference.mean() < 12  # grey levels


def test_pictures_are_answered_as_the_digits_that_they_are_of(
    digits: Digits, tmp_path: Path
) -> None:
    normal = np.stack([digit_image.normalise(image) for image in digits.images])
    publish_classifier(tmp_path, Digits(normal, digits.classes))
    pictures = [drawn(image) for image in digits.images[:40]]
    with running_server(tmp_path) as running, Client(running.address) as client:
        answer = client.classify(pictures, "classifier")
    named = np.array(["3", "7"])[digits.classes[:40]]
    assert (np.array(answer.labels) == named).mean() > 0.9


def test_an_image_without_a_digit_is_named(digit: NDArray[np.uint8], tmp_path: Path) -> None:
    paper = Image.new("L", (30, 30), 255)
    file = tmp_path / "notes.png"
    file.write_bytes(b"not an image")
    rubbish: list[Picture] = [drawn(digit), b"GIF89a"]
    beside: list[Picture] = [drawn(digit), file]
    refused: list[tuple[Images, str]] = [
        (paper, "image: no ink found"),
        ([drawn(digit), paper], r"images\[1\]: no ink found"),
        (rubbish, r"images\[1\]: not a PNG or JPEG"),
        (beside, "notes.png: not a PNG or JPEG image"),
        (str(file), "notes.png: not a PNG or JPEG image"),
    ]
    for given, words in refused:
        with pytest.raises(digit_image.ImageError, match=words):
            images_of(given)


def test_a_picture_that_ends_too_soon_is_named(digit: NDArray[np.uint8]) -> None:
    data = encoded(drawn(digit), "PNG")
    with (
        Image.open(io.BytesIO(data[: len(data) // 2])) as image,
        pytest.raises(digit_image.ImageError, match=r"images\[0\]: cannot be decoded"),
    ):
        images_of([image])


def test_an_array_among_pictures_must_be_an_image(digit: NDArray[np.uint8]) -> None:
    for array in (np.zeros((28, 28)), np.zeros((30, 28), np.uint8)):
        with pytest.raises(ValueError, match=r"images\[1\] must be uint8 of shape \(28, 28\)"):
            images_of([drawn(digit), array])  # type: ignore[arg-type]


def test_a_file_that_is_not_there_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        images_of(tmp_path / "gone")
