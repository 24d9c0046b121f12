"""One server in a process of its own, asked and reloaded slice by slice."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from benchmarks.serving.wire import encode_v2
from benchmarks.soak.callers import INFER, TIMEOUT, Server, ask_all
from benchmarks.soak.reloads import MOVES, Reloads
from benchmarks.soak.samples import Sample, sample


@dataclass(frozen=True, slots=True)
class Plan:
    """How much, in all slices together."""

    requests: int
    reloads: int
    slices: int
    transport: str = "native"
    publish: bool = False  # each reload serves a version that is new


def soak(
    version: Path, plan: Plan, told: Callable[[Sample], None] = lambda _: None
) -> list[Sample]:
    """A sample after each slice; WrongFate where a request did not end as it should."""
    samples = []
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        reloads = Reloads(version, Path(scratch), publish=plan.publish)
        with running(Path(scratch), plan.transport) as (process, server):
            for number in range(1, plan.slices + 1):
                _slice(server, reloads, plan, number)
                asked = plan.requests * number // plan.slices
                samples.append(sample(process.pid, asked, reloads.done))
                told(samples[-1])
    return samples


def _slice(server: Server, reloads: Reloads, plan: Plan, number: int) -> None:
    """Requests to the one model, while the other is reloaded and asked."""
    due = plan.reloads * number // plan.slices
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_all, server, plan.requests // plan.slices)
        with grpc.insecure_channel(server.grpc) as channel:
            ask = channel.unary_unary(INFER, bytes, bytes)
            while reloads.done < due:
                reloads.reload(channel)
                ask(encode_v2(MOVES, server.image), timeout=TIMEOUT)
        asking.result()


@contextmanager
def running(repository: Path, transport: str) -> Iterator[tuple[subprocess.Popen[str], Server]]:
    """`python -m serving`, as a user starts it, on free ports."""
    command = [sys.executable, "-m", "serving", f"--model-repository={repository}"]
    command += ["--model-control-mode=explicit", "--load-model=*", "--allow-admin"]
    command += ["--intra-op-threads=1", f"--transport={transport}"]
    command += ["--grpc-port=0", "--http-port=0", "--metrics-port=0"]
    image = np.zeros((1, 28, 28), np.uint8)
    image[:, 4:24, 12:16] = 255  # a stroke, as of a one
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        rest = threading.Thread(target=deque, args=(process.stderr, 0))
        try:
            addresses = _addresses(process.stderr)
            rest.start()
            yield process, Server(*addresses, image)
        finally:
            process.terminate()
            rest.join()


def _addresses(log: Iterable[str]) -> tuple[str, str]:
    """Where it answers by gRPC and HTTP."""
    for line in log:
        if found := re.search(r"gRPC on (\S+), HTTP on http://(\S+),", line):
            return found[1], found[2]
    raise RuntimeError("the server did not start")
