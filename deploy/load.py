"""Clients that classify labelled images and tell the server the labels, some wrong on purpose.

What they count is the truth that Prometheus is compared with. Knows no Prometheus.
``python -m deploy.load`` is `load_command`.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, MutableSequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from serving.client import Classification, Client, Outcome, RequestFailed

WRONG_EVERY = 10  # one label in so many is sent wrong
ROWS = 8  # in the largest request
RETRY = 20.0  # seconds for a process to be replaced
TIMES_KEPT = 100_000  # of the newest answers: a load may go on for ever
# What a caller meets when a server's process dies, drains or is full: the call may go to another.
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between tries

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Images of one request, and what will be said that they show."""

    images: NDArray[np.uint8]  # (N, 28, 28)
    labels: tuple[str, ...]  # (N,)


@dataclass(frozen=True, slots=True)
class Manner:
    """How the clients of a load go about it."""

    rate: float = 0.0  # requests a second of all clients together; 0: as fast as they are answered
    feedback: bool = True  # tell the labels
    retry: float = RETRY  # seconds for which a request is tried again before it is lost
    load_balancing: str = "pick_first"  # gRPC's policy, where the address is of several servers


@dataclass(slots=True)
class Tally:
    """What clients counted: of answered requests only, but for those that were lost."""

    model: str = ""
    version: str = ""  # that gave the latest answer
    requests: int = 0
    versions: Counter[str] = field(default_factory=Counter)  # requests by what answered them
    rows: int = 0
    right: int = 0  # rows whose label, as it was sent, is what was predicted
    wrong: int = 0
    unanswered: int = 0  # tries that failed, and were made again
    lost: int = 0  # requests, of either kind, that were not answered in time
    refused: int = 0  # rows whose feedback was not counted
    # Of the tries that were answered, the newest.
    seconds: MutableSequence[float] = field(default_factory=lambda: deque(maxlen=TIMES_KEPT))

    def quantile(self, share: float) -> float:
        """Seconds within which that share of the requests was answered: one of their times."""
        return sorted(self.seconds)[math.ceil(share * len(self.seconds)) - 1]


def mislabelled(labels: list[str], classes: tuple[str, ...], every: int = WRONG_EVERY) -> list[str]:
    """The labels, each `every`-th one replaced by another class's."""
    wrong = dict(zip(classes, (*classes[1:], classes[0]), strict=True))
    return [wrong[label] if number % every == 0 else label for number, label in enumerate(labels)]


def batches(images: NDArray[np.uint8], labels: list[str]) -> Iterator[Batch]:
    """All of them, one to `ROWS` in a request."""
    sizes = itertools.cycle(range(1, ROWS + 1))
    start = 0
    while start < len(images):
        end = start + next(sizes)
        yield Batch(images[start:end], tuple(labels[start:end]))
        start = end


def run(
    address: str,
    model: str,
    source: Iterator[Batch],
    clients: int,
    manner: Manner | None = None,
    over: threading.Event | None = None,
) -> Tally:
    """Send all that `source` gives, or until it is `over`, each client on a connection of its own.

    RequestFailed when the server refuses what no other try would help.
    """
    shared = _Load(model, source, manner or Manner(), over or threading.Event())
    with ThreadPoolExecutor(clients) as pool:
        try:
            # The first to fail ends all, also where others before it would go on for ever.
            for future in as_completed(pool.submit(shared.work, address) for _ in range(clients)):
                future.result()
        except BaseException:
            shared.abandon()
            raise
    return shared.tally


class _Load:
    """What the clients of one run share."""

    def __init__(
        self, model: str, source: Iterator[Batch], manner: Manner, over: threading.Event
    ) -> None:
        self.tally = Tally(model)
        self._model = model
        self._source = source
        self._manner = manner
        self._over = over  # nothing more is asked
        self._abandoned = threading.Event()  # nor tried again
        self._lock = threading.Lock()
        self._due = time.monotonic()  # when the latest request was to be sent

    def abandon(self) -> None:
        """Have the clients end, in the middle of a request as well."""
        self._abandoned.set()
        self._over.set()

    def work(self, address: str) -> None:
        """One client: asks and tells until nothing is left."""
        with Client(address, load_balancing=self._manner.load_balancing, retry=False) as client:
            client.ready()  # connects: the first request's time is to be a request's only
            while batch := self._next():
                self._send(client, batch)

    def _next(self) -> Batch | None:
        """What to send now: with a rate, when it is due; what was late is not caught up with."""
        with self._lock:
            batch = None if self._over.is_set() else next(self._source, None)
            if not (batch and self._manner.rate):
                return batch
            now = time.monotonic()
            due = self._due = max(self._due + 1 / self._manner.rate, now)
        return None if self._over.wait(due - now) else batch

    def _send(self, client: Client, batch: Batch) -> None:
        """Ask, and tell until the labels are known to be counted: again is as good as once."""
        asked = self._tried(lambda: client.classify(batch.images, self._model))
        if not asked:
            return
        answer, seconds = asked
        with self._lock:
            self.tally.seconds.append(seconds)
            _count_answer(self.tally, answer)
        if self._manner.feedback:
            told = self._tried(lambda: _tell(client, answer.prediction_ids, batch.labels))
            if not told:
                return
            with self._lock:
                self.tally.refused += told[0]
        with self._lock:
            _count_labels(self.tally, answer.labels, batch.labels)

    def _tried(self, call: Callable[[], Answer]) -> tuple[Answer, float] | None:
        """What it gave, and the seconds of that try; None where it is lost."""
        end, pause = time.monotonic() + self._manner.retry, _FIRST_PAUSE
        while True:
            start = time.perf_counter()
            try:
                return call(), time.perf_counter() - start
            except RequestFailed as error:
                if error.code not in _PASSING:
                    raise
            left = end - time.monotonic()
            if left <= 0 or self._abandoned.wait(min(pause, left)):
                break
            pause = min(pause * 2, _LONGEST_PAUSE)
            self._count_failure()
        with self._lock:
            self.tally.lost += 1
        return None

    def _count_failure(self) -> None:
        with self._lock:
            self.tally.unanswered += 1


def _count_answer(tally: Tally, answer: Classification) -> None:
    tally.version = answer.version
    tally.requests += 1
    tally.versions[answer.version] += 1
    tally.rows += len(answer.labels)


def _count_labels(tally: Tally, said: tuple[str, ...], true: tuple[str, ...]) -> None:
    right = sum(one == other for one, other in zip(said, true, strict=True))
    tally.right += right
    tally.wrong += len(true) - right


def _tell(client: Client, ids: tuple[str, ...], labels: tuple[str, ...]) -> int:
    """How many labels were refused: all, where the server gave no ids to tell them by."""
    if not ids:
        return len(labels)
    results = client.send_feedback(ids, labels)
    return sum(each.outcome not in (Outcome.COUNTED, Outcome.REPEATED) for each in results)


if __name__ == "__main__":
    # Not at the top: it imports this module, which as __main__ is there a second time.
    from deploy import load_command

    sys.exit(load_command.main())
