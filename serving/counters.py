"""The counters of one process in a mapped file that others read while it grows. Knows no metric.

A file is a header and records, in the machine's byte order, everything aligned to 8 bytes:

    offset  header, 64 bytes
         0  8 bytes  the characters "digitsct"
         8  uint64   version of this layout, 1
        16  int64    index of the worker; -1 a supervisor, -2 the sum of retired files
        24  uint64   pid of the only process that writes; 0 for retired files
        32  uint64   when that process started, in clock ticks since boot (/proc/PID/stat, 22)
        40  uint64   bytes in use, header included: where the next record will begin
        48  uint64   how many times files were folded into this one; 0 for a process's own
        56  uint64   0

    offset  record
         0  uint32   bytes of the key
         4  uint32   number of slots
         8  the key  a JSON array in UTF-8, [merge, name, [label value, ...]], then spaces up to
                     a multiple of 8 bytes
       ...  float64  the slots, 0 at first

A record is written before the bytes in use tell of it, and never moves or goes; its size is
8 + key + 8 * slots. A full file stays mapped, and the process begins another, so that slots once
handed out are good for as long as the process runs. The files are filled with zeros when made:
a full disk is an error then, not a signal at some later count.

Whoever writes a slot without this process's lock (a native thread, say) needs a record of its own:
`private_record` gives one. Readers add up the records of a series. Its `offset` counts from the
start of the file, `slots` (a buffer of float64) is where it is mapped.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import mmap
import os
import struct
import tempfile
import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from serving.processes import Process, alive, current_process

SUPERVISOR = -1
RETIRED = -2
SUFFIX = ".counters"
CHUNK_BYTES = 256 * 1024
# Remembered as parsed: a record's key never changes, and is read again every few seconds.
MOST_KEYS = 16384

log = logging.getLogger(__name__)

_HEADER = struct.Struct("=8sQqQQQQQ")
_LENGTHS = struct.Struct("=II")
_MAGIC = b"digitsct"
_LAYOUT = 1
_USED = 5  # in words of 8 bytes


class Merge(StrEnum):
    """How the slots of several processes become one; most names are prometheus_client's."""

    SUM = "sum"  # of all, and what the dead counted stays
    MAX = "max"  # of all
    LIVE_SUM = "livesum"
    LIVE_MAX = "livemax"
    LIVE_MIN = "livemin"  # 0 where a live worker does not have it
    # Of those live ones that have it, and it is no NaN; not prometheus_client's.
    LIVE_LEAST = "liveleast"


@dataclass(frozen=True, slots=True)
class Series:
    """A name with its label values, and how it is merged."""

    merge: Merge
    name: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """Where the slots of a series are: mapped here, and at which byte of which file."""

    slots: memoryview[float]
    path: Path
    offset: int


@dataclass(frozen=True, slots=True)
class CounterFile:
    """What a file said when it was read."""

    name: str
    worker: int
    process: Process
    folds: int
    alive: bool
    records: list[tuple[Series, list[float]]] = field(repr=False)


class Counters:
    """This process's counters. Adding to a slot takes `lock`; storing into one does not.

    Raises OSError where the directory is not there or the disk is full. Should that come later,
    what is new is counted unseen, and logged: no request fails because it cannot be counted.
    """

    def __init__(
        self,
        directory: Path,
        worker: int = 0,
        process: Process | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.lock = threading.Lock()
        self._directory = directory
        self._worker = worker
        self._process = process or current_process()
        self._chunk_bytes = chunk_bytes
        self._records: dict[Series, Record] = {}
        self._growing = threading.Lock()
        self._chunk = self._new_chunk(chunk_bytes)

    def record(self, series: Series, slots: int = 1, first: float = 0.0) -> Record:
        """The record of the series, made when it is first asked for, with that first slot."""
        record = self._records.get(series)
        if record is None:
            with self._growing:
                record = self._records.get(series) or self._append(series, slots, first)
                self._records[series] = record
        return record

    def private_record(self, series: Series, slots: int = 1) -> Record:
        """One more record of the series, for a writer that does not take `lock`; SUM only."""
        with self._growing:
            return self._append(series, slots)

    def _append(self, series: Series, slots: int, first: float = 0.0) -> Record:
        key = _key(series)
        size = _LENGTHS.size + len(key) + 8 * slots
        if not self._chunk.holds(size):
            room = max(self._chunk_bytes, _HEADER.size + size)
            try:
                self._chunk = self._new_chunk(room)
            except OSError as error:
                log.error("new metrics are not shown: %s", error)
                self._chunk = _Chunk(Path(os.devnull), mmap.mmap(-1, room))
        return self._chunk.append(key, slots, first)

    def _new_chunk(self, size: int) -> _Chunk:
        path = self._directory / f"{self._worker}-{self._process.pid}-{time.time_ns():x}{SUFFIX}"
        create(path, _pack_header(self._worker, self._process).ljust(size, b"\0"))
        with path.open("r+b") as stream:
            return _Chunk(path, mmap.mmap(stream.fileno(), 0))


class _Chunk:
    """One mapped file that records are appended to."""

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self._path = path
        self._bytes = memoryview(mapping)
        self._words = self._bytes[: _HEADER.size].cast("Q")
        self._words[_USED] = _HEADER.size
        self._floats = self._bytes[: len(self._bytes) // 8 * 8].cast("d")

    def holds(self, size: int) -> bool:
        return self._words[_USED] + size <= len(self._bytes)

    def append(self, key: bytes, slots: int, first: float) -> Record:
        start = self._words[_USED]
        at = start + _LENGTHS.size
        offset = at + len(key)
        self._bytes[at:offset] = key
        if slots:
            self._floats[offset // 8] = first
        # Lengths last: where stores become visible in another order, a reader sees none, and stops.
        _LENGTHS.pack_into(self._bytes, start, len(key), slots)
        self._words[_USED] = offset + 8 * slots
        return Record(self._floats[offset // 8 : offset // 8 + slots], self._path, offset)


def create(path: Path, content: bytes) -> None:
    """Write a file that others see complete or not at all, replacing one that is there."""
    descriptor, hidden = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.replace(hidden, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden)
        raise


def pack_file(folds: int, records: list[tuple[Series, list[float]]]) -> bytes:
    """A whole file that no process writes any more."""
    packed = b"".join(_pack_record(series, slots) for series, slots in records)
    return _pack_header(RETIRED, Process(0, 0), _HEADER.size + len(packed), folds) + packed


def read_file(path: Path) -> CounterFile:
    """What a file holds now. Raises FileNotFoundError, or ValueError for what is no such file."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic, layout, worker, pid, start, used, folds, _ = _HEADER.unpack_from(data)
        if (magic, layout) != (_MAGIC, _LAYOUT):
            raise ValueError(f"{path}: not a counter file of layout {_LAYOUT}")
        process = Process(pid, start)
        # Asked before the slots are read: those of a process found dead are then final.
        lives = pid != 0 and alive(process)
        return CounterFile(path.name, worker, process, folds, lives, _read_records(data, used))


def read_folds(path: Path) -> int:
    """How many times files were folded into this one; 0 where there is none."""
    try:
        with path.open("rb") as stream:
            return int(_HEADER.unpack(stream.read(_HEADER.size))[-2])
    except FileNotFoundError:
        return 0


def _read_records(data: mmap.mmap, used: int) -> list[tuple[Series, list[float]]]:
    records = []
    with memoryview(data) as view, view[: used // 8 * 8].cast("d") as floats:
        at = _HEADER.size
        while at < used:
            key, slots = _LENGTHS.unpack_from(view, at)
            if key == 0:
                break
            first = at + _LENGTHS.size + key
            values = list(floats[first // 8 : first // 8 + slots])
            records.append((_series(bytes(view[first - key : first])), values))
            at = first + 8 * slots
    return records


@functools.lru_cache(MOST_KEYS)
def _series(key: bytes) -> Series:
    merge, name, labels = json.loads(key)
    return Series(Merge(merge), name, tuple(labels))


def _pack_header(worker: int, process: Process, used: int = _HEADER.size, folds: int = 0) -> bytes:
    return _HEADER.pack(_MAGIC, _LAYOUT, worker, process.pid, process.start, used, folds, 0)


def _pack_record(series: Series, slots: list[float]) -> bytes:
    key = _key(series)
    return _LENGTHS.pack(len(key), len(slots)) + key + struct.pack(f"={len(slots)}d", *slots)


def _key(series: Series) -> bytes:
    text = json.dumps([series.merge, series.name, series.labels], ensure_ascii=False).encode()
    return text.ljust((len(text) + 7) // 8 * 8)
