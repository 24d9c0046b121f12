"""Prober: versions that are served answer their holdout again, as callers' images are answered.

It replays what was proven at load through the version's batcher, in background requests, and
suspends a version that no longer reaches it until it does. It decides nothing about what is loaded.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
import weakref
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from serving.batch import Answer, Outcome, Tensors
from serving.errors import BatcherClosed, DeadlineExceeded, ModelFailed, QueueFull, ServingError
from serving.holdout import Standard
from serving.predictions import class_output, classes
from serving.registry import ModelRegistry, ServedModel

ROWS = 8  # per request, at most
# A caller may come just after a probe's request began to run: seconds that it should not exceed.
SHORT = 0.01
PATIENCE = 30.0  # seconds for one request, before the rest is left to a later probe
FULL = 0.5  # seconds until the next look at a queue that was full

log = logging.getLogger(__name__)


class Replay(NamedTuple):
    """What one replay of a holdout found; without an accuracy, the model failed."""

    accuracy: float | None
    fault: str  # empty where nothing is wrong


class Prober:
    """Probes what a registry has loaded: each version soon after it came, then every `interval`
    seconds, if that is above 0, on a thread of its own.

    What would change whether a version is served is looked at twice: one slip is no outage, and one
    lucky replay no recovery. A probe that callers leave no room for is no failure: it is tried
    again after `patience` seconds.
    """

    def __init__(
        self, registry: ModelRegistry, interval: float, patience: float = PATIENCE
    ) -> None:
        self._registry = registry
        self._interval = interval
        self._patience = patience
        self._probed = weakref.WeakSet[ServedModel]()
        self._crowded_out = weakref.WeakSet[ServedModel]()  # the log knows
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._asking = threading.Lock()
        self._cancel = _nothing  # the lock's
        self._thread = threading.Thread(target=self._run, name="prober", daemon=True)

    def start(self) -> None:
        """Probe from now on."""
        self._thread.start()

    def wake(self) -> None:
        """Look for what was loaded since."""
        self._wake.set()

    def stop(self) -> None:
        """Return when nothing is probed any more, which no running batch is waited for."""
        self._stopping.set()
        self._wake.set()
        with self._asking:
            self._cancel()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        # Workers, and replicas, that start together shall not probe together; whoever guesses when
        # they do has won nothing.
        due = (
            time.monotonic() + self._interval * random.uniform(0.5, 1)  # nosec B311
            if self._interval
            else math.inf
        )
        while not self._stopping.is_set():
            is_due = time.monotonic() >= due
            if is_due:
                due = time.monotonic() + self._interval
            finished = [
                self._finishes(served)
                for served in self._registry.loaded
                if is_due or served not in self._probed
            ]
            again = math.inf if all(finished) else self._patience
            seconds = min(again, due - time.monotonic())
            self._wake.wait(None if math.isinf(seconds) else max(0.0, seconds))
            self._wake.clear()

    def _finishes(self, served: ServedModel) -> bool:
        """Probe a version; False where it has to be done again."""
        name, version = served.manifest.name, served.version
        try:
            self.probe(served)
        except BatcherClosed:  # it is unloaded, or all is
            return True
        except ServingError as error:
            if self._stopping.is_set():
                return True
            if served not in self._crowded_out:
                log.warning(
                    "the probe of model %s version %s is not done: %s", name, version, error
                )
            self._crowded_out.add(served)
            self._probed.discard(served)
            return False
        except Exception:  # the others are to be probed
            log.exception("model %s version %s cannot be probed", name, version)
        self._crowded_out.discard(served)
        self._probed.add(served)
        return True

    def probe(self, served: ServedModel) -> None:
        """Replay a version's holdout, if it has one, and suspend or resume it where that is due.

        Raises BatcherClosed where it is unloaded meanwhile, another ServingError where callers left
        no room for it.
        """
        standard = served.model.standard
        if standard is None:
            return
        name, version = served.manifest.name, served.manifest.version
        found = self._replay(served, standard)
        if bool(found.fault) != self._registry.is_suspended(name, version):
            found = self._confirmed(served, standard, found)
        if not self._registry.judge(served, found.accuracy, found.fault):
            return
        if found.fault:
            log.error(
                "model %s version %d is not ready any more: it %s", name, version, found.fault
            )
        else:
            log.info(
                "model %s version %d reproduces its manifest again, and is ready", name, version
            )

    def _confirmed(self, served: ServedModel, standard: Standard, first: Replay) -> Replay:
        again = self._replay(served, standard)
        name, version = served.manifest.name, served.version
        if first.fault and not again.fault:
            log.warning(
                "model %s version %s passed only when probed again: it %s",
                name,
                version,
                first.fault,
            )
        return again

    def _replay(self, served: ServedModel, standard: Standard) -> Replay:
        try:
            accuracy = self._accuracy(served, standard)
        except ModelFailed:
            found = Replay(None, "fails on its own holdout; the log says how")
        else:
            shortfall = standard.shortfall(accuracy)
            found = Replay(accuracy, shortfall and f"does not reproduce its manifest: {shortfall}")
        if found.fault:
            served.metrics.probe_failed()
        return found

    def _accuracy(self, served: ServedModel, standard: Standard) -> float:
        """The share of right labels, with requests as large as is quick."""
        spec = class_output(served.manifest)
        assert spec  # or it had no standard
        labels = standard.holdout.labels
        most = min(ROWS, served.max_batch_size or 1)
        right = start = 0
        rows = 1
        while start < len(labels):
            part = slice(start, start + rows)
            inputs = {name: array[part] for name, array in standard.holdout.inputs.items()}
            answer = self._ask(served, inputs)
            predicted = classes(served.outputs(answer), spec)
            right += int(np.count_nonzero(predicted == labels[part]))
            start += rows
            rows = min(most, 2 * rows) if answer.stages.seconds < SHORT / 2 else max(1, rows // 2)
        return right / len(labels)

    def _ask(self, served: ServedModel, inputs: Tensors) -> Answer:
        """One request, when there is room for it; raises its error where it got no answer."""
        end = time.monotonic() + self._patience
        while True:
            try:
                outcome = self._outcome(served, inputs, end)
                break
            except QueueFull:
                if time.monotonic() >= end or self._stopping.wait(FULL):
                    raise
        if isinstance(outcome, Answer):
            return outcome
        raise outcome

    def _outcome(self, served: ServedModel, inputs: Tensors, end: float) -> Outcome:
        future = Future[Outcome]()
        request = served.background(inputs, future.set_result)
        with self._asking:
            if self._stopping.is_set():
                raise BatcherClosed("the server is stopping")
            served.batcher.submit(request)
            self._cancel = request.cancel
        try:
            return future.result(max(0.0, end - time.monotonic()))
        except TimeoutError:
            request.cancel()
            outcome = future.result()  # it may have come just now
            late = DeadlineExceeded(f"no answer in {self._patience:g} s")
            return outcome if isinstance(outcome, Answer) else late
        finally:
            self._cancel = _nothing


def _nothing() -> None:
    """How to cancel what is over."""
