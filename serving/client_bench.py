"""`bench`: how long answers take, with so many callers, or at such a rate.

A closed loop's callers ask again when they are answered, and so are as slow as the server. An open
loop's requests come when they come, at random times (a Poisson process): each is timed from when
it was due, whether or not it could be sent then, so that a server that stops for a second is seen
by all requests of that second (Gil Tene calls the fault of measuring otherwise coordinated
omission).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import grpc
import numpy as np
from numpy.typing import NDArray

from serving.client_channel import V2_SERVICE, Target
from serving.client_messages import infer_request
from serving.client_steps import MODEL_INFER, failed

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
# Of the histogram: bars, and the width of the longest.
_BARS, _WIDTH = 16, 50
# That are gone through again and again: random images, and requests at most.
_RANDOM_IMAGES, _REQUESTS = 256, 256

# One request, timed from when it was due.
Request: TypeAlias = Callable[[float], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done; with a rate, in requests per second, an open loop."""

    model: str
    version: str
    rows: int
    concurrency: int
    rate: float | None
    seconds: float
    connections: int
    timeout: float
    images: NDArray[np.uint8] | None = None  # (N, 28, 28); random ones without


@dataclass(slots=True)
class Measured:
    """What became of the requests; times in seconds."""

    plan: Plan
    elapsed: float = 0.0
    latencies: list[float] = field(default_factory=list)  # of what was answered
    late: list[float] = field(default_factory=list)  # open loop: sent so long after it was due
    errors: Counter[str] = field(default_factory=Counter)  # by the status's name


def measure(target: Target, plan: Plan) -> Measured:
    """RequestFailed where not even the first request is answered."""
    return asyncio.run(_measure(target, plan))


async def _measure(target: Target, plan: Plan) -> Measured:
    measured = Measured(plan)
    requests = itertools.cycle(_requests(plan))
    channels = [target.async_channel() for _ in range(plan.connections)]
    metadata = target.metadata()
    try:
        path = MODEL_INFER.path(V2_SERVICE)
        methods = [channel.unary_unary(path, None, None) for channel in channels]
        for method in methods:  # connects: the first request's time is to be a request's only
            await _first(method(next(requests), timeout=plan.timeout, metadata=metadata))
        turns = itertools.cycle(methods)

        async def ask(due: float) -> None:
            call = next(turns)(next(requests), timeout=plan.timeout, metadata=metadata)
            try:
                await call
            except grpc.aio.AioRpcError as error:
                measured.errors[error.code().name] += 1
            else:
                measured.latencies.append(time.perf_counter() - due)

        start = time.perf_counter()
        await (_open(ask, measured, start) if plan.rate else _closed(ask, plan, start))
        measured.elapsed = time.perf_counter() - start
    finally:
        await asyncio.gather(*(channel.close(None) for channel in channels))
    return measured


async def _first(call: Awaitable[bytes]) -> None:
    try:
        await call
    except grpc.RpcError as error:
        raise failed(error) from None


async def _closed(ask: Request, plan: Plan, start: float) -> None:
    async def caller() -> None:
        while (now := time.perf_counter()) < start + plan.seconds:
            await ask(now)

    await asyncio.gather(*(caller() for _ in range(plan.concurrency)))


async def _open(ask: Request, measured: Measured, start: float) -> None:
    async with asyncio.TaskGroup() as tasks:
        for due in _times(cast(float, measured.plan.rate), measured.plan.seconds):
            await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
            measured.late.append(max(0.0, time.perf_counter() - start - due))
            tasks.create_task(ask(start + due))


def _times(rate: float, seconds: float) -> Iterator[float]:
    """When requests are due: the same in each run."""
    source, due = random.Random(0), 0.0  # nosec B311 # no secret
    while (due := due + source.expovariate(rate)) < seconds:
        yield due


def _requests(plan: Plan) -> list[bytes]:
    """Serialised before the clock runs, each with the next `rows` images."""
    images = plan.images
    if images is None:
        shape = (max(_RANDOM_IMAGES, plan.rows), 28, 28)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    count = min(_REQUESTS, math.lcm(len(images), plan.rows) // plan.rows)
    parts = np.resize(images, (count, plan.rows, 28, 28))
    return [
        infer_request(part, plan.model, plan.version, raw=True).SerializeToString()
        for part in parts
    ]


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that no less than this share of the values does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def histogram(ordered: Sequence[float]) -> list[tuple[float, int]]:
    """Values up to each of some bounds, which grow by a factor from the least to the largest."""
    low, high = max(ordered[0], 1e-6), max(ordered[-1], 1e-6)
    growth = (high / low) ** (1 / _BARS)
    bounds = [low * growth ** (i + 1) for i in range(_BARS - 1)] + [high] if growth > 1 else [high]
    places = np.searchsorted(np.array(bounds), np.array(ordered))
    counts = np.bincount(np.minimum(places, len(bounds) - 1), minlength=len(bounds))
    return list(zip(bounds, counts.tolist(), strict=True))


def as_json(measured: Measured) -> dict[str, object]:
    """For programs; times in seconds."""
    plan, answered = measured.plan, len(measured.latencies)
    return {
        "model": plan.model,
        "loop": "open" if plan.rate else "closed",
        "rate": plan.rate,
        "concurrency": None if plan.rate else plan.concurrency,
        "rows_per_request": plan.rows,
        "seconds": round(measured.elapsed, 3),
        "answered": answered,
        "requests_per_second": round(answered / measured.elapsed, 1),
        "errors": dict(measured.errors),
        "latency": _summary(measured.latencies),
        "sent_late": _summary(measured.late),
        "histogram": [
            {"up_to": bound, "count": count}
            for bound, count in histogram(sorted(measured.latencies))
        ]
        if answered
        else [],
    }


def _summary(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    told = {name: quantile(ordered, share) for name, share in QUANTILES.items()}
    return {"mean": sum(ordered) / len(ordered), **told, "max": ordered[-1]}


def described(measured: Measured, bar: str = "█") -> Iterator[str]:
    """The same for people; times in milliseconds."""
    plan, answered = measured.plan, len(measured.latencies)
    loop = f"{plan.rate:g} requests/s" if plan.rate else f"{plan.concurrency} callers"
    each = f"{plan.rows} image" + "s" * (plan.rows > 1)
    rate = answered / measured.elapsed
    yield f"{plan.model}: {loop}, {each} in each, {measured.elapsed:.1f} s"
    yield f"  answered  {answered}, {rate:.1f} requests/s, {rate * plan.rows:.1f} rows/s"
    for status, count in measured.errors.most_common():
        yield f"  errors    {count} {status}"
    yield from _times_described("latency", measured.latencies)
    yield from _times_described("sent late", measured.late)
    if answered:
        yield ""
        yield from _bars(sorted(measured.latencies), bar)


def _times_described(what: str, values: Sequence[float]) -> Iterator[str]:
    summary = _summary(values)
    if summary:
        listed = "  ".join(f"{name} {value * 1000:.2f}" for name, value in summary.items())
        yield f"  {what:<9} ms: {listed}"


def _bars(ordered: Sequence[float], bar: str) -> Iterator[str]:
    counted = histogram(ordered)
    most = max(count for _, count in counted)
    for bound, count in counted:
        length = math.ceil(count / most * _WIDTH)
        yield f"  {bound * 1000:>9.2f} ms {count:>8} {bar * length}".rstrip()
