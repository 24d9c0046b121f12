"""Folders of PNGs, as fastai publishes MNIST_SAMPLE: train/<class>/*.png, valid/<class>/*.png.

Reads a directory, or a .tgz in memory; nothing is ever extracted to disk.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from training.dataset import SIDE, DataError, Split

PARTS = ("train", "valid")
TOP = "mnist_sample"  # the folder at the top of fastai's archive
MAX_FILE_BYTES = 64 * 1024  # one 28x28 PNG has a few hundred
MAX_TOTAL_BYTES = 1024 * 1024 * 1024  # of an archive, unpacked
MAX_FILES = 200_000


@dataclass(frozen=True, slots=True)
class _File:
    part: str
    label: str
    name: str
    path: str  # for messages
    data: bytes


def is_image_folder(path: Path) -> bool:
    """Whether this is an archive (any file), or a directory with a train folder in it."""
    return path.is_file() or (_top(path) / "train").is_dir()


def read_folder(path: Path, classes: tuple[str, ...]) -> tuple[Split, Split]:
    """Train and valid images of the chosen classes, from a directory or a .tgz.

    Files are ordered by their number, then by class: fastai's names are MNIST's indices, so this
    is MNIST's file order. Raises DataError for a missing path, a damaged archive, or a PNG that
    is unreadable, not grayscale or not 28x28.
    """
    if path.is_dir():
        files = list(_in_directory(_top(path), classes))
    elif path.is_file():
        files = _in_archive(path, classes)
    else:
        raise DataError(f"{path}: no such directory or .tgz file")
    train, valid = (_split([f for f in files if f.part == part], classes) for part in PARTS)
    return train, valid


def _top(path: Path) -> Path:
    return path / TOP if (path / TOP).is_dir() else path


def _in_directory(top: Path, classes: tuple[str, ...]) -> Iterator[_File]:
    for part in PARTS:
        for label in classes:
            folder = top / part / label
            if not folder.is_dir():
                raise DataError(f"{folder}: no such directory, so class {label!r} has no images")
            for path in folder.iterdir():
                if _is_png(path.name):
                    yield _File(part, label, path.name, str(path), _read(path))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as fault:
        raise DataError(f"{path}: cannot be read: {fault.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    return data


def _in_archive(path: Path, classes: tuple[str, ...]) -> list[_File]:
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            files = list(_members(path, archive, classes))
            while stream.read(1024 * 1024):  # to its end, where gzip's own checksum is
                pass
            return files
    except EOFError:
        raise DataError(f"{path}: truncated archive") from None
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile) as fault:
        raise DataError(f"{path}: not a .tgz archive, or damaged: {fault}") from None
    except OSError as fault:
        raise DataError(f"{path}: cannot be read: {fault.strerror}") from None


def _members(path: Path, archive: tarfile.TarFile, classes: tuple[str, ...]) -> Iterator[_File]:
    """The wanted regular files; links and devices are passed over."""
    total = 0
    for count, member in enumerate(archive):
        total += member.size
        if total > MAX_TOTAL_BYTES or count >= MAX_FILES:
            raise DataError(f"{path}: archive of more than {total} bytes or {count} files")
        part, label, name = _place(member.name)
        content = archive.extractfile(member) if member.isreg() else None
        if content is None or part not in PARTS or label not in classes or not _is_png(name):
            continue
        if member.size > MAX_FILE_BYTES:
            raise DataError(f"{path}: {member.name} is larger than {MAX_FILE_BYTES} bytes")
        yield _File(part, label, name, f"{path}: {member.name}", content.read())


def _place(name: str) -> tuple[str, str, str]:
    """(part, class, file name) of a member three folders deep, or four under one top folder."""
    steps = PurePosixPath(name).parts
    if len(steps) not in (3, 4) or ".." in steps:
        return "", "", ""
    return steps[-3], steps[-2], steps[-1]


def _is_png(name: str) -> bool:
    return name.lower().endswith(".png") and not name.startswith(".")


def _split(files: list[_File], classes: tuple[str, ...]) -> Split:
    index = {label: position for position, label in enumerate(classes)}
    ordered = sorted(files, key=lambda f: (_natural(f.name), f.name, index[f.label]))
    images = np.empty((len(ordered), SIDE, SIDE), dtype=np.uint8)
    for image, file in zip(images, ordered, strict=True):
        image[:] = _pixels(file)
    return Split(images, np.array([index[file.label] for file in ordered], dtype=np.int64))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts 9.png before 10.png."""
    runs = re.split(r"([0-9]+)", name)
    numbers = (run.lstrip("0") if odd % 2 else run for odd, run in enumerate(runs))
    return [(len(run) if odd % 2 else 0, run) for odd, run in enumerate(numbers)]


def _pixels(file: _File) -> NDArray[np.uint8]:
    """(28, 28) grey levels; the size is checked before a pixel is decoded."""
    try:
        with Image.open(io.BytesIO(file.data), formats=("PNG",)) as image:
            if image.size != (SIDE, SIDE):
                size = f"{image.width}x{image.height}"
                raise DataError(f"{file.path}: image is {size}, expected {SIDE}x{SIDE}")
            if image.mode not in ("1", "L"):
                raise DataError(f"{file.path}: image is {image.mode}, expected 8-bit grayscale")
            return np.asarray(image.convert("L"))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{file.path}: not a PNG image") from None
    except Exception as fault:  # Pillow raises almost anything on a damaged file
        raise DataError(f"{file.path}: damaged PNG image: {fault}") from fault
