"""The counter files of several processes in one directory, read as one; the dead ones' are folded.

Readers take no lock. `retired.counters` is replaced as a whole and names the files that it has
absorbed; only then are they removed. A reader that finds another one afterwards begins again, and
leaves out what is named: nothing is lost or counted twice, wherever the folding may be cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from serving.counters import (
    RETIRED,
    SUFFIX,
    CounterFile,
    Merge,
    Series,
    create,
    pack_file,
    read_file,
    read_folds,
)
from serving.processes import Process

RETIRED_FILE = f"retired{SUFFIX}"
_PREFIX = "digits-counters-"
# Directories are made there by mkdtemp: of a name that none can foresee, for this user only.
_MEMORY = Path("/dev/shm")  # nosec B108
_OWNER = "owner.lock"
_LOCK = "fold.lock"
_ABSORBED = "absorbed"
_OF_ALL = (Merge.SUM, Merge.MAX)

Sums = dict[Series, list[float]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The merged slots of every series, the live workers, and every process known by a file."""

    sums: Sums
    workers: frozenset[Process]
    processes: tuple[Process, ...]  # the supervisor first


class CounterDirectory:
    """A directory for the counter files of one server; `close` removes it, or the next server that
    finds its owner gone.

    In memory where possible: a page of a file on disk cannot be written while it is written back,
    and each request would wait for it now and then.
    """

    def __init__(self, parent: Path | None = None) -> None:
        if parent is None:
            parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        _sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        hidden = self.path / f".{_OWNER}"
        owner = hidden.open("w")
        fcntl.flock(owner, fcntl.LOCK_EX)  # let go by the kernel, however the process ends
        hidden.rename(self.path / _OWNER)
        self._finalizer = weakref.finalize(self, _remove, self.path, owner)

    def close(self) -> None:
        """Remove it, with all that was counted."""
        self._finalizer()


def read(directory: Path) -> Snapshot:
    """What all processes have counted up to now. Raises OSError or ValueError."""
    while True:
        before, files = _load(directory)
        if read_folds(directory / RETIRED_FILE) == before.folds:
            return _snapshot(before, files)


def fold(directory: Path) -> None:
    """Replace the files of dead processes by their sum; returns where another process is at it."""
    with _alone(directory) as free:
        if not free:
            return
        retired, files = _load(directory)
        for name in _absorbed(retired):
            (directory / name).unlink(missing_ok=True)
        dead = [file for file in files if not file.alive]
        if dead:
            _replace(directory, retired, dead)
            for file in dead:
                (directory / file.name).unlink()


def _replace(directory: Path, retired: CounterFile, dead: list[CounterFile]) -> None:
    sums: Sums = {}
    for file in (retired, *dead):
        _merge(sums, _counted(file))
    absorbed = [(Series(Merge.SUM, _ABSORBED, (file.name,)), list[float]()) for file in dead]
    content = pack_file(retired.folds + 1, [*absorbed, *sums.items()])
    create(directory / RETIRED_FILE, content)


def _load(directory: Path) -> tuple[CounterFile, list[CounterFile]]:
    """The retired file as it was first, then every other that it has not absorbed."""
    retired = _retired(directory)
    known = {RETIRED_FILE, *_absorbed(retired)}
    files = []
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        if path.name not in known:
            with contextlib.suppress(FileNotFoundError):  # folded meanwhile, which `read` sees
                files.append(read_file(path))
    return retired, files


def _retired(directory: Path) -> CounterFile:
    try:
        return read_file(directory / RETIRED_FILE)
    except FileNotFoundError:
        return CounterFile(RETIRED_FILE, RETIRED, Process(0, 0), 0, False, [])


def _absorbed(retired: CounterFile) -> set[str]:
    return {series.labels[0] for series, _ in retired.records if series.name == _ABSORBED}


def _snapshot(retired: CounterFile, files: list[CounterFile]) -> Snapshot:
    sums: Sums = {}
    holders: dict[Series, set[Process]] = {}
    for file in (retired, *files):
        counted = _counted(file)
        _merge(sums, counted)
        for series, _ in counted:
            holders.setdefault(series, set()).add(file.process)
    workers = frozenset(file.process for file in files if file.alive and file.worker >= 0)
    for series, slots in sums.items():
        if series.merge is Merge.LIVE_MIN and not workers <= holders[series]:
            slots[:] = [0.0] * len(slots)
    by_worker = sorted(files, key=lambda file: file.worker)
    return Snapshot(sums, workers, tuple(dict.fromkeys(file.process for file in by_worker)))


def _counted(file: CounterFile) -> list[tuple[Series, list[float]]]:
    """What a file adds to the sums: the gauges of a dead process are over, and so is the least of
    what a live one has none of any more."""
    return [
        (series, slots)
        for series, slots in file.records
        if (file.alive or series.merge in _OF_ALL)
        and series.name != _ABSORBED
        and not (series.merge is Merge.LIVE_LEAST and all(map(math.isnan, slots)))
    ]


def _merge(sums: Sums, records: Iterable[tuple[Series, list[float]]]) -> None:
    for series, slots in records:
        known = sums.get(series)
        if known is None:
            sums[series] = list(slots)
        elif series.merge in (Merge.SUM, Merge.LIVE_SUM):
            known[:] = [a + b for a, b in zip(known, slots, strict=True)]
        else:
            pick: Callable[[float, float], float]
            pick = min if series.merge in (Merge.LIVE_MIN, Merge.LIVE_LEAST) else max
            known[:] = [_picked(pick, a, b) for a, b in zip(known, slots, strict=True)]


def _picked(pick: Callable[[float, float], float], a: float, b: float) -> float:
    """NaN, which compares with nothing, only where both are."""
    if math.isnan(a):
        return b
    return a if math.isnan(b) else pick(a, b)


def _sweep(parent: Path) -> None:
    """Remove what servers left that were killed; another user's is skipped."""
    for path in parent.glob(f"{_PREFIX}*/{_OWNER}"):
        with contextlib.suppress(OSError), path.open() as owner:  # BlockingIOError: it lives
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)


def _remove(directory: Path, owner: IO[str]) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    owner.close()


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[bool]:
    """Whether nobody else folds, which stays so for the length of the block."""
    with (directory / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
