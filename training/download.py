"""Download MNIST's files into a folder: mirrors in turn, resumable, verified, atomic.

What is under a file's own name is whole and verified; what is not is under its name + ".part".
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from training.dataset import DataError
from training.idx import check_md5, find_file, read_content
from training.mirrors import MNIST, Published

MAX_BYTES = 64 * 1024 * 1024  # of one gzipped file; MNIST's largest has 9,912,422

Report = Callable[[str, int, int | None], None]  # file name, bytes so far, bytes in all


def fetch(
    folder: Path,
    published: Published = MNIST,
    *,
    timeout: float = 10.0,
    budget: float = math.inf,
    progress: bool = False,
) -> None:
    """Download what the folder lacks; run again, it goes on where it was interrupted.

    timeout is in seconds of silence, budget in seconds for everything. Safe to run twice at once:
    the second waits for the first. Raises DataError, naming the file and what each mirror did.
    """
    deadline = time.monotonic() + budget
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock", deadline), _progress_bar(progress) as report:
            for stem in published.md5:
                if find_file(folder, stem) is None:
                    target = folder / f"{stem}.gz"
                    _fetch_file(target, published, stem, _Limits(timeout, deadline), report)
    except OSError as fault:
        raise DataError(f"{folder}: cannot be written: {fault.strerror}") from None


@dataclass(frozen=True, slots=True)
class _Limits:
    timeout: float  # seconds without a byte
    deadline: float  # of time.monotonic()

    def check(self) -> None:
        if time.monotonic() >= self.deadline:
            raise TimeoutError("not finished in the time allowed")


def _fetch_file(
    target: Path, published: Published, stem: str, limits: _Limits, report: Report
) -> None:
    part = target.with_name(f"{target.name}.part")
    expected = published.md5[stem]
    faults: list[str] = []
    for mirror in published.mirrors:
        try:
            if not _is_whole(part, expected):
                limits.check()
                _download(f"{mirror}{target.name}", part, expected, limits, report)
        except (OSError, http.client.HTTPException, DataError) as fault:
            faults.append(f"{urlsplit(mirror).netloc}: {_reason(fault)}")
        else:
            _promote(part, target)
            return
    raise DataError(f"{target.name}: could not be downloaded ({'; '.join(faults)})")


def _download(url: str, part: Path, expected: str, limits: _Limits, report: Report) -> None:
    """Complete the part and verify it; a resumed one that proves wrong is fetched anew, once.

    A part may be another mirror's, whose gzip of the same content can differ.
    """
    resumed = part.exists()
    try:
        _transfer(url, part, limits, report)
        check_md5(part, read_content(part), expected)
    except DataError:
        part.unlink()  # what is wrong, rather than unfinished, is not gone on with
        if not resumed:
            raise
        _download(url, part, expected, limits, report)


def _is_whole(part: Path, expected: str) -> bool:
    """Whether an earlier run was stopped between the last byte and the renaming."""
    try:
        check_md5(part, read_content(part), expected)
    except DataError:
        return False
    return True


def _transfer(url: str, part: Path, limits: _Limits, report: Report) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:  # of `mirrors`, which are constants of https, and of what is got the md5 is compared
        response = urllib.request.urlopen(request, timeout=limits.timeout)  # nosec B310
    except urllib.error.HTTPError as fault:
        fault.close()
        if not have or fault.code != 416:  # 416: there is nothing after what we have
            raise
        part.unlink()
        return _transfer(url, part, limits, report)
    with response:
        start = _continues_at(response, have)
        with part.open("ab" if start else "wb") as file:
            _copy(response, file, part.stem, start, limits, report)
    return None


def _continues_at(response: http.client.HTTPResponse, have: int) -> int:
    """have where the server continues the part there; 0 where it sends the whole file instead."""
    span = re.match(r"bytes ([0-9]+)-", response.headers.get("Content-Range", ""))
    if response.status != 206:
        return 0
    if span is None or int(span[1]) != have:
        raise http.client.HTTPException("answered with another range than was asked for")
    return have


def _copy(
    response: http.client.HTTPResponse,
    file: BinaryIO,
    name: str,
    start: int,
    limits: _Limits,
    report: Report,
) -> None:
    length = response.headers.get("Content-Length")
    total = start + int(length) if length is not None and length.isdecimal() else None
    done = start
    while chunk := response.read1(64 * 1024):
        done += len(chunk)
        if done > MAX_BYTES:
            raise DataError(f"more than {MAX_BYTES} bytes")
        file.write(chunk)
        report(name, done, total)
        limits.check()
    if total is not None and done < total:
        raise http.client.HTTPException(f"ended after {done} of {total} bytes")
    file.flush()
    os.fsync(file.fileno())


def _promote(part: Path, target: Path) -> None:
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _reason(fault: Exception) -> str:
    if isinstance(fault, urllib.error.HTTPError):
        return f"HTTP {fault.code} {fault.reason}"
    if isinstance(fault, urllib.error.URLError):
        return str(getattr(fault.reason, "strerror", None) or fault.reason)
    return str(fault) or type(fault).__name__


@contextlib.contextmanager
def _locked(path: Path, deadline: float) -> Iterator[None]:
    """Hold the folder's lock, which the system takes back when a process dies."""
    with path.open("w") as file:
        while not _try_lock(file.fileno()):
            if time.monotonic() >= deadline:
                raise DataError(f"{path.parent}: another process is still downloading to it")
            time.sleep(0.1)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _progress_bar(shown: bool) -> Iterator[Report]:
    """Yield what reports to a bar on stderr, one line per file; or to nothing."""
    if not shown:
        yield lambda name, done, total: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def report(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total)

        yield report
