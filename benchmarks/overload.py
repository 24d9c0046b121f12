"""Multiples of what the server can do, and after them nothing: ``python -m benchmarks.overload``.

What is answered meanwhile, how soon, how the rest is refused, what memory that takes; and how long
after the end of the load a single caller is served as before. `benchmarks/serving` compares one
multiple with what refusals leave room for; here it is how the server bends and straightens.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe, sentence
from benchmarks.serving import h2load
from benchmarks.serving.connections import most_rss_mb, rss_mb
from benchmarks.serving.contestants import Ours, digits
from benchmarks.serving.models import load_model
from benchmarks.serving.offered import offer_to
from benchmarks.serving.open_loop import WARM_UP, Offered, program
from benchmarks.serving.peers import BUILT_IN
from benchmarks.serving.process import cores
from benchmarks.serving.session import Session, started
from benchmarks.serving.wire import NoAnswer

RESULTS = Path(__file__).parent / "results"
TRANSPORTS = ("native", "grpcio")
MODELS = ("resnet18", "linear")
TIMES = (1.0, 2.0, 5.0, 10.0)  # of capacity
MOST_RATE = 1.2e6  # per second: more than the generator can send
PATIENCE = 1.0  # seconds after which a caller gives up what it could not send
SECONDS = 5.0  # of each load, after its warm-up
# h2load, for the capacity: as many in flight as keep the server busy, and less than there is room.
IN_FLIGHT = (4, 48)
PROBE_EVERY = 0.01  # seconds
PROBE_TIMEOUT = 1.0
WINDOW = 1.0  # seconds of which percentile and success are taken
BEFORE, AFTER = 3.0, 5.0  # seconds of probing
# A window is as before where each was answered, and the 99th percentile is no more than so many
# times what it was, or so many milliseconds more: a machine is never twice the same.
AS_BEFORE = (1.5, 2.0)

GOODPUT = 0.8  # of capacity, at least
RECOVERED = 1.0  # seconds, at most
GROWTH = 100.0  # MB of resident memory more than before the first load, at most


@dataclass(frozen=True, slots=True)
class Probe:
    """One request on its own; times in seconds, of time.monotonic."""

    sent: float
    took: float
    answered: bool


@dataclass(frozen=True, slots=True)
class Bent:
    """What came of one multiple of the capacity."""

    times: float
    offered: Offered
    rss_mb: float  # the most, meanwhile
    recovered_seconds: float | None  # after the load's end; None: not while it was watched


@dataclass(frozen=True, slots=True)
class Result:
    """One transport and model; milliseconds and MB."""

    transport: str
    model: str
    capacity: float  # requests per second
    probe_p99_ms: float  # before
    rss_mb: float  # before
    loads: tuple[Bent, ...]


def main() -> int:
    """Write overload.json and overload.md; 1 where a target is missed."""
    arguments = _parser().parse_args()
    program()
    machine = describe(("onnxruntime", "grpcio", "numpy"))
    our_cores = cores()
    os.sched_setaffinity(0, {our_cores.load})
    results: list[Result] = []
    for transport in arguments.transports:
        for name in arguments.models:
            ours = Ours(arguments.model_repository.resolve())
            model = load_model(ours.repository, name, "fp32")
            with started(digits(ours, "fp32", transport), model, BUILT_IN, our_cores) as session:
                results.append(_measure(session, transport, arguments.seconds))
            _write(machine, results, arguments.seconds, arguments.output)
    return int(any(_missed(result) for result in results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each load [%(default)g]")
    parser.add_argument("--transports", nargs="+", default=TRANSPORTS, choices=TRANSPORTS)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


def _measure(session: Session, transport: str, seconds: float) -> Result:
    session.checker.check_all()
    capacity = _capacity(session, seconds)
    before = p99_ms(list(probing(lambda: _ask(session), BEFORE)))
    rss = rss_mb(session)
    loads = []
    for times in TIMES:
        if times * capacity <= MOST_RATE:
            loads.append(_bend(session, times, capacity, before, seconds))
            print(session.contestant.name, session.model.name, loads[-1], flush=True)
    session.checker.check_all()
    return Result(transport, session.model.name, capacity, before, rss, tuple(loads))


def _capacity(session: Session, seconds: float) -> float:
    clients, streams = IN_FLIGHT
    options: dict[str, Any] = {"clients": clients, "streams": streams}
    target, request = session.target(1), session.request(1)
    h2load.load(target, request, seconds=WARM_UP, **options)
    return h2load.load(target, request, seconds=seconds, **options).rate


def _bend(session: Session, times: float, capacity: float, before: float, seconds: float) -> Bent:
    """Offer it, and ask alone from the moment that nothing more is due."""
    begun = threading.Event()
    with most_rss_mb(session) as most, ThreadPoolExecutor(1) as pool:
        offer = pool.submit(
            offer_to, session, times * capacity, seconds, patience=PATIENCE, begins=begun.set
        )
        offer.add_done_callback(lambda _: begun.set())  # where it failed before that
        begun.wait()
        time.sleep(WARM_UP + seconds)
        ended = time.monotonic()
        probes = list(probing(lambda: _ask(session), AFTER))
        offered = offer.result()
    return Bent(times, offered, max(most), recovery(probes, ended, before))


def _ask(session: Session) -> bool:
    """Whether an image is answered; WrongAnswer where that is wrong."""
    try:
        session.checker.check_one(0, PROBE_TIMEOUT)
    except NoAnswer:
        return False
    return True


def probing(ask: Callable[[], bool], seconds: float) -> Iterator[Probe]:
    """Ask at a steady pace, or as soon as the one before is over."""
    due = time.monotonic()
    end = due + seconds
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        sent = time.monotonic()
        answered = ask()
        yield Probe(sent, time.monotonic() - sent, answered)
        due = max(due + PROBE_EVERY, sent)


def p99_ms(probes: Sequence[Probe]) -> float:
    """Of those that were answered, in milliseconds."""
    return float(np.percentile([each.took for each in probes if each.answered], 99) * 1e3)


def recovery(probes: Sequence[Probe], ended: float, before_ms: float) -> float | None:
    """Seconds from then to the first window in which all is as before; None without one."""
    limit = max(AS_BEFORE[0] * before_ms, before_ms + AS_BEFORE[1])
    for first in probes:
        window = [each for each in probes if first.sent <= each.sent < first.sent + WINDOW]
        whole = probes[-1].sent >= first.sent + WINDOW - 2 * PROBE_EVERY
        if whole and all(each.answered for each in window) and p99_ms(window) <= limit:
            return first.sent - ended
    return None


def _missed(result: Result) -> list[str]:
    """What each load should have reached, and did not."""
    found = []
    for load in result.loads:
        share = load.offered.answered_per_second / result.capacity
        slow = load.recovered_seconds is None or load.recovered_seconds > RECOVERED
        kinds = {
            f"answered {share:.2f} of capacity": share < GOODPUT,
            "did not recover in time": slow,
            f"grew by {load.rss_mb - result.rss_mb:.0f} MB": load.rss_mb - result.rss_mb > GROWTH,
            "left requests without an answer": "UNANSWERED" in load.offered.statuses,
        }
        found += [f"at {load.times:g}x: {what}" for what, missed in kinds.items() if missed]
    return found


def _write(
    machine: dict[str, object], results: Sequence[Result], seconds: float, output: Path
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    facts = {
        "machine": machine,
        "command": shlex.join(["python", "-m", "benchmarks.overload", *sys.argv[1:]]),
        "seconds": seconds,
        "patience_seconds": PATIENCE,
        "results": [asdict(each) | {"missed": _missed(each)} for each in results],
    }
    (output / "overload.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (output / "overload.md").write_text(_page(facts, results), encoding="utf-8")


def _page(facts: dict[str, Any], results: Sequence[Result]) -> str:
    lines = [
        "# Overload",
        "",
        f"`{facts['command']}` on {sentence(facts['machine'])}.",
        "",
        "Multiples of the capacity, open loop: single images leave at random times (Poisson) over 4"
        f" connections, {facts['seconds']:g} s of each. What a caller could not send within"
        f" {PATIENCE:g} s, as the server's windows or its limit of streams kept it back, it gave up"
        " (DEADLINE_EXCEEDED). Server and generator have a core each. p50 and p99 are of the"
        " answered, from when each was due. Recovered: seconds from the end of the load to the"
        f" first window of {WINDOW:g} s in which each of {1 / PROBE_EVERY:.0f} lone requests a"
        " second is answered with the p99 that they had before the loads (times"
        f" {AS_BEFORE[0]:g}, or {AS_BEFORE[1]:g} ms more). Targets: {GOODPUT:g} of capacity"
        f" answered, recovered within {RECOVERED:g} s, at most {GROWTH:g} MB more than before, and"
        " nothing without an answer.",
        "",
        "| transport | model | capacity/s | offered | offered/s | answered/s | of capacity | p50 ms"
        " | p99 ms | statuses | RSS MB before | most | recovered s | generator late p99 ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(result, load) for result in results for load in result.loads),
        "",
        *(
            f"- {result.transport} {result.model} {missed}"
            for result in results
            for missed in _missed(result)
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(result: Result, load: Bent) -> str:
    offered = load.offered
    latency = offered.latency_ms
    statuses = ", ".join(f"{name} {count:,}" for name, count in offered.statuses.items())
    recovered = load.recovered_seconds
    cells = (
        *(result.transport, result.model, f"{result.capacity:,.0f}", f"{load.times:g}x"),
        *(f"{offered.offered_per_second:,.0f}", f"{offered.answered_per_second:,.0f}"),
        f"{offered.answered_per_second / result.capacity:.2f}",
        *(f"{latency[p]:.1f}" if latency else "" for p in ("p50", "p99")),
        *(statuses, f"{result.rss_mb:.0f}", f"{load.rss_mb:.0f}"),
        *("never" if recovered is None else f"{recovered:.2f}", f"{offered.late_p99_ms:.2f}"),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
