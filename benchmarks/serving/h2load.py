"""The load generator in C, nghttp2's h2load: closed loop, gRPC frames from a file.

It sees HTTP statuses only, and a refused gRPC call is a 200: so the bytes of the answers are
compared with what that many right answers take, and `checker` reads some of them meanwhile.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.process import pinned
from benchmarks.serving.wire import frame

# Seconds for a server to be rid of what was in flight when the time was up.
_SETTLE = 0.5


class LoadFailed(Exception):
    """h2load is missing, failed, or did not get an answer to each request."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom h2load asks, on which core it runs, and how long a right answer's message is."""

    port: int
    path: str
    core: int
    answer_bytes: int


@dataclass(frozen=True, slots=True)
class Load:
    """What came back within the time: requests per second, latencies in seconds."""

    requests: int
    seconds: float
    latencies: NDArray[np.float64]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.requests / self.seconds

    def percentile(self, percent: float) -> float:
        """Seconds."""
        return float(np.percentile(self.latencies, percent))


@dataclass(frozen=True, slots=True)
class Report:
    """The counts in h2load's own summary."""

    done: int
    succeeded: int
    seconds: float
    data_bytes: int


def require_h2load() -> str:
    """h2load's version; LoadFailed where there is none."""
    found = shutil.which("h2load")
    if not found:
        raise LoadFailed("h2load is missing; Debian has it in the package nghttp2-client")
    shown = subprocess.run([found, "--version"], check=True, capture_output=True, text=True)
    return shown.stdout.strip().removeprefix("h2load ")


def load(target: Target, request: bytes, *, clients: int, streams: int, seconds: float) -> Load:
    """Keep so many requests in flight on each connection; every answer must be a whole one."""
    report, latencies = _run(target, request, clients, streams, seconds)
    expected = report.done * (target.answer_bytes + len(frame(b"")))
    if report.succeeded != report.done or report.data_bytes < expected:
        raise LoadFailed(
            f"of {report.done} requests {report.succeeded} got HTTP 200, with {report.data_bytes}"
            f" bytes of answers where right ones take {expected}"
        )
    return Load(report.done, report.seconds, latencies)


def refused(target: Target, request: bytes, *, clients: int, streams: int, seconds: float) -> Load:
    """The same where a refusal is what is wanted: an answer with a message is the failure."""
    report, latencies = _run(target, request, clients, streams, seconds)
    if report.data_bytes:
        raise LoadFailed(f"{report.data_bytes} bytes of answers came where none were expected")
    return Load(report.done, report.seconds, latencies)


def parse_report(text: str) -> Report:
    """The summary that h2load prints."""
    finished = _found(r"finished in ([\d.]+)(us|ms|s|m)?,", text)
    unit = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, None: 1.0}[finished[2]]
    requests = _found(r"requests: .* (\d+) done, (\d+) succeeded", text)
    data = _found(r"\((\d+)\) data", text)
    return Report(int(requests[1]), int(requests[2]), float(finished[1]) * unit, int(data[1]))


def parse_log(text: str) -> NDArray[np.float64]:
    """Latencies in seconds from --log-file: start, HTTP status, microseconds."""
    return np.fromstring(text, np.int64, sep=" ").reshape(-1, 3)[:, 2] / 1e6


def _run(
    target: Target, request: bytes, clients: int, streams: int, seconds: float
) -> tuple[Report, NDArray[np.float64]]:
    with tempfile.TemporaryDirectory() as directory:
        body, log = Path(directory) / "body", Path(directory) / "log"
        body.write_bytes(frame(request))
        command = ["h2load", "--clients", str(clients), "--max-concurrent-streams", str(streams)]
        command += ["--duration", f"{round(seconds * 1000)}ms", "--data", str(body)]
        command += ["--header", "content-type: application/grpc", "--header", "te: trailers"]
        command += ["--log-file", str(log), f"http://127.0.0.1:{target.port}{target.path}"]
        result = subprocess.run(
            pinned(target.core, command), capture_output=True, text=True, timeout=seconds + 60
        )
        if result.returncode or "finished in" not in result.stdout:
            raise LoadFailed(f"h2load: {(result.stderr or result.stdout).strip()[-500:]}")
        time.sleep(_SETTLE)
        report = parse_report(result.stdout)
        if not report.done:
            counts = _found(r"requests: .*", result.stdout)[0]
            raise LoadFailed(f"no request was answered in {seconds:g} s; {counts}")
        return report, parse_log(log.read_text())


def _found(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    if match is None:
        raise LoadFailed(f"h2load's report has no {pattern!r}")
    return match
