"""A published version's report.html: found and read, and only what its manifest vouches for."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from model_repository import RepositoryError, read_manifest, require_model_name
from serving.errors import ModelNotFound

REPORT = "report.html"


def exists(repository: Path, name: str, version: int) -> bool:
    """Whether there is one, whatever it holds."""
    try:
        return (repository / name / str(version) / REPORT).is_file()
    except OSError:
        return False


def read(repository: Path, name: str, version: str) -> bytes:
    """The file as it was published; ModelNotFound where there is none, or another in its place."""
    directory = _directory(repository, name, version)
    published = _checksum(directory) if directory else None
    if not directory or not published:
        raise ModelNotFound(f"model {name!r} version {version!r} has no report")
    page = _content(directory / REPORT)
    if hashlib.sha256(page).hexdigest() != published:
        raise ModelNotFound(f"model {name!r} version {version!r}: its report is not as published")
    return page


def _directory(repository: Path, name: str, version: str) -> Path | None:
    """A version's, where it lies within the repository, whatever links lead there."""
    try:
        require_model_name(name)
        if not version.isascii() or str(int(version)) != version:
            return None
        directory = (repository / name / version).resolve(strict=True)
    except (RepositoryError, ValueError, OSError):
        return None
    root = repository.resolve()
    return directory if directory.is_relative_to(root) else None


def _checksum(directory: Path) -> str | None:
    """Of the report, by the version's manifest; None where that has none."""
    try:
        return read_manifest(directory).files.get(REPORT)
    except RepositoryError:
        return None


def _content(path: Path) -> bytes:
    """Nothing of what is no file: a link could lead anywhere, and a pipe would never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read()
    except OSError:
        return b""
