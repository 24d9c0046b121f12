"""What the comparison is asked to show, and whether it does. Nothing is measured here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What a run wrote, as read from its JSON: a table can be made of an earlier run's sections too.
Record = Mapping[str, Any]
TRITON, MLSERVER, ALONE = "triton", "mlserver", "onnxruntime"
OURS, OURS_INT8, GRPCIO = "digits", "digits int8", "digits grpcio"
WITHOUT_ALL = "digits without metrics and quality"
TAIL_SHARE = 0.7  # of the capacity, where the tail is judged
OVERLOAD = 3.0  # times the capacity, where what is still answered is judged
BEST = -1


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of one contestant's figure for one model; `rows` are images per request, or BEST
    of them all."""

    contestant: str
    model: str
    field: str
    rows: int = 0

    def of(self, record: Record) -> float | None:
        """None where it was not measured."""
        for result in record["results"]:
            if (result["contestant"], result["model"]) == (self.contestant, self.model):
                values = [each[self.field] for each in result["rounds"] if self.field in each]
                if self.rows == BEST:
                    values = [max(each.values()) for each in values]
                elif self.rows:
                    values = [each[str(self.rows)] for each in values if str(self.rows) in each]
                return statistics.median(values) if values else None
        return None

    def failed(self, record: Record) -> bool:
        """No round of the contestant came to its end."""
        return any(
            (result["contestant"], result["model"]) == (self.contestant, self.model)
            and not result["rounds"]
            for result in record["results"]
        )


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


def _rate(contestant: str, model: str) -> Figure:
    return Figure(contestant, model, _RATE)


TARGETS = (
    Target("linear, requests/s", _rate(OURS, "linear"), None, 150_000.0),
    Target("linear, requests/s over Triton's", _rate(OURS, "linear"), _rate(TRITON, "linear"), 8.0),
    Target(
        "linear, requests/s over MLServer's", _rate(OURS, "linear"), _rate(MLSERVER, "linear"), 80.0
    ),
    Target(
        "resnet18, requests/s over ONNX Runtime's best images/s alone",
        _rate(OURS, "resnet18"),
        Figure(ALONE, "resnet18", _IMAGES, BEST),
        0.93,
    ),
    Target(
        "resnet18, requests/s over Triton's",
        _rate(OURS, "resnet18"),
        _rate(TRITON, "resnet18"),
        1.2,
    ),
    Target(
        "resnet18 int8, requests/s over Triton's in fp32",
        _rate(OURS_INT8, "resnet18"),
        _rate(TRITON, "resnet18"),
        1.9,
    ),
    Target(
        "resnet18, 32 images per request, images/s over ONNX Runtime's alone",
        Figure(OURS, "resnet18", _IMAGES, 32),
        Figure(ALONE, "resnet18", _IMAGES, 32),
        0.95,
    ),
    Target("linear, p50 one at a time, ms", Figure(OURS, "linear", _ALONE_P50), None, 0.25, True),
    Target(
        "linear, p50 one at a time over Triton's",
        Figure(OURS, "linear", _ALONE_P50),
        Figure(TRITON, "linear", _ALONE_P50),
        0.6,
        at_most=True,
    ),
    Target(
        "resnet18, p50 one at a time over Triton's",
        Figure(OURS, "resnet18", _ALONE_P50),
        Figure(TRITON, "resnet18", _ALONE_P50),
        1.0,
        at_most=True,
    ),
    Target("ready with all models, s", Figure(OURS, "linear", "ready_seconds"), None, 2.0, True),
    *(
        Target(
            f"RSS with all models, after {model}'s single images, MB",
            Figure(OURS, model, "rss_mb"),
            None,
            250.0,
            True,
        )
        for model in ("linear", "resnet18")
    ),
)
_GOODPUT = 0.9  # of that at capacity
_KNOWING = 0.1
_TAIL = 3.0  # p99 over p50
_PASSED_ON = 1.15  # CPU time over grpcio's
_CONNECTIONS_MB = 150.0


def verdicts(record: Record) -> list[Verdict]:
    """Of the targets whose figures were to be measured; NaN, and so missed, where that failed."""
    found = []
    for target in TARGETS:
        ours, theirs = target.ours.of(record), target.theirs.of(record) if target.theirs else 1.0
        if ours is not None and theirs is not None:
            found.append(Verdict(target.text, ours / theirs, target.bound, target.at_most))
        elif target.ours.failed(record) or (target.theirs and target.theirs.failed(record)):
            found.append(Verdict(target.text, math.nan, target.bound, target.at_most))
    return found


def overload_verdicts(record: Record) -> list[Verdict]:
    """Of the section `overload`."""
    return [_overload_verdict(model, found) for model, found in record["models"].items()]


def _overload_verdict(model: str, found: Record) -> Verdict:
    """NaN, and so missed, where the generator did not offer what was to be."""
    capacity = found["capacity"]
    times = min(found[name]["offered_per_second"] for name in ("first", "second")) / capacity
    value = found["goodput"] / capacity if times > 0.95 * OVERLOAD else math.nan
    text = f"{model} at {OVERLOAD:g}x capacity, answers/s over those at capacity"
    return Verdict(text, value, _GOODPUT, at_most=False)


def load_verdicts(record: Record) -> list[Verdict]:
    """Of the section `load`: how long the tail is at some of our capacity."""
    found = []
    for server in record["servers"]:
        tails = [_tail(load) for load in server["loads"] if load["share"] == TAIL_SHARE]
        if server["contestant"].startswith(OURS):
            text = f"{server['contestant']}, {server['model']} at {TAIL_SHARE:.0%} of capacity"
            tail = math.nan if "failure" in server else statistics.median(tails)
            found.append(Verdict(f"{text}, p99 over p50", tail, _TAIL, at_most=True))
    return found


def _tail(load: Record) -> float:
    """p99 over p50; none that is finite where one request in a hundred was not answered."""
    statuses = load["statuses"]
    if statuses.get("OK", 0) < 0.99 * sum(statuses.values()):
        return math.inf
    return float(load["latency_ms"]["p99"] / load["latency_ms"]["p50"])


def metrics_verdicts(record: Record) -> list[Verdict]:
    """Of the section `metrics`."""
    # Requests/s alone would flatter where the server without them is faster than who asks.
    text = "share of requests/s, or of CPU time if larger, that metrics, drift and ids take"
    return [
        Verdict(
            f"{model}, {text}",
            max(rate_share(servers, WITHOUT_ALL), cost_share(servers, WITHOUT_ALL)),
            _KNOWING,
            at_most=True,
        )
        for model, servers in record["models"].items()
        if WITHOUT_ALL in servers
    ]


def passed_on_verdicts(record: Record) -> list[Verdict]:
    """Of the section `passed_on`: each call's CPU time over that of grpcio asked directly."""
    return [
        Verdict(f"{call}, passed on, CPU over grpcio's", over(each), _PASSED_ON, at_most=True)
        for call, each in record["calls"].items()
    ]


def connections_verdict(record: Record) -> Verdict | None:
    """Of the section `connections`."""
    if OURS not in record["servers"]:
        return None
    text = f"linear, {record['idle']:,} idle and {record['busy']:,} busy connections, RSS in MB"
    return Verdict(text, record["servers"][OURS]["rss_mb"], _CONNECTIONS_MB, at_most=True)


def over(servers: Mapping[str, Any]) -> float:
    """CPU time per call through the lane over grpcio's: the median over pairs of loads."""
    ours, direct = (servers[name]["cpu_us"] for name in (OURS, GRPCIO))
    return float(statistics.median(a / b for a, b in zip(ours, direct, strict=True)))


def cost_share(servers: Mapping[str, Any], without: str) -> float:
    """Of the whole server's CPU time per request, what the other does without: the median over
    pairs of loads, one after the other, which what else the machine does meets nearly alike."""
    whole, less = (servers[name]["cpu_us"] for name in (OURS, without))
    return float(statistics.median(1 - b / a for a, b in zip(whole, less, strict=True)))


def rate_share(servers: Mapping[str, Any], without: str) -> float:
    """Of the other's requests per second, what the whole server does not reach, in such pairs."""
    whole, less = (servers[name]["requests_per_second"] for name in (OURS, without))
    return float(statistics.median(1 - a / b for a, b in zip(whole, less, strict=True)))
