"""CountedIds: each id counts once, in all processes of a server, wherever one of them is killed.

Owns a mapped file in the directory of the counters: 8 bytes of each id that was counted, in buckets
of 64, where the oldest makes room. One process at a time counts, by a lock that the kernel takes
back from the dead.

A count and its mark are two stores, and a process can be killed between them. So what is about to
be done is written down first: the id, where its count is, and what that was. Who has the lock next
and finds such a note looks whether the count was made, and sets the mark, or does not, by that. No
label is lost, and none is counted twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

from serving.counters import Record

WAYS = 64  # ids per bucket: a full table forgets the oldest of an eighth more or less of its size
AT_A_TIME = 256  # ids that are counted before other processes have their turn

_FILE = "counted.ids"
_ID_BYTES = 8
_BUCKET_BYTES = WAYS * _ID_BYTES
_HEADER_BYTES = 512
# The note: id, offset in the counter file, the count before, the file's name.
_NOTE = struct.Struct("=8sQd256s")
_NOBODY = bytes(_ID_BYTES)


class CountedIds:
    """A table of at least `capacity` ids, the same one for all who name that directory.

    Of any number of threads and processes. Raises OSError where there is no room for it.
    """

    def __init__(self, directory: Path, capacity: int) -> None:
        self._directory = directory
        self._buckets = -(-capacity // WAYS)
        size = _HEADER_BYTES + self._buckets * _BUCKET_BYTES
        self._descriptor = os.open(directory / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, self._descriptor)
        # So that a full disk is an error now, no signal later. Not a second time: where a file
        # system has no such call, the C library writes back bytes that others count in meanwhile.
        if os.fstat(self._descriptor).st_size < size:
            os.posix_fallocate(self._descriptor, 0, size)
        self._table = mmap.mmap(self._descriptor, size)
        self._turn = threading.Lock()

    def count(self, ids: Sequence[tuple[bytes, Record]]) -> list[bool]:
        """Add 1 to the record of each id, of 8 bytes, that was not counted yet; which those are.

        The records are this process's, and nobody else adds to them.
        """
        counted: list[bool] = []
        for start in range(0, len(ids), AT_A_TIME):
            with self.settled():
                counted += [self._count(*each) for each in ids[start : start + AT_A_TIME]]
        return counted

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Nobody counts for the length of the block, and nothing is half done."""
        with self._turn:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                self._settle()
                yield
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _count(self, digest: bytes, record: Record) -> bool:
        bucket = self._bucket(digest)
        if self._holds(bucket, digest):
            return False
        before = record.slots[0]
        name = record.path.name.encode()
        # All but the id, by which the note is one, then the id.
        _NOTE.pack_into(self._table, 0, _NOBODY, record.offset, before, name)
        self._table[:_ID_BYTES] = digest
        record.slots[0] = before + 1
        self._mark(bucket, digest)
        self._table[:_ID_BYTES] = _NOBODY
        return True

    def _settle(self) -> None:
        digest, offset, before, name = _NOTE.unpack_from(self._table)
        if digest == _NOBODY:
            return
        path = self._directory / name.rstrip(b"\0").decode()
        bucket = self._bucket(digest)
        if _slot(path, offset) != before and not self._holds(bucket, digest):
            self._mark(bucket, digest)
        self._table[:_ID_BYTES] = _NOBODY

    def _bucket(self, digest: bytes) -> int:
        """Where in the table the id's bucket begins."""
        return _HEADER_BYTES + int.from_bytes(digest, "big") % self._buckets * _BUCKET_BYTES

    def _holds(self, bucket: int, digest: bytes) -> bool:
        end = bucket + _BUCKET_BYTES
        at = self._table.find(digest, bucket, end)
        while at >= 0 and at % _ID_BYTES:  # across two ids
            at = self._table.find(digest, at + 1, end)
        return at >= 0

    def _mark(self, bucket: int, digest: bytes) -> None:
        """The newest comes first, and moves the oldest out."""
        self._table.move(bucket + _ID_BYTES, bucket, _BUCKET_BYTES - _ID_BYTES)
        self._table[bucket : bucket + _ID_BYTES] = digest


@contextlib.contextmanager
def settled(directory: Path) -> Iterator[None]:
    """As CountedIds.settled, for who does not count: the files of the dead may be folded."""
    try:
        size = (directory / _FILE).stat().st_size - _HEADER_BYTES
    except FileNotFoundError:
        size = 0
    if size > 0:
        with CountedIds(directory, size // _ID_BYTES).settled():
            yield
    else:
        yield


def _slot(path: Path, offset: int) -> float | None:
    """What a counter file has there; None where it is gone."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            return float(struct.unpack("=d", stream.read(8))[0])
    except FileNotFoundError:
        return None
