"""Where training's images come from: MNIST, folders of PNGs, or the digits inside scikit-learn.

Chooses the source and says why; how each one is read is its own module's. Prints nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from training.bundled import read_digits
from training.dataset import (
    DataError,
    Dataset,
    Split,
    assemble,
    parse_classes,
    require_digits,
)
from training.download import fetch
from training.folders import is_image_folder, read_folder
from training.idx import holds_all, read_mnist
from training.mirrors import MNIST, Published, first_answering

__all__ = [
    "SOURCES",
    "DataError",
    "Dataset",
    "Split",
    "default_cache_dir",
    "load_dataset",
    "parse_classes",
]

SOURCES = ("auto", "mnist", "mnist_sample", "digits")

PROBE_SECONDS = 3.0  # in which a mirror must answer for auto to download at all
BUDGET_SECONDS = 20.0  # in which auto must have everything

Say = Callable[[str], None]


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """$XDG_CACHE_HOME/digits, or ~/.cache/digits where that is unset or relative.

    https://specifications.freedesktop.org/basedir-spec/
    """
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    return (base if base.is_absolute() else home / ".cache") / "digits"


def load_dataset(
    source: str,
    classes: tuple[str, ...],
    data_dir: Path | None = None,
    *,
    cache_dir: Path | None = None,
    say: Say = lambda line: None,
    progress: bool = False,
    published: Published = MNIST,
) -> Dataset:
    """Load one of SOURCES whole, with the calibration images split off.

    "auto" takes what data_dir holds; without one, MNIST from the cache or, where that takes
    seconds only, from a mirror; else digits. A data_dir that is given but missing or broken is an
    error, never a reason to look elsewhere; "digits" does not look at it. cache_dir defaults to
    default_cache_dir(os.environ). say is told of what takes time; progress shows a bar on stderr
    during a download. Raises DataError.
    """
    if source not in SOURCES:
        raise DataError(f"unknown dataset {source!r}: expected one of {', '.join(SOURCES)}")
    cache = (default_cache_dir(os.environ) if cache_dir is None else cache_dir) / "mnist"
    if source == "auto":
        return _auto(classes, data_dir, cache, say, progress, published)
    if source == "digits":
        return _digits(classes, "chosen")
    if source == "mnist_sample":
        return _mnist_sample(classes, data_dir, "chosen")
    if data_dir is not None:
        return _mnist(classes, data_dir, f"read from {data_dir}", published)
    require_digits("mnist", classes)
    if holds_all(cache, published.md5):
        return _cached_mnist(classes, cache, "read from", published)
    say(f"downloading MNIST to {cache}")
    fetch(cache, published, progress=progress)
    return _mnist(classes, cache, f"downloaded to {cache}", published)


def _auto(
    classes: tuple[str, ...],
    data_dir: Path | None,
    cache: Path,
    say: Say,
    progress: bool,
    published: Published,
) -> Dataset:
    if data_dir is not None and is_image_folder(data_dir):
        return _mnist_sample(classes, data_dir, "chosen by auto")
    if data_dir is not None:
        return _mnist(classes, data_dir, f"auto found it in {data_dir}", published)
    require_digits("without a data directory, auto", classes)
    if holds_all(cache, published.md5):
        return _cached_mnist(classes, cache, "auto found it in", published)
    try:
        _fetch_quickly(cache, published, say, progress)
    except DataError as fault:
        return _digits(classes, f"auto has no MNIST: none in {cache}, and {fault}")
    return _mnist(classes, cache, f"auto downloaded it to {cache}", published)


def _fetch_quickly(cache: Path, published: Published, say: Say, progress: bool) -> None:
    alive = first_answering(published, PROBE_SECONDS)
    if alive is None:
        raise DataError(f"no mirror answered within {PROBE_SECONDS:g} s")
    say(f"downloading MNIST to {cache}")
    quick = Published((alive,), published.md5)
    fetch(cache, quick, timeout=PROBE_SECONDS, budget=BUDGET_SECONDS, progress=progress)


def _mnist(classes: tuple[str, ...], folder: Path, why: str, published: Published) -> Dataset:
    require_digits("mnist", classes)
    train, valid = read_mnist(folder, classes, published.md5)
    return assemble("mnist", classes, f"mnist: {why}", str(folder), train, valid)


def _cached_mnist(classes: tuple[str, ...], cache: Path, why: str, published: Published) -> Dataset:
    """A damaged file of the cache is the user's to delete: nothing else is taken in its place."""
    try:
        return _mnist(classes, cache, f"{why} the cache {cache}", published)
    except DataError as fault:
        raise DataError(f"{fault}; delete that file of the cache to download it anew") from None


def _mnist_sample(classes: tuple[str, ...], path: Path | None, why: str) -> Dataset:
    if path is None:
        raise DataError("mnist_sample needs a data directory: its folder or .tgz")
    train, valid = read_folder(path, classes)
    origin = f"mnist_sample: {why}, read from {path}"
    return assemble("mnist_sample", classes, origin, str(path), train, valid)


def _digits(classes: tuple[str, ...], why: str) -> Dataset:
    require_digits("digits", classes)
    train, valid = read_digits(classes)
    origin = f"digits, bundled with scikit-learn: {why}"
    return assemble("digits", classes, origin, "digits", train, valid)
