"""SIGTERM, SIGINT and SIGHUP, heard whichever thread the kernel gives them to.

Python runs a signal's handler in the main thread, once that runs: one that waits for a lock does
not, if another thread took the signal, or if it came just before the wait. The number of each is
also written to a file descriptor, at once; that is what is listened to here.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGINT)


def stopping() -> threading.Event:
    """An event that the first SIGTERM or SIGINT sets; only SIGINT, pressed again, then kills.

    A second SIGTERM is nobody's impatience: `timeout` and some init processes send two. To be
    called in the main thread.
    """
    stop = threading.Event()
    _listen(STOPS, lambda number: stop.set())
    return stop


def heard(*others: int) -> SimpleQueue[int]:
    """The numbers of signals as they come: those that stop, as above, and `others`."""
    numbers: SimpleQueue[int] = SimpleQueue()
    _listen((*STOPS, *others), numbers.put)
    return numbers


def _listen(numbers: tuple[int, ...], tell: Callable[[int], None]) -> None:
    ours, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    for each in numbers:
        signal.signal(each, _once if each in STOPS else _nothing)

    def listen() -> None:
        # The thread keeps both ends open; `told` is closed by nobody, to the end of the process.
        while some := ours.recv(64) if told.fileno() >= 0 else b"":
            for number in some:
                if number in numbers:
                    tell(number)

    threading.Thread(target=listen, name="signals", daemon=True).start()


def _once(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _nothing(number: int, frame: FrameType | None) -> None:
    """It is told of; without a handler it would kill."""
