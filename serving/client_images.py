"""The clients' images: arrays as they are, files and Pillow's images as MNIST would have held them.

What is no array is made one here, not at the server: each model of any V2 server takes that.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

import digit_image

# A path or the bytes of a PNG or JPEG file, or an image of Pillow's: of any size.
Picture: TypeAlias = Image.Image | str | PathLike[str] | bytes
Images: TypeAlias = ArrayLike | Picture | Sequence[Picture | NDArray[np.uint8]]

_PICTURE = (Image.Image, str, PathLike, bytes)


def images_of(images: Images) -> NDArray[np.uint8]:
    """Whatever `classify` takes as uint8 images (N, 28, 28), 0 black … 255 white ink.

    Raises ValueError for what are no images; its subclass ImageError, which names the one of
    several, where there is no digit; OSError where a file cannot be opened.
    """
    if isinstance(images, _PICTURE):
        return digit(images, "image")[np.newaxis]
    if isinstance(images, Sequence) and any(isinstance(each, _PICTURE) for each in images):
        return np.stack([_row(each, f"images[{index}]") for index, each in enumerate(images)])
    return _checked(np.asarray(images))


def needs_decoding(images: Images) -> bool:
    """Whether `images_of` takes milliseconds, as it decodes images or reads files."""
    return not isinstance(images, np.ndarray)


def digit(picture: Picture, name: str) -> NDArray[np.uint8]:
    """One image as MNIST would have held it: (28, 28); a file is named by its path."""
    if isinstance(picture, (str, PathLike)):
        name = fspath(picture)
    try:
        image = picture if isinstance(picture, Image.Image) else digit_image.read_image(picture)
        return digit_image.normalise(image)
    except digit_image.ImageError as error:
        text = str(error).removeprefix("image: ")  # what bytes are called there
        named = text.startswith(f"{name}: ")
        raise digit_image.ImageError(text if named else f"{name}: {text}") from None
    except OSError as error:
        if not isinstance(picture, Image.Image):
            raise  # it names the file
        # Pillow decodes an image that it has opened when its pixels are asked for.
        raise digit_image.ImageError(f"{name}: cannot be decoded: {error}") from error


def _row(image: object, name: str) -> NDArray[np.uint8]:
    if isinstance(image, _PICTURE):
        return digit(image, name)
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.shape != (digit_image.SIDE, digit_image.SIDE):
        raise ValueError(f"{name} must be uint8 of shape (28, 28), got {_described(array)}")
    return array


def _checked(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    if array.ndim == 2:
        array = array[np.newaxis]
    if array.dtype != np.uint8 or array.ndim != 3 or not len(array):
        raise ValueError(f"images must be uint8 of shape (N, 28, 28), got {_described(array)}")
    return array.astype(np.uint8, copy=False)


def _described(array: NDArray[np.generic]) -> str:
    return f"{array.dtype} {array.shape}"
