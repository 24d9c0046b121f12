"""What metrics cost: our server, and the same without metrics, at full load of single images.

All run at the same time on the server's core and are asked in turns, so that what else the machine
does meets all alike. CPU time per request is compared: it varies less than throughput.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from benchmarks.serving.compare import progress
from benchmarks.serving.contestants import Ours, ablated, digits
from benchmarks.serving.measure import single_images
from benchmarks.serving.models import load_model
from benchmarks.serving.peers import BUILT_IN
from benchmarks.serving.process import Cores
from benchmarks.serving.session import started

MODEL = "linear"  # the fastest: a request that costs little shows best what metrics add
REPEATS = 5  # loads of each server in each round
_WARM_UP = 0.5  # seconds of load before each of them
LEFT_OUT = (("metrics",), ("metrics", "quality"))

Found = dict[str, dict[str, list[float]]]


def metrics_cost(
    ours: Ours, cores: Cores, rounds: int, seconds: float, save: Callable[[Found], None]
) -> None:
    """By server, of each load: CPU µs per request, requests per second, the others' CPU share."""
    found: Found = {}
    for number in range(rounds):
        _round(ours, cores, seconds, number, found)
        save(found)


def _round(ours: Ours, cores: Cores, seconds: float, number: int, found: Found) -> None:
    """Start all anew: how one process lies in memory is a matter of luck."""
    model = load_model(ours.repository, MODEL, "fp32")
    whole = [digits(ours, "fp32", "grpcio"), *(ablated(ours, parts) for parts in LEFT_OUT)]
    servers = [replace(each, warm_up=_WARM_UP) for each in whole]
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(started(each, model, BUILT_IN, cores))
            for each in (reversed(servers) if number % 2 else servers)
        ]
        for session in sessions:
            session.checker.check_all()
        for _ in range(REPEATS):
            for session in sessions:
                single = single_images(session, seconds)
                name = session.contestant.name
                measured = {
                    "cpu_us": single.cpu_us,
                    "requests_per_second": single.load.rate,
                    "others_cpu": single.others_cpu,
                }
                _add(found, name, measured)
                progress(f"{name}: {single.cpu_us:.1f} µs CPU, {single.load.rate:.0f} requests/s")


def _add(found: Found, name: str, measured: dict[str, float]) -> None:
    lists = found.setdefault(name, {field: [] for field in measured})
    for field, value in measured.items():
        lists[field].append(value)
