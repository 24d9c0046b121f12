"""Three times what our server can do: how much of the rest it still answers, and how soon.

The ceiling is what would be answered if each refusal cost what a refusal alone costs. That cost is
measured on a server which can only refuse: it has room for no more, and waits for a batch to fill.
It is the server's CPU time, as a generator on one core may not ask as fast as that refuses.
"""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from benchmarks.serving import h2load
from benchmarks.serving.compare import progress
from benchmarks.serving.contestants import Ours, digits
from benchmarks.serving.h2load import Target
from benchmarks.serving.measure import SINGLE, single_images
from benchmarks.serving.models import load_model
from benchmarks.serving.offered import offer_to
from benchmarks.serving.open_loop import Offered
from benchmarks.serving.peers import BUILT_IN
from benchmarks.serving.process import Cores
from benchmarks.serving.session import Session, started
from benchmarks.serving.targets import OVERLOAD

REFUSED_MODEL = "resnet18"  # any: refusing does not look at images
_FULL = (4, 48)  # h2load: nearly as many in flight as there is room for by default
_ROOM = 8  # requests
_MOST_WAITING = 100
_DELAY = 10.0  # seconds; the most that the server takes
# Longer than any refusal, shorter than the delay.
_REFUSING_SECONDS = 4.0
_REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED


@dataclass(frozen=True, slots=True)
class Overload:
    """Of one model, rates per second; the load was offered twice in a row, to see what grows."""

    capacity: float
    ceiling: float
    first: Offered
    second: Offered
    rss_mb: tuple[float, float, float]  # before, after the first, after the second

    @property
    def goodput(self) -> float:
        """Answers per second, of both times."""
        return (self.first.answered_per_second + self.second.answered_per_second) / 2


class NeverRefused(Exception):
    """The server took more than it has room for."""


def ceiling(capacity: float, refusal_seconds: float, offered: float) -> float:
    """Answers per second a, where a / capacity + (offered - a) * refusal is the whole of a second.

    0 where refusing everything takes longer than that.
    """
    if offered <= capacity:
        return offered
    left = 1 - offered * refusal_seconds
    return left / (1 / capacity - refusal_seconds) if left > 0 else 0.0


def overload(
    ours: Ours,
    models: Sequence[str],
    cores: Cores,
    seconds: float,
    save: Callable[[dict[str, Any]], None],
) -> None:
    """Measure the cost of a refusal, then each model's capacity, and what is more than that."""
    refusal = refusal_seconds(ours, cores)
    progress(f"a refusal takes {refusal * 1e6:.1f} µs CPU")
    found: dict[str, Any] = {}
    for name in models:
        one = _overload(ours, name, cores, seconds, refusal)
        found[name] = {"goodput": one.goodput, **dataclasses.asdict(one)}
        save({"refusal_us": refusal * 1e6, "models": found})


def _overload(ours: Ours, name: str, cores: Cores, seconds: float, refusal: float) -> Overload:
    model = load_model(ours.repository, name, "fp32")
    with started(digits(ours, "fp32"), model, BUILT_IN, cores) as session:
        session.checker.check_all()
        capacity = _capacity(session, seconds)
        progress(f"the capacity of {name} is {capacity:.0f} requests/s")
        rss = [_rss_mb(session)]
        loads = []
        for _ in range(2):
            loads.append(offer_to(session, OVERLOAD * capacity, seconds))
            rss.append(_rss_mb(session))
            progress(loads[-1])
        session.checker.check_all()
    offered = sum(each.offered_per_second for each in loads) / 2
    best = ceiling(capacity, refusal, offered)
    return Overload(capacity, best, loads[0], loads[1], (rss[0], rss[1], rss[2]))


def refusal_seconds(ours: Ours, cores: Cores) -> float:
    """The server's CPU time for refusing one request, when it does nothing else."""
    options = (*ours.options, "--max-in-flight", str(_ROOM), "--max-queue-delay", f"{_DELAY:g}")
    contestant = digits(dataclasses.replace(ours, options=options), "fp32")
    model = load_model(ours.repository, REFUSED_MODEL, "fp32")
    with started(contestant, model, BUILT_IN, cores) as session, ExitStack() as waiting:
        _fill(session, waiting)
        target = Target(session.port, contestant.protocol.infer, session.cores.load, 0)
        clients, streams = SINGLE
        used = session.usage().cpu_seconds
        load = h2load.refused(
            target, session.request(1), clients=clients, streams=streams, seconds=_REFUSING_SECONDS
        )
        return (session.usage().cpu_seconds - used) / load.requests


def _fill(session: Session, waiting: ExitStack) -> None:
    """Send requests that wait for the delay, until one is refused."""
    channel = waiting.enter_context(grpc.insecure_channel(f"127.0.0.1:{session.port}"))
    infer = channel.unary_unary(
        session.contestant.protocol.infer, request_serializer=None, response_deserializer=None
    )
    ended: queue.SimpleQueue[grpc.StatusCode] = queue.SimpleQueue()
    for _ in range(_MOST_WAITING):
        call = infer.future(session.request(1))
        waiting.callback(call.cancel)
        call.add_done_callback(partial(_note, call, ended))
        with suppress(queue.Empty):
            if (code := ended.get(timeout=0.02)) is _REFUSED:
                return
            raise NeverRefused(f"a request that was to wait ended with {code.name}")
    raise NeverRefused(f"{_MOST_WAITING} requests are inside where there is room for {_ROOM}")


def _note(
    call: grpc.CallFuture[bytes], ended: queue.SimpleQueue[grpc.StatusCode], _: object
) -> None:
    ended.put(call.code())


def _capacity(session: Session, seconds: float) -> float:
    """The better of 64 requests in flight and a full queue."""
    single = single_images(session, seconds)
    clients, streams = _FULL
    full = h2load.load(
        session.target(1), session.request(1), clients=clients, streams=streams, seconds=seconds
    )
    return max(single.load.rate, full.rate)


def _rss_mb(session: Session) -> float:
    return session.usage().rss_bytes / 1e6
