"""What is measured of one contestant in one round, and of ONNX Runtime alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving import h2load
from benchmarks.serving.contestants import Contestant
from benchmarks.serving.h2load import Load
from benchmarks.serving.models import Model
from benchmarks.serving.peers import BUILT_IN, Tuning
from benchmarks.serving.process import Cores, pinned
from benchmarks.serving.session import Session, started

# h2load's connections and requests in flight on each.
SINGLE = (4, 16)
ALONE = (1, 1)
BATCHES = (2, 2)
_MARGIN = 0.5  # seconds
ROWS = (1, 8, 32, 256)  # images per request


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best batching settings found: for 64 requests in flight, and for one or a few."""

    throughput: Tuning = BUILT_IN
    latency: Tuning = BUILT_IN


class Refused(Exception):
    """The server counted answers other than OK, or fewer than h2load did."""


@dataclass(frozen=True, slots=True)
class Round:
    """One contestant and model, once. Latencies in milliseconds."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    alone_p50_ms: float  # one request in flight
    alone_p99_ms: float
    images_per_second: dict[int, float]  # by images per request
    cpu_us: float  # of the server's processes, per request
    rss_mb: float  # after the single images
    peak_rss_mb: float  # after the batches too
    ready_seconds: float
    answers_checked: int
    answers_lost: int
    others_cpu: float  # share of the two cores that went elsewhere during the single images


@dataclass(frozen=True, slots=True)
class Single:
    """A load of single images, what a request cost, and how undisturbed that was."""

    load: Load
    cpu_us: float
    others_cpu: float


def measure(
    contestant: Contestant, model: Model, tuned: Tuned, cores: Cores, seconds: float
) -> Round:
    """Start it, check it, load it, stop it; twice where few requests at a time have other settings.

    Raises DidNotStart, LoadFailed, Refused or WrongAnswer.
    """
    few = None
    if tuned.latency != tuned.throughput:
        with started(contestant, model, tuned.latency, cores) as session:
            _load(session, 1, SINGLE, contestant.warm_up)
            few = few_in_flight(session, seconds / 2)
    with started(contestant, model, tuned.throughput, cores) as session:
        session.checker.check_all()
        measured = single_images(session, seconds)
        single = measured.load
        rss = session.usage().rss_bytes
        alone, images = few or few_in_flight(session, seconds / 2)
        return Round(
            requests_per_second=single.rate,
            p50_ms=single.percentile(50) * 1000,
            p99_ms=single.percentile(99) * 1000,
            alone_p50_ms=alone.percentile(50) * 1000,
            alone_p99_ms=alone.percentile(99) * 1000,
            images_per_second={1: single.rate} | images,
            cpu_us=measured.cpu_us,
            rss_mb=rss / 1e6,
            peak_rss_mb=session.usage().peak_bytes / 1e6,
            ready_seconds=session.ready_seconds,
            answers_checked=session.checker.checked,
            answers_lost=session.checker.lost,
            others_cpu=measured.others_cpu,
        )


def try_out(
    contestant: Contestant, model: Model, tuning: Tuning, cores: Cores, seconds: float
) -> tuple[float, float]:
    """Requests per second with 64 in flight, and p50 in ms with one, at these settings."""
    with started(contestant, model, tuning, cores) as session:
        session.checker.check_all()
        single = single_images(session, seconds).load
        return single.rate, one_at_a_time(session, seconds / 2).percentile(50) * 1000


def choose(found: Mapping[Tuning, tuple[float, float]]) -> Tuned:
    """The candidates with the most requests per second and with the lowest p50."""
    return Tuned(
        max(found, key=lambda each: found[each][0]), min(found, key=lambda each: found[each][1])
    )


def one_at_a_time(session: Session, seconds: float) -> Load:
    """One request in flight."""
    return _load(session, 1, ALONE, seconds)


def few_in_flight(session: Session, seconds: float) -> tuple[Load, dict[int, float]]:
    """One image at a time; and images per second by images per request, which a no-op has not."""
    alone = one_at_a_time(session, seconds)
    several = () if session.contestant.fixed else ROWS[1:]
    return alone, {rows: _load(session, rows, BATCHES, seconds).rate * rows for rows in several}


def single_images(session: Session, seconds: float) -> Single:
    """Single images, 64 in flight, answers checked meanwhile, after the warm-up.

    Raises WrongAnswer, or Refused where our own counters do not agree.
    """
    _load(session, 1, SINGLE, session.contestant.warm_up)
    counted, used, elsewhere = session.counters(), session.usage(), session.elsewhere()
    checked, began = session.checker.checked, time.monotonic()
    # Not to the end: h2load then cuts off what is in flight, which costs MLServer's other clients
    # of the same batch their answers.
    with session.checker.checking(seconds - _MARGIN):
        load = _load(session, 1, SINGLE, seconds)
    spent = session.usage().cpu_seconds - used.cpu_seconds
    elsewhere = session.elsewhere() - elsewhere
    others_cpu = max(0.0, elsewhere / (2 * (time.monotonic() - began)))
    checked = session.checker.checked - checked
    if session.metrics_port:
        agree(counted, session.counters(), load.requests + checked)
        if session.checker.lost:
            raise Refused(f"{session.checker.lost} requests of ours were never answered")
    return Single(load, spent * 1e6 / (load.requests + checked), others_cpu)


def agree(before: Mapping[str, int], after: Mapping[str, int], answered: int) -> None:
    """Nothing but OK was counted, and as many as were answered.

    h2load's end cuts off what is in flight, here and in the load before.
    """
    counts = {code: count - before.get(code, 0) for code, count in after.items()}
    ok = counts.pop("OK", 0)
    cut = counts.pop("CANCELLED", 0)
    if any(counts.values()) or ok < answered or cut > 2 * SINGLE[0] * SINGLE[1]:
        raise Refused(f"{answered} were answered; the server counts {ok} OK, {cut} cut, {counts}")


def onnxruntime_alone(
    repository: Path, model: Model, cores: Cores, rows: Sequence[int], seconds: float
) -> dict[int, float]:
    """Images per second by rows per run, on the server's core."""
    command = [sys.executable, "-m", "benchmarks.serving.onnxruntime_alone"]
    command += ["--model-repository", str(repository), "--model", model.name]
    command += ["--precision", model.precision, "--seconds", str(seconds)]
    command += ["--rows", *map(str, rows)]
    result = subprocess.run(
        pinned(cores.server, command), check=True, stdout=subprocess.PIPE, text=True
    )
    return {int(key): value for key, value in json.loads(result.stdout).items()}


def _load(session: Session, rows: int, in_flight: tuple[int, int], seconds: float) -> Load:
    clients, streams = in_flight
    return h2load.load(
        session.target(rows),
        session.request(rows),
        clients=clients,
        streams=streams,
        seconds=seconds,
    )
