"""MNIST's IDX files: find, decompress, check and parse them. Writes nothing.

The format is described at http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.dataset import SIDE, DataError, Split, choose

TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
VALID = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

# Of the decompressed content: the gzip members differ between mirrors.
MNIST_MD5: Mapping[str, str] = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

MAX_BYTES = 128 * 1024 * 1024  # decompressed; MNIST's largest file has 47,040,016

_GZIP_MAGIC = b"\x1f\x8b"
_IMAGES_MAGIC = 0x803
_LABELS_MAGIC = 0x801


def read_mnist(
    folder: Path, classes: tuple[str, ...], md5: Mapping[str, str] = MNIST_MD5
) -> tuple[Split, Split]:
    """Train and valid images of the chosen digits, in file order.

    md5 has the expected sum of each file's decompressed content by the file's stem. Raises
    DataError for a missing, damaged or different file.
    """
    train, valid = (_read_pair(folder, *pair, md5) for pair in (TRAIN, VALID))
    return choose(*train, classes), choose(*valid, classes)


def find_file(folder: Path, stem: str) -> Path | None:
    """The IDX file of this stem, gzipped or not, in either of the two usual spellings."""
    dotted = stem.replace("-idx", ".idx")
    names = (stem, f"{stem}.gz", dotted, f"{dotted}.gz")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def holds_all(folder: Path, stems: Iterable[str]) -> bool:
    """Whether every file is there; their content is checked when they are read."""
    return all(find_file(folder, stem) is not None for stem in stems)


def read_content(path: Path) -> bytes:
    """The file's content, decompressed where it is gzipped; DataError where it is damaged."""
    try:
        with path.open("rb") as file:
            gzipped = file.read(2) == _GZIP_MAGIC
        with gzip.open(path) if gzipped else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except EOFError:
        raise DataError(f"{path}: truncated gzip file") from None
    except (gzip.BadGzipFile, zlib.error) as fault:
        raise DataError(f"{path}: corrupted gzip file: {fault}") from None
    except OSError as fault:
        raise DataError(f"{path}: cannot be read: {fault.strerror}") from None
    if len(content) > MAX_BYTES:
        raise DataError(f"{path}: more than {MAX_BYTES} bytes of content")
    return content


def parse_images(path: Path, content: bytes) -> NDArray[np.uint8]:
    """(N, 28, 28) pixels of an IDX image file; path is for the messages of DataError."""
    count, height, width = _header(path, content, _IMAGES_MAGIC, 3)
    if (height, width) != (SIDE, SIDE):
        raise DataError(f"{path}: images are {width}x{height}, expected {SIDE}x{SIDE}")
    return _body(path, content, 16, count * SIDE * SIDE).reshape(count, SIDE, SIDE)


def parse_labels(path: Path, content: bytes) -> NDArray[np.uint8]:
    """(N,) digits of an IDX label file; path is for the messages of DataError."""
    (count,) = _header(path, content, _LABELS_MAGIC, 1)
    digits = _body(path, content, 8, count)
    wrong = np.flatnonzero(digits > 9)
    if wrong.size:
        label = digits[wrong[0]]
        raise DataError(f"{path}: label {label} of item {wrong[0]} is out of range 0 to 9")
    return digits


def check_md5(path: Path, content: bytes, expected: str) -> None:
    """Raise DataError unless the decompressed content has this md5."""
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != expected:
        raise DataError(f"{path}: not MNIST's file: content has md5 {actual}, expected {expected}")


def _read_pair(
    folder: Path, images_stem: str, labels_stem: str, md5: Mapping[str, str]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images_path, labels_path = _require(folder, images_stem), _require(folder, labels_stem)
    contents = read_content(images_path), read_content(labels_path)
    images = parse_images(images_path, contents[0])
    digits = parse_labels(labels_path, contents[1])
    if len(images) != len(digits):
        counts = f"{len(digits)} labels for the {len(images)} images of {images_path.name}"
        raise DataError(f"{labels_path}: {counts}")
    check_md5(images_path, contents[0], md5[images_stem])
    check_md5(labels_path, contents[1], md5[labels_stem])
    return images, digits


def _require(folder: Path, stem: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder}: {'not a' if folder.exists() else 'no such'} directory")
    path = find_file(folder, stem)
    if path is None:
        raise DataError(f"{folder}: has no {stem}[.gz]")
    return path


def _header(path: Path, content: bytes, magic: int, dimensions: int) -> tuple[int, ...]:
    size = 4 + 4 * dimensions
    if len(content) < size:
        raise DataError(f"{path}: {len(content)} bytes are too few for an IDX header")
    found, *shape = struct.unpack_from(f">I{dimensions}I", content)
    if found != magic:
        raise DataError(f"{path}: starts with 0x{found:08x}, expected IDX magic 0x{magic:08x}")
    return tuple(shape)


def _body(path: Path, content: bytes, header: int, size: int) -> NDArray[np.uint8]:
    if len(content) - header != size:
        lengths = f"{size} bytes of items, the file has {len(content) - header}"
        raise DataError(f"{path}: header promises {lengths}")
    return np.frombuffer(content, dtype=np.uint8, offset=header)
