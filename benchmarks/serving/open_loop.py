"""Open loop: requests leave at random times at a given rate, however slow the answers come.

`open_loop.cpp` sends them, and is compiled when it is first needed. h2load cannot do that: its
--rps sends at once what has gathered for 10 ms, so that its own bursts would be measured, and a
request that leaves late has no latency until it does. Here a latency counts from when the request
was due, so that no waiting is left out, neither in front of a slow server (coordinated omission)
nor in the generator. Statuses are told apart, and some answers are kept, to be compared.
"""

from __future__ import annotations

import math
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.h2load import LoadFailed, Target
from benchmarks.serving.process import pinned
from benchmarks.serving.wire import frame
from serving.lane.build import compiler

CONNECTIONS = 4
WARM_UP = 1.0  # seconds that are offered, but not counted
PERCENTILES = (50, 90, 99, 99.9)
SOURCE = Path(__file__).with_suffix(".cpp")
PROGRAM = Path(__file__).parent.parent.parent / "build" / "benchmarks" / "open_loop"
_CODES = {code.value[0]: code.name for code in grpc.StatusCode} | {-1: "UNANSWERED"}
_PATIENCE = 60.0  # seconds beyond those of the load


@dataclass(frozen=True, slots=True)
class Offered:
    """What an offered load came to; latencies in milliseconds, of the answered ones."""

    offered_per_second: float  # as sent; less than was asked for where the generator was too slow
    answered_per_second: float
    statuses: dict[str, int]  # gRPC code → requests; UNANSWERED ones never came back
    latency_ms: dict[str, float]  # by percentile; empty without an answer
    late_p99_ms: float  # how late the generator itself was


def program() -> Path:
    """The generator, compiled where it is not yet or is older than its source.

    Raises LoadFailed where that cannot be.
    """
    if not PROGRAM.exists() or PROGRAM.stat().st_mtime < SOURCE.stat().st_mtime:
        command = compiler()
        if command is None:
            raise LoadFailed("open loop: no C++ compiler; see `make lane`")
        PROGRAM.parent.mkdir(parents=True, exist_ok=True)
        command = [*command, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", str(SOURCE)]
        _run([*command, "-o", str(PROGRAM), "-lnghttp2"], None)
    return PROGRAM


def offer(
    target: Target,
    request: bytes,
    *,
    rate: float,
    seconds: float,
    scratch: Path,
    patience: float = math.inf,
    begins: Callable[[], None] = lambda: None,
) -> tuple[Offered, list[bytes]]:
    """Offer so many requests per second for so long, after the warm-up; some of the answers.

    `patience` is in seconds: of requests that could not be sent in that time. `begins` is called
    when the generator is started. Raises LoadFailed where there were none, or the server ended a
    connection.
    """
    body, times, outcomes, samples = (scratch / name for name in ("body", "due", "ended", "said"))
    body.write_bytes(frame(request))
    due = arrivals(rate, WARM_UP + seconds)
    due.tofile(times)
    command = [str(program()), str(target.port), target.path, str(body), str(times)]
    command += [str(CONNECTIONS), f"{patience:g}", str(outcomes), str(samples)]
    begins()
    _run(pinned(target.core, command), WARM_UP + seconds + _PATIENCE)
    sent, ended, statuses = np.fromfile(outcomes).reshape(-1, 3).T
    found = summarise(due, sent - due, ended, statuses.astype(np.int64), seconds)
    return found, list(messages(samples.read_bytes()))


def arrivals(rate: float, seconds: float, seed: int = 0) -> NDArray[np.float64]:
    """The times of a Poisson process, in seconds from 0, sorted."""
    generator = np.random.default_rng(seed)
    count = generator.poisson(rate * seconds)
    return np.sort(generator.uniform(0, seconds, count))


def summarise(
    due: NDArray[np.float64],
    late: NDArray[np.float64],
    ended: NDArray[np.float64],
    statuses: NDArray[np.int64],
    seconds: float,
) -> Offered:
    """Requests due after the warm-up; answers per second are those that came within that time."""
    end = WARM_UP + seconds
    counted = due >= WARM_UP
    sent = due + late  # NaN for one that was never sent
    answered = statuses == 0
    latencies = (ended - due)[counted & answered] * 1000
    within = answered & (ended >= WARM_UP) & (ended < end)
    codes = Counter(_CODES[code] for code in statuses[counted].tolist())
    return Offered(
        offered_per_second=float(((sent >= WARM_UP) & (sent < end)).sum() / seconds),
        answered_per_second=float(within.sum() / seconds),
        statuses=dict(sorted(codes.items())),
        latency_ms={f"p{p:g}": float(np.percentile(latencies, p)) for p in PERCENTILES}
        if len(latencies)
        else {},
        # Of one that was never sent, it is not known.
        late_p99_ms=float(np.nanpercentile(late[counted], 99) * 1000),
    )


def messages(samples: bytes) -> Iterator[bytes]:
    """The answers that were kept, each with its length before it, without gRPC's frame."""
    head = len(frame(b""))
    at = 0
    while at < len(samples):
        length = int.from_bytes(samples[at : at + 4], "little")
        yield samples[at + 4 + head : at + 4 + length]
        at += 4 + length


def _run(command: list[str], timeout: float | None) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if result.returncode:
        raise LoadFailed(f"open loop: {result.stderr.strip()[-500:]}")
