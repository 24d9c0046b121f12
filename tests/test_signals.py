"""Signals that the main thread, which waits, does not get itself."""

from __future__ import annotations

import signal
import subprocess
import sys

from conftest import PATIENCE, ROOT

# A thread takes SIGTERM for the process, while the main thread waits for a lock, as all servers do.
TAKEN_BY_ANOTHER = """
import signal, threading
from serving import signals
stop = signals.stopping()
threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)).start()
stop.wait()
print(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


def test_a_signal_that_another_thread_took_is_heard_at_once() -> None:
    done = run(TAKEN_BY_ANOTHER)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{signal.SIG_IGN!s} {signal.SIG_DFL!s}\n"
