"""`python -m serving` as a user runs it, with workers that can be found, killed and waited for."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from serving.client import Client

WORKERS = 2
# Seconds until something that must come is given up.
PATIENCE = 60.0
LIBRARY = "faketime/libfaketimeMT.so.1"


class Server:
    """One server of several workers on a port that stays; `restart` makes another one there."""

    def __init__(self, repository: Path, transport: str, clock: Path | None) -> None:
        self.port = _shared_port()
        self.address = f"127.0.0.1:{self.port}"
        self.transport = transport
        self._repository = repository
        self._environment = dict(os.environ) | (_clock(clock) if clock else {})
        self._lines: list[str] = []
        self._came = threading.Condition()
        self._start()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self._process.terminate()
        return self._process.wait(PATIENCE)

    def restart(self) -> int:
        """SIGTERM, and another one once it has ended; its exit status."""
        status = self.stop()
        self._start()
        return status

    def replace_workers(self) -> None:
        """SIGHUP, until each was replaced."""
        seen = self._mark()
        self._process.send_signal(signal.SIGHUP)
        for number in range(WORKERS):
            self._wait_for(rf"worker {number} .*has ended", seen)
            self._wait_for(rf"worker {number} is ready", seen)

    def kill(self, number: int) -> None:
        """SIGKILL for a worker; until another has taken its place."""
        seen = self._mark()
        pids = re.findall(rf"worker {number} is process (\d+)", self._log(0))
        os.kill(int(pids[-1]), signal.SIGKILL)
        self._wait_for(rf"worker {number} .*died with status -9", seen)
        self._wait_for(rf"worker {number} is ready", seen)

    def tracebacks(self) -> int:
        """Faults of its own that it logged."""
        return self._log(0).count("Traceback (most recent call last)")

    def memory(self) -> int:
        """Bytes that it and its workers have resident."""
        return sum(_resident(pid) for pid in self._pids())

    def descriptors(self) -> int:
        """Files that they have open."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self._pids())

    def _pids(self) -> list[int]:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [self._process.pid, *map(int, children.read_text().split())]

    def _start(self) -> None:
        seen = self._mark()
        command = [sys.executable, "-m", "serving", "--model-repository", str(self._repository)]
        options: Mapping[str, object] = {
            "grpc-port": self.port,
            "metrics-port": 0,
            "allow-http": "false",
            "workers": WORKERS,
            "transport": self.transport,
            "poll-interval": 0.1,
            "intra-op-threads": 1,
            "version-policy": "latest:2",
            "drain-timeout": 10,
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        self._process = subprocess.Popen(
            [*command, *flags], stderr=subprocess.PIPE, text=True, env=self._environment
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        with Client(self.address) as client:
            end = time.monotonic() + PATIENCE
            while not client.ready(timeout=1.0):
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the server did not start:\n{self._log(seen)}")
                time.sleep(0.05)
        self._wait_for(f"all {WORKERS} workers are ready", seen)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with self._came:
                self._lines.append(line)
                self._came.notify_all()

    def _mark(self) -> int:
        with self._came:
            return len(self._lines)

    def _log(self, since: int) -> str:
        with self._came:
            return "".join(self._lines[since:])

    def _wait_for(self, pattern: str, since: int) -> None:
        def came() -> bool:
            return any(re.search(pattern, line) for line in self._lines[since:])

        with self._came:
            if not self._came.wait_for(came, PATIENCE):
                raise RuntimeError(f"{pattern!r} did not come:\n{''.join(self._lines[since:])}")


def _shared_port() -> int:
    """One that is free, and that workers may share."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as server:
        port: int = server.getsockname()[1]
    return port


def faketime() -> Path | None:
    """libfaketime, with which one program's wall clock can be moved (Debian: libfaketime)."""
    folders = [Path("/usr/lib"), *Path("/usr/lib").glob("*-linux-gnu")]
    return next((f / LIBRARY for f in folders if (f / LIBRARY).exists()), None)


def _clock(file: Path) -> dict[str, str]:
    """An environment in which a program's wall clock is off by what the file says."""
    return {
        "LD_PRELOAD": str(faketime()),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",  # seconds until a jump is seen
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
