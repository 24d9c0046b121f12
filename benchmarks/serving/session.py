"""One contestant running for one model: started, ready, checked, and asked for its counters."""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.checker import Checker, wait_until
from benchmarks.serving.contestants import Contestant
from benchmarks.serving.h2load import Target
from benchmarks.serving.models import Model
from benchmarks.serving.peers import Tuning
from benchmarks.serving.process import (
    Cores,
    DidNotStart,
    Usage,
    busy_seconds,
    log_tail,
    own_seconds,
    pinned,
    running,
    usage,
)

_START_TIMEOUT = 120.0  # seconds
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_COUNTER = re.compile(r"^inference_requests_total\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.M)


@dataclass(frozen=True, slots=True)
class Session:
    """A server that is ready, and the client that checks it."""

    contestant: Contestant
    model: Model
    process: subprocess.Popen[bytes]
    port: int
    metrics_port: int
    cores: Cores
    checker: Checker
    ready_seconds: float  # from exec to ready

    def request(self, rows: int) -> bytes:
        """A message asking for the first so many images."""
        return self.contestant.protocol.encode(self.model.name, self.model.batch(rows)[0])

    def target(self, rows: int) -> Target:
        """For h2load, after a checked answer to the same request."""
        answer_bytes = self.checker.check_batch(rows)
        return Target(self.port, self.contestant.protocol.infer, self.cores.load, answer_bytes)

    def usage(self) -> Usage:
        """What the server used so far."""
        return usage(self.process.pid)

    def elsewhere(self) -> float:
        """Seconds that the two cores spent so far on what is neither the server nor ours."""
        return busy_seconds(self.cores) - own_seconds() - self.usage().cpu_seconds

    def counters(self) -> dict[str, int]:
        """The server's own count of the model's requests by gRPC code; empty for a peer's."""
        if not self.metrics_port:
            return {}
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:  # nosec B310 # http, to loopback
            return parse_counters(response.read().decode(), self.model.name)


@contextmanager
def started(
    contestant: Contestant, model: Model, tuning: Tuning, cores: Cores
) -> Iterator[Session]:
    """Run the contestant on the server's core; DidNotStart with the end of its log."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        directory = Path(name)
        launch = contestant.launch(model, tuning, directory)
        command = pinned(cores.server, launch.command)
        begun = time.monotonic()
        with running(command, _ONE_THREAD | launch.environment, directory) as process:
            alive = lambda: process.poll() is None  # noqa: E731
            if not wait_until(lambda: listens(launch.port), alive, _START_TIMEOUT):
                raise DidNotStart(f"{contestant.name} does not listen:\n{log_tail(directory)}")
            with closing(
                Checker(launch.port, contestant.protocol, model, contestant.fixed)
            ) as checker:
                if not wait_until(checker.ready, alive, _START_TIMEOUT):
                    raise DidNotStart(f"{contestant.name} is not ready:\n{log_tail(directory)}")
                yield Session(
                    contestant,
                    model,
                    process,
                    launch.port,
                    launch.metrics_port,
                    cores,
                    checker,
                    time.monotonic() - begun,
                )


def parse_counters(text: str, model: str) -> dict[str, int]:
    """gRPC code → requests, from Prometheus' text format, over all versions of the model."""
    counts: dict[str, int] = {}
    for match in _COUNTER.finditer(text):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"]))
        if labels["model"] == model:
            counts[labels["code"]] = counts.get(labels["code"], 0) + int(float(match["value"]))
    return counts


def listens(port: int) -> bool:
    """Somebody accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
