"""What the comparison is asked to show, and whether it does. Nothing is measured here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What a run wrote, as read from its JSON: a table can be made of an earlier run's sections too.
Record = Mapping[str, Any]
TRITON, MLSERVER, NOOP, ALONE = "triton", "mlserver", "no-op", "onnxruntime"


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of one contestant's figure for one model; `rows` are images per request."""

    contestant: str
    model: str
    field: str
    rows: int = 0

    def of(self, record: Record) -> float | None:
        """None where it was not measured."""
        for result in record["results"]:
            if (result["contestant"], result["model"]) == (self.contestant, self.model):
                values = [each[self.field] for each in result["rounds"] if self.field in each]
                if self.rows:
                    values = [each[str(self.rows)] for each in values if str(self.rows) in each]
                return statistics.median(values) if values else None
        return None


@dataclass(frozen=True, slots=True)
class Target:
    """Our figure, over theirs where there is one, is at least the bound, or at most."""

    text: str
    ours: Figure
    theirs: Figure | None
    bound: float
    at_most: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a target."""

    text: str
    value: float
    bound: float
    at_most: bool

    @property
    def met(self) -> bool:
        """Whether the value is on the right side of the bound."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound


_RATE, _IMAGES, _ALONE_P50 = "requests_per_second", "images_per_second", "alone_p50_ms"

TARGETS = (
    Target(
        "linear, requests/s over the no-op server's",
        Figure("digits", "linear", _RATE),
        Figure(NOOP, "linear", _RATE),
        0.8,
    ),
    Target(
        "linear, requests/s over MLServer's",
        Figure("digits", "linear", _RATE),
        Figure(MLSERVER, "linear", _RATE),
        3.5,
    ),
    Target(
        "resnet18, requests/s over Triton's",
        Figure("digits", "resnet18", _RATE),
        Figure(TRITON, "resnet18", _RATE),
        0.85,
    ),
    Target(
        "resnet18 int8, requests/s over Triton's in fp32",
        Figure("digits int8", "resnet18", _RATE),
        Figure(TRITON, "resnet18", _RATE),
        1.2,
    ),
    Target(
        "resnet18, 32 images per request, images/s over ONNX Runtime's alone",
        Figure("digits", "resnet18", _IMAGES, 32),
        Figure(ALONE, "resnet18", _IMAGES, 32),
        0.95,
    ),
    Target(
        "linear, p50 one at a time over Triton's",
        Figure("digits", "linear", _ALONE_P50),
        Figure(TRITON, "linear", _ALONE_P50),
        1.0,
        at_most=True,
    ),
    Target(
        "resnet18, p50 one at a time over Triton's",
        Figure("digits", "resnet18", _ALONE_P50),
        Figure(TRITON, "resnet18", _ALONE_P50),
        1.0,
        at_most=True,
    ),
    Target(
        "ready with all models, s", Figure("digits", "linear", "ready_seconds"), None, 2.0, True
    ),
    *(
        Target(
            f"RSS with all models, after {model}'s single images, MB",
            Figure("digits", model, "rss_mb"),
            None,
            250.0,
            True,
        )
        for model in ("linear", "resnet18")
    ),
)
_GOODPUT = 0.9  # of the ceiling
_METRICS = 0.05  # of the server's CPU time


def verdicts(record: Record) -> list[Verdict]:
    """Of the targets whose figures were all measured."""
    found = []
    for target in TARGETS:
        ours, theirs = target.ours.of(record), target.theirs.of(record) if target.theirs else 1.0
        if ours is not None and theirs is not None:
            found.append(Verdict(target.text, ours / theirs, target.bound, target.at_most))
    return found


def overload_verdict(record: Record) -> Verdict | None:
    """Of the section `overload`; none where refusing alone takes more than the core."""
    if not record["ceiling"]:
        return None
    text = "resnet18 at 3x capacity, answers/s over the ceiling"
    return Verdict(text, record["goodput"] / record["ceiling"], _GOODPUT, at_most=False)


def metrics_verdict(record: Record) -> Verdict:
    """Of the section `metrics`."""
    share = cost_share(record["servers"], "digits without metrics")
    return Verdict("linear, metrics' share of the server's CPU", share, _METRICS, at_most=True)


def cost_share(servers: Mapping[str, Any], without: str) -> float:
    """Of the whole server's CPU time per request, what the other does without: the median over
    pairs of loads, one after the other, which what else the machine does meets nearly alike."""
    whole, less = (servers[name]["cpu_us"] for name in ("digits", without))
    return float(statistics.median(1 - b / a for a, b in zip(whole, less, strict=True)))
