"""The comparison itself: every contestant and model in turn, over several rounds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving.contestants import Contestant
from benchmarks.serving.h2load import LoadFailed
from benchmarks.serving.measure import (
    ROWS,
    Refused,
    Tuned,
    choose,
    measure,
    onnxruntime_alone,
    try_out,
)
from benchmarks.serving.models import Model, NoVariant, load_model
from benchmarks.serving.process import Cores, DidNotStart
from benchmarks.serving.targets import ALONE
from benchmarks.serving.wire import NoAnswer, WrongAnswer

# What one contestant may do wrong without spoiling the run for the others.
FAILURES = (DidNotStart, LoadFailed, NoAnswer, Refused, WrongAnswer)
_STARTED = time.monotonic()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run, and for how long."""

    repository: Path
    contestants: Sequence[Contestant]
    models: Sequence[str]
    cores: Cores
    rounds: int
    seconds: float
    tuning: bool


@dataclass(slots=True)
class Compared:
    """What was found so far; a result is of one contestant and model."""

    tuning: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # contestant → why

    def result(self, contestant: str, model: str) -> dict[str, Any]:
        """The entry of a contestant and model, made when it is not there yet."""
        key = {"contestant": contestant, "model": model}
        for each in self.results:
            if key.items() <= each.items():
                return each
        self.results.append({**key, "rounds": [], "failures": []})
        return self.results[-1]


def pairs(plan: Plan) -> list[tuple[Contestant, Model]]:
    """Each contestant that is there with each model that has its precision."""
    found = []
    for name in plan.models:
        for contestant in plan.contestants:
            try:
                model = load_model(plan.repository, name, contestant.precision)
            except NoVariant:
                continue
            if not contestant.missing:
                found.append((contestant, model))
    return found


def compare(plan: Plan, save: Callable[[Compared], None]) -> Compared:
    """Tune the peers, then measure in rounds, every other one backwards; `save` after each."""
    compared = Compared(skipped={c.name: c.missing for c in plan.contestants if c.missing})
    running = pairs(plan)
    tuned = {(c.name, m.name): _tuned(plan, c, m, compared) for c, m in running}
    for number in range(plan.rounds):
        for contestant, model in reversed(running) if number % 2 else running:
            _one(plan, contestant, model, tuned[contestant.name, model.name], compared)
        for model in _distinct(running):
            alone = onnxruntime_alone(plan.repository, model, plan.cores, ROWS, plan.seconds / 2)
            name = ALONE if model.precision == "fp32" else f"{ALONE} {model.precision}"
            entry = compared.result(name, model.name)
            entry["rounds"].append({"images_per_second": alone})
        save(compared)
    return compared


def progress(*words: object) -> None:
    """One line for whoever waits, with the seconds since the start."""
    print(f"{time.monotonic() - _STARTED:5.0f} s ", *words, file=sys.stderr, flush=True)


def _tuned(plan: Plan, contestant: Contestant, model: Model, compared: Compared) -> Tuned:
    first = contestant.candidates[0]
    if not plan.tuning or len(contestant.candidates) == 1:
        return Tuned(first, contestant.few or first)
    progress("tuning", contestant.name, "for", model.name)
    found = {}
    for each in contestant.candidates:
        entry = {"contestant": contestant.name, "model": model.name, "setting": str(each)}
        try:
            rate, p50 = found[each] = try_out(contestant, model, each, plan.cores, plan.seconds / 2)
        except FAILURES as error:
            progress(contestant.name, model.name, each, "failed:", error)
            compared.tuning.append({**entry, "failure": str(error)})
            continue
        compared.tuning.append({**entry, "requests_per_second": rate, "alone_p50_ms": p50})
    return choose(found) if found else Tuned(first, first)


def _one(
    plan: Plan, contestant: Contestant, model: Model, tuned: Tuned, compared: Compared
) -> None:
    entry = compared.result(contestant.name, model.name)
    entry["settings"] = {"throughput": str(tuned.throughput), "latency": str(tuned.latency)}
    try:
        found = measure(contestant, model, tuned, plan.cores, plan.seconds)
    except FAILURES as error:
        progress(contestant.name, model.name, "failed:", error)
        entry["failures"].append(str(error))
        return
    entry["rounds"].append(asdict(found))
    progress(
        f"{contestant.name} {model.name}: {found.requests_per_second:.0f} requests/s,"
        f" p50 alone {found.alone_p50_ms:.2f} ms, {found.cpu_us:.0f} µs CPU,"
        f" {found.answers_checked} answers checked, others' CPU {found.others_cpu:.0%}"
    )


def _distinct(running: Sequence[tuple[Contestant, Model]]) -> list[Model]:
    """One of each model and precision."""
    return list({(model.name, model.precision): model for _, model in running}.values())
