"""How far each runtime's answers lie from eager PyTorch's, how right they are, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.parity.runtimes import Contestant, Version
from training.dataset import Split
from training.export import Answers, Runner, accuracy, answer

BATCH = 64  # images in a request for throughput
TOLERANCE = 1e-4  # of a probability, for fp32
LOSS = 0.001  # of accuracy, for int8 and fp16; at least one image
_TURN = 10  # requests that one runtime is timed with before it is the next one's turn
_BATCHES = 10  # timed, of BATCH images


Images = NDArray[np.uint8]  # (N, 28, 28)


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
    version: Version,
    contestants: Sequence[Contestant],
    split: Split,
    same_data: bool,
    requests: int,
) -> list[Row]:
    """The first contestant is what the others are compared with.

    With `same_data`, the images are those that the manifest's accuracies were measured on.
    """
    measured = _measured([each.ask for each in contestants if each.ask], split, requests)
    reference, left = measured[0].accuracy, iter(measured)
    rows = []
    for each in contestants:
        of = version.name, each.runtime, each.precision
        if each.ask is None:
            rows.append(Row(*of, None, each.why_not))
            continue
        own = next(left)
        promised = _promised(version, each) if same_data else None
        faults = shortfalls(each.precision, own, reference, promised, len(split.labels))
        rows.append(Row(*of, own, faults=faults))
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


def _promised(version: Version, contestant: Contestant) -> float | None:
    """What the manifest says of the file's precision; of all fp32 files alike."""
    for variant in version.onnx():
        if variant.precision == contestant.precision:
            return variant.accuracy
    return None


def _measured(runners: Sequence[Runner], split: Split, requests: int) -> list[Measured]:
    """Each one's answers beside the first one's, and its times."""
    answers = [answer(run, split.images, BATCH) for run in runners]
    count = len(split.images)
    ones = _in_turns(runners, [split.images[[number % count]] for number in range(requests)])
    batch = split.images[:BATCH]
    batches = _in_turns(runners, [batch] * _BATCHES)
    return [
        Measured(*_compared(own, answers[0], split), one, len(batch) / many)
        for own, one, many in zip(answers, ones, batches, strict=True)
    ]


def _compared(answers: Answers, eager: Answers, split: Split) -> tuple[int, float, float]:
    differing = int((answers[1] != eager[1]).sum())
    return differing, float(np.abs(answers[0] - eager[0]).max()), accuracy(answers, split)


def _in_turns(runners: Sequence[Runner], requests: Sequence[Images]) -> list[float]:
    """Each one's median seconds for a request; all meet what else the machine does, as they take
    turns, and none what another left in the caches, as the first request of a turn is not timed."""
    seconds: list[list[float]] = [[] for _ in runners]
    for at in range(0, len(requests), _TURN):
        for own, run in zip(seconds, runners, strict=True):
            run(requests[at])
            own += [_seconds(run, each) for each in requests[at : at + _TURN]]
    return [statistics.median(own) for own in seconds]


def _seconds(run: Runner, images: Images) -> float:
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start
