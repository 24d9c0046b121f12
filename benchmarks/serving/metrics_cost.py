"""What knowing costs: our server over the lane, and the same without metrics, or metrics, drift and
prediction ids, at full load of single images.

All run at the same time on the server's core and are asked in turns, so that what else the machine
does meets all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from benchmarks.serving.compare import progress
from benchmarks.serving.contestants import Ours, ablated, digits
from benchmarks.serving.measure import single_images
from benchmarks.serving.models import load_model
from benchmarks.serving.peers import BUILT_IN
from benchmarks.serving.process import Cores
from benchmarks.serving.session import started

REPEATS = 3  # loads of each server in each round
_WARM_UP = 0.5  # seconds of load before each of them
LEFT_OUT = (("metrics",), ("metrics", "quality"))

# By model, then by server: of each load CPU µs per request, requests per second, others' CPU share.
Found = dict[str, dict[str, dict[str, list[float]]]]


def metrics_cost(
    ours: Ours,
    models: Sequence[str],
    cores: Cores,
    rounds: int,
    seconds: float,
    save: Callable[[Found], None],
) -> None:
    """`save` after each round, in which all are started anew: how one process lies in memory is a
    matter of luck."""
    found: Found = {name: {} for name in models}
    for number in range(rounds):
        for name in models:
            _round(ours, name, cores, seconds, number, found[name])
        save(found)


def _round(
    ours: Ours,
    model_name: str,
    cores: Cores,
    seconds: float,
    number: int,
    found: dict[str, dict[str, list[float]]],
) -> None:
    model = load_model(ours.repository, model_name, "fp32")
    whole = [digits(ours, "fp32"), *(ablated(ours, parts) for parts in LEFT_OUT)]
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
                progress(
                    f"{name}, {model_name}: {single.cpu_us:.1f} µs CPU,"
                    f" {single.load.rate:.0f} requests/s"
                )


def _add(found: dict[str, dict[str, list[float]]], name: str, measured: dict[str, float]) -> None:
    lists = found.setdefault(name, {field: [] for field in measured})
    for field, value in measured.items():
        lists[field].append(value)
