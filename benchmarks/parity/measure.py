"""How far each runtime's answers lie from eager PyTorch's, how right they are, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.parity.runtimes import Contestant, Version
from training.dataset import Split
from training.export import Answers, Runner, accuracy, answer

BATCH = 64  # images in a request for throughput
TOLERANCE = 1e-4  # of a probability, for fp32
LOSS = 0.001  # of accuracy, for int8 and fp16; at least one image
_BATCHES = 10  # timed, of BATCH images
_WARM_UP = 20  # single images, before any is timed


@dataclass(frozen=True, slots=True)
class Measured:
    """What one runtime did at one precision."""

    label_disagreements: int  # with eager PyTorch
    max_probability_difference: float
    accuracy: float
    p50_seconds: float  # one image
    images_per_second: float  # BATCH at a time


@dataclass(frozen=True, slots=True)
class Row:
    """One runtime at one precision for one model; `measured`, or `why_not`."""

    model: str
    runtime: str
    precision: str
    measured: Measured | None
    why_not: str = ""
    faults: tuple[str, ...] = ()  # in what it falls short of what it should


def measure(
    version: Version, contestants: Sequence[Contestant], split: Split, same_data: bool, rounds: int
) -> list[Row]:
    """The first contestant is what the others are compared with.

    With `same_data`, the images are those that the manifest's accuracies were measured on.
    """
    runners = [each.ask for each in contestants if each.ask]
    answers = [answer(run, split.images, BATCH) for run in runners]
    seconds = _in_turns(runners, split, rounds)
    rows = []
    for contestant in contestants:
        if contestant.ask is None:
            rows.append(_row(version, contestant, None))
            continue
        index = runners.index(contestant.ask)
        one, batch = seconds[index]
        measured = Measured(*_compared(answers[index], answers[0], split), one, BATCH / batch)
        promised = _promised(version, contestant) if same_data else None
        reference = accuracy(answers[0], split)
        faults = shortfalls(contestant.precision, measured, reference, promised, len(split.labels))
        rows.append(_row(version, contestant, measured, faults))
    return rows


def shortfalls(
    precision: str, measured: Measured, reference: float, promised: float | None, images: int
) -> tuple[str, ...]:
    """In what a runtime falls short: of eager PyTorch, whose accuracy is `reference`, and of what
    the manifest promised for its file."""
    faults = []
    if precision == "fp32":
        if measured.label_disagreements:
            faults.append(f"{measured.label_disagreements} labels differ")
        if not measured.max_probability_difference <= TOLERANCE:
            faults.append(f"probabilities differ by {measured.max_probability_difference:.1e}")
    allowed = max(LOSS, 1 / images) + 1e-9  # of rounding
    if not measured.accuracy >= reference - allowed:
        faults.append(f"accuracy is {measured.accuracy:.4f}, eager PyTorch's {reference:.4f}")
    if promised is not None and not measured.accuracy >= promised - allowed:
        faults.append(f"accuracy is {measured.accuracy:.4f}, the manifest says {promised:.4f}")
    return tuple(faults)


def _row(
    version: Version,
    contestant: Contestant,
    measured: Measured | None,
    faults: tuple[str, ...] = (),
) -> Row:
    of = version.name, contestant.runtime, contestant.precision
    return Row(*of, measured, contestant.why_not, faults)


def _promised(version: Version, contestant: Contestant) -> float | None:
    """What the manifest says of the file's precision; of all fp32 files alike."""
    for variant in version.onnx():
        if variant.precision == contestant.precision:
            return variant.accuracy
    return None


def _compared(answers: Answers, eager: Answers, split: Split) -> tuple[int, float, float]:
    differing = int((answers[1] != eager[1]).sum())
    return differing, float(np.abs(answers[0] - eager[0]).max()), accuracy(answers, split)


def _in_turns(runners: Sequence[Runner], split: Split, rounds: int) -> list[tuple[float, float]]:
    """Each one's median seconds for one image and for a batch; asked in turns, so that what else
    the machine does meets all of them."""
    for run in runners:
        for index in range(_WARM_UP):
            run(split.images[index : index + 1])
    batch = split.images[:BATCH]
    ones: list[list[float]] = [[] for _ in runners]
    batches: list[list[float]] = [[] for _ in runners]
    for number in range(rounds):
        at = number % len(split.images)
        for seconds, run in zip(ones, runners, strict=True):
            seconds.append(_seconds(run, split, slice(at, at + 1)))
    for _ in range(_BATCHES):
        for seconds, run in zip(batches, runners, strict=True):
            seconds.append(_seconds(run, split, slice(0, len(batch))))
    medians = zip(ones, batches, strict=True)
    return [(statistics.median(one), statistics.median(many)) for one, many in medians]


def _seconds(run: Runner, split: Split, rows: slice) -> float:
    images = split.images[rows]
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start
