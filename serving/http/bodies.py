"""Bodies: how many bytes of requests' bodies one process holds while it receives them.

Connections are many and each body may be large: without a bound for all of them together, senders
who take their time would fill the memory. The lane has the same for gRPC's (core/connection.h).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import Overloaded

# Bytes of all of them, but at least as many as four of the largest have.
LIMIT = 256 * 2**20
# A body that is larger than this may have of three quarters only, so that small ones go on.
SMALL = 64 * 2**10
# Seconds after which it is worth trying again.
RETRY = 1.0


class Bodies:
    """Counts what is there, of at most `limit` bytes; used on one event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes of bodies that are being received."""
        return self._held

    @contextmanager
    def one(self) -> Iterator[Body]:
        """One that is received in the block."""
        body = Body(self)
        try:
            yield body
        finally:
            self._held -= body.size

    def add(self, more: int, size: int) -> None:
        """So many bytes of a body that has `size` with them; Overloaded where they do not fit."""
        most = self._limit if size <= SMALL else self._limit * 3 // 4
        if self._held + more > most:
            raise Overloaded("too many large requests are being received", RETRY)
        self._held += more


class Body:
    """What was received of one so far; counted as it arrives, as a length costs nothing to say."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._received = bytearray()

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._received)

    def add(self, chunk: bytes) -> None:
        """Some more of it; Overloaded where there is no room for that."""
        self._bodies.add(len(chunk), self.size + len(chunk))
        self._received += chunk

    def whole(self) -> bytes:
        """All of it."""
        return bytes(self._received)
