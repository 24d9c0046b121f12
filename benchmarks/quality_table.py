"""What `benchmarks.quality` found, what was asked for, and both as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.machine import sentence
from benchmarks.perturbed import Perturbation

FEATURES = ("ink", "confidence", "label")
# Digits that confidence is mistaken about: it stays high.
MISLEADING = (
    *(Perturbation("rotation", degrees) for degrees in (45.0, 90.0, 180.0)),
    Perturbation("inversion"),
)


@dataclass(frozen=True, slots=True)
class Result:
    """One model on one kind of images."""

    model: str
    precision: str
    perturbation: Perturbation
    images: int
    accuracy: float
    estimated_accuracy: float
    reliable: bool  # the server's word
    expected_calibration_error: float  # of the calibrated confidence on these very images
    stability_index: dict[str, float]  # by feature

    @property
    def off(self) -> float:
        """By how many percentage points the estimate is above the truth."""
        return 100 * (self.estimated_accuracy - self.accuracy)


@dataclass(frozen=True, slots=True)
class Check:
    """Something asked for, and what was found instead; nothing where it is met."""

    asked: str
    missed: list[str]


def checks(results: Sequence[Result], threshold: float) -> list[Check]:
    """What is asked of the estimate and of drift, with every result that is otherwise."""
    untouched = [each for each in results if each.perturbation.kind == "clean"]
    clean = {(each.model, each.precision): each for each in untouched}
    spoilt = [each for each in results if each.perturbation.kind in ("blur", "noise")]
    misleading = [each for each in results if each.perturbation in MISLEADING]

    def drop(each: Result) -> tuple[float, float]:
        """By how many points truth and estimate lie below those of clean images."""
        start = clean[each.model, each.precision]
        truth, estimate = start.accuracy, start.estimated_accuracy
        return 100 * (truth - each.accuracy), 100 * (estimate - each.estimated_accuracy)

    return [
        Check(
            "clean: the estimate is within 1 point of the truth",
            [said(each) for each in untouched if abs(each.off) > 1],
        ),
        Check(
            f"clean: every stability index is below 0.1, and so far below {threshold:g}",
            [said(e) for e in untouched if max(e.stability_index.values()) >= 0.1],
        ),
        Check(
            "blur, noise: where the truth falls by a point or more, the estimate falls",
            [said(each) for each in spoilt if drop(each)[0] >= 1 and drop(each)[1] <= 0],
        ),
        Check(
            "rotation by 45° or more, inversion: drift is told, the estimate marked unreliable",
            [
                said(e)
                for e in misleading
                if e.perturbation.amount in (0, 45, 90, 180) and e.reliable
            ],
        ),
        Check(
            "any images: an estimate that is more than 2 points off is marked unreliable",
            [said(each) for each in results if abs(each.off) > 2 and each.reliable],
        ),
    ]


def said(each: Result) -> str:
    """One line."""
    index = max(each.stability_index.values())
    what = f"{each.model}, {each.precision}, {each.perturbation}"
    return f"{what}: {each.off:+.2f} points, index {index:.3f}"


def table(results: Sequence[Result], threshold: float, machine: dict[str, object]) -> str:
    """Markdown of all that was measured."""
    lines = [
        "# True and estimated accuracy",
        "",
        f"`python -m benchmarks.quality` on {sentence(machine)}",
        "",
        "MNIST's validation images, sent over gRPC to a server that is told no labels. Estimated:",
        "the mean calibrated confidence, by GetQuality. Off: by how many percentage points that is",
        "above the truth. ECE: the expected calibration error on these images. The population",
        "stability index is of ink, confidence and predicted label; where one is",
        f"{threshold:g} or more, the images have drifted, and the estimate is marked unreliable.",
        "",
        *[_verdict(check) for check in checks(results, threshold)],
    ]
    for model, precision in dict.fromkeys((each.model, each.precision) for each in results):
        own = [each for each in results if (each.model, each.precision) == (model, precision)]
        head = "| images | true | estimated | off | ECE | ink | confidence | label | estimate |"
        lines += ["", f"## {model}, {precision} ({own[0].images:,} images)", "", head]
        lines += ["|---|---|---|---|---|---|---|---|---|", *map(_row, own)]
    return "\n".join([*lines, ""])


def _verdict(check: Check) -> str:
    missed = f"NO: {'; '.join(check.missed)}" if check.missed else "met"
    return f"- {check.asked}: {missed}"


def _row(each: Result) -> str:
    shares = each.accuracy, each.estimated_accuracy
    cells = [str(each.perturbation), *(f"{share:.4f}" for share in shares), f"{each.off:+.2f}"]
    cells += [f"{each.expected_calibration_error:.4f}"]
    cells += [f"{each.stability_index[feature]:.3f}" for feature in FEATURES]
    return f"| {' | '.join(cells)} | {'reliable' if each.reliable else 'drift'} |"
