"""The images that a command is given: files, folders and what is below them, standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import digit_image
from serving.client_images import digit

STANDARD_INPUT = "-"
_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that is no image of a digit, and why."""

    reason: str


def found(given: Sequence[str]) -> Iterator[str]:
    """Files as they were given, and those of folders by name; a folder without any as itself."""
    for each in given:
        path = Path(each)
        if each == STANDARD_INPUT or not path.is_dir():
            yield each
            continue
        below = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
        yield from map(str, below) if below else [each]


def read(file: str) -> NDArray[np.uint8] | Unreadable:
    """As MNIST would have held it: (28, 28)."""
    try:
        if file == STANDARD_INPUT:
            return digit(sys.stdin.buffer.read(), "standard input")
        return digit(file, file)
    except IsADirectoryError:
        return Unreadable(f"{file}: no PNG or JPEG files in it")
    except OSError as error:
        return Unreadable(f"{file}: {error.strerror}")
    except digit_image.ImageError as error:
        return Unreadable(str(error))
