"""Clients that classify labelled images and tell the server the labels, some wrong on purpose.

What they count is the truth that Prometheus is compared with. Knows no Prometheus.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import numpy as np
from numpy.typing import NDArray

from serving.client import Classification, Client, FeedbackResult, Outcome, RequestFailed

WRONG_EVERY = 10  # one label in so many is sent wrong
ROWS = 8  # in the largest request
BACK_TIMEOUT = 20.0  # seconds for a process to be replaced
# What a caller meets when a server's process dies: the call may go to another.
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Images of one request, and what will be said that they show."""

    images: NDArray[np.uint8]  # (N, 28, 28)
    labels: tuple[str, ...]  # (N,)


@dataclass(slots=True)
class Tally:
    """What clients counted: of answered requests only."""

    model: str = ""
    version: str = ""
    rows: int = 0
    right: int = 0  # rows whose label, as it was sent, is what was predicted
    wrong: int = 0
    unanswered: int = 0  # tries that failed, as a process died
    refused: int = 0  # rows whose feedback was not counted
    seconds: list[float] = field(default_factory=list)  # one per answered request

    @property
    def requests(self) -> int:
        return len(self.seconds)

    def quantile(self, share: float) -> float:
        """Seconds within which that share of the requests was answered: one of their times."""
        return sorted(self.seconds)[math.ceil(share * len(self.seconds)) - 1]


def mislabelled(labels: list[str], classes: tuple[str, ...]) -> list[str]:
    """The labels, each `WRONG_EVERY`-th one replaced by another class's."""
    wrong = dict(zip(classes, (*classes[1:], classes[0]), strict=True))
    return [
        wrong[label] if number % WRONG_EVERY == 0 else label for number, label in enumerate(labels)
    ]


def batches(images: NDArray[np.uint8], labels: list[str]) -> Iterator[Batch]:
    """All of them, one to `ROWS` in a request."""
    sizes = itertools.cycle(range(1, ROWS + 1))
    start = 0
    while start < len(images):
        end = start + next(sizes)
        yield Batch(images[start:end], tuple(labels[start:end]))
        start = end


def run(address: str, model: str, source: Iterator[Batch], clients: int) -> Tally:
    """Send all that `source` gives, each client on a connection of its own.

    RequestFailed when the server refuses, or is not back in time after a process of it died.
    """
    shared = _Load(model, source)
    with ThreadPoolExecutor(clients) as pool:
        try:
            for future in [pool.submit(shared.work, address) for _ in range(clients)]:
                future.result()
        finally:
            shared.over.set()
    return shared.tally


class _Load:
    """What the clients of one run share."""

    def __init__(self, model: str, source: Iterator[Batch]) -> None:
        self.tally = Tally()
        self.over = threading.Event()  # also set to have it end early
        self._model = model
        self._source = source
        self._lock = threading.Lock()

    def work(self, address: str) -> None:
        """One client: asks and tells until nothing is left."""
        with Client(address) as client:
            client.ready()  # connects: the first request's time is to be a request's only
            while batch := self._next():
                answer, seconds, failures = self._ask(client, batch)
                results = self._tell(client, answer.prediction_ids, batch.labels)
                with self._lock:
                    _count(self.tally, batch, answer, results)
                    self.tally.seconds.append(seconds)
                    self.tally.unanswered += failures

    def _next(self) -> Batch | None:
        with self._lock:
            return None if self.over.is_set() else next(self._source, None)

    def _ask(self, client: Client, batch: Batch) -> tuple[Classification, float, int]:
        """The answer, its seconds, and how many tries failed before."""
        failures = 0
        while True:
            start = time.perf_counter()
            try:
                answer = client.classify(batch.images, self._model)
                return answer, time.perf_counter() - start, failures
            except RequestFailed as error:
                self._wait_until_back(client, error)
                failures += 1

    def _tell(
        self, client: Client, ids: tuple[str, ...], labels: tuple[str, ...]
    ) -> list[FeedbackResult]:
        """Send the labels until they are known to be counted: again is as good as once."""
        while True:
            try:
                return client.send_feedback(ids, labels)
            except RequestFailed as error:
                self._wait_until_back(client, error)

    def _wait_until_back(self, client: Client, error: RequestFailed) -> None:
        """Until the connection goes to a process that lives; raises what is no such failure."""
        if error.code not in _PASSING:
            raise error
        end = time.monotonic() + BACK_TIMEOUT
        while not client.ready():
            if self.over.wait(0.05) or time.monotonic() > end:
                raise error


def _count(
    tally: Tally, batch: Batch, answer: Classification, results: list[FeedbackResult]
) -> None:
    right = sum(said == true for said, true in zip(answer.labels, batch.labels, strict=True))
    counted = sum(each.outcome in (Outcome.COUNTED, Outcome.REPEATED) for each in results)
    tally.model, tally.version = answer.model, answer.version
    tally.rows += len(results)
    tally.right += right
    tally.wrong += len(results) - right
    tally.refused += len(results) - counted
