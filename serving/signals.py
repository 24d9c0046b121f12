"""SIGTERM and SIGINT, heard whichever thread the kernel gives them to.

Python runs a signal's handler in the main thread, once that runs: one that waits for a lock does
not, if another thread took the signal, or if it came just before the wait. The number of each is
also written to a file descriptor, at once; that is what is listened to here.
"""

from __future__ import annotations

import signal
import socket
import threading
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGINT)


def stopping() -> threading.Event:
    """An event that the first SIGTERM or SIGINT sets; only SIGINT, pressed again, then kills.

    A second SIGTERM is nobody's impatience: `timeout` and some init processes send two. To be
    called in the main thread.
    """
    stop = threading.Event()
    heard, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    for each in STOPS:
        signal.signal(each, _once)
    # The thread keeps both ends open.
    threading.Thread(target=_listen, args=(heard, told, stop), name="signals", daemon=True).start()
    return stop


def _listen(heard: socket.socket, told: socket.socket, stop: threading.Event) -> None:
    while numbers := heard.recv(64):  # `told` is closed by nobody: to the end of the process
        if any(number in STOPS for number in numbers):
            stop.set()


def _once(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
