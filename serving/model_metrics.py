"""What one version counts, its requests and its batches; and how requests are refused."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence

from serving.errors import Rejection
from serving.execution import Execution
from serving.families import ROWS, SECONDS, Exported, Family, Kept
from serving.series import SeriesWriter, Slots, observe, observe_all

# What can happen to a request for a loaded model: the gRPC status that it gets, and why.
_OF_A_MODEL = (
    ("RESOURCE_EXHAUSTED", Rejection.QUEUE_FULL),
    ("INVALID_ARGUMENT", Rejection.INVALID_INPUT),
    ("DEADLINE_EXCEEDED", Rejection.DEADLINE),
    ("CANCELLED", Rejection.CANCELLED),
    ("INTERNAL", Rejection.FAILED),
)


class Refusals:
    """Requests that were not answered: those of one version, or of none."""

    def __init__(
        self,
        metrics: SeriesWriter,
        labels: tuple[str, str],
        expected: Sequence[tuple[str, Rejection]],
    ) -> None:
        self._metrics = metrics
        self._labels = labels
        self._lock = metrics.counters.lock
        self._request_bytes = metrics.slots(Exported.request_bytes, *labels)
        self._known: dict[tuple[str, Rejection], tuple[Slots, Slots]] = {}
        for code, reason in expected:  # from 0, or else rate() misses the first
            self._slots(code, reason)

    def count(self, code: str, reason: Rejection, message_bytes: int) -> None:
        """One more, with that gRPC status."""
        requests, rejected = self._known.get((code, reason)) or self._slots(code, reason)
        with self._lock:
            requests[0] += 1
            rejected[0] += 1
            self._request_bytes[0] += message_bytes

    def _slots(self, code: str, reason: Rejection) -> tuple[Slots, Slots]:
        """Looked up once: under overload, most that the server does is to refuse."""
        requests = self._metrics.slots(Exported.requests, *self._labels, code)
        rejected = self._metrics.slots(Exported.rejected, *self._labels, reason)
        self._known[code, reason] = requests, rejected
        return requests, rejected


class ModelMetrics:
    """One version's own series; their labels are looked up once."""

    def __init__(self, metrics: SeriesWriter, model: str, version: str) -> None:
        self._metrics = metrics
        self._labels = labels = (model, version)
        self._lock = metrics.counters.lock
        self._answered = metrics.slots(Exported.requests, *labels, "OK")
        self._inferences = metrics.slots(Exported.inferences, *labels)
        self._executions = metrics.slots(Exported.executions, *labels)
        self._request_rows = metrics.slots(Exported.request_rows, *labels)
        self._request_bytes = metrics.slots(Exported.request_bytes, *labels)
        self._response_bytes = metrics.slots(Exported.response_bytes, *labels)
        self._request_seconds = metrics.slots(Exported.request_seconds, *labels)
        self._queue_seconds = metrics.slots(Exported.queue_seconds, *labels)
        self._compute_input = metrics.slots(Exported.compute_input_seconds, *labels)
        self._compute_infer = metrics.slots(Exported.compute_infer_seconds, *labels)
        self._compute_output = metrics.slots(Exported.compute_output_seconds, *labels)
        self._batch_rows = metrics.slots(Exported.batch_rows, *labels)
        self._pending = metrics.slots(Exported.pending, *labels)
        self._busy = metrics.slots(Exported.instances_busy, *labels)
        self._ready = metrics.slots(Exported.model_ready, *labels)
        self._kept = metrics.slots(Kept.requests, *labels)
        self._last_inference = metrics.slots(Kept.last_inference, *labels)
        self._batches: dict[int, Slots] = {}
        self._refusals = Refusals(metrics, labels, _OF_A_MODEL)

    def slots(self, family: Family, *labels: str) -> Slots:
        """The slots of another series of this version; adding takes `lock`."""
        return self._metrics.slots(family, *self._labels, *labels)

    @property
    def lock(self) -> threading.Lock:
        """Held while slots are added to."""
        return self._lock

    def executed(self, execution: Execution) -> None:
        """One batch ran and was answered; called once for it, this costs a few microseconds."""
        batch = self._batches.get(execution.rows) or self._batch(execution.rows)
        now = time.time_ns() // 1_000_000
        with self._lock:
            self._executions[0] += 1
            self._inferences[0] += execution.rows
            observe(self._batch_rows, ROWS, execution.rows)
            self._ran(execution, batch)
            observe_all(self._request_rows, ROWS, execution.request_rows)
            observe_all(self._queue_seconds, SECONDS, execution.queue_seconds)
            observe_all(self._request_seconds, SECONDS, execution.request_seconds)
            self._answered[0] += len(execution.queue_seconds)
            self._last_inference[0] = now

    def _ran(self, execution: Execution, batch: Slots) -> None:
        """The three stages: in their histograms, per batch size, and once for each request."""
        requests = len(execution.queue_seconds)
        kept = self._kept
        batch[0] += 1
        seconds = execution.compute_input_seconds
        observe(self._compute_input, SECONDS, seconds)
        batch[1] += seconds
        kept[0] += requests * seconds
        seconds = execution.compute_infer_seconds
        observe(self._compute_infer, SECONDS, seconds)
        batch[2] += seconds
        kept[1] += requests * seconds
        seconds = execution.compute_output_seconds
        observe(self._compute_output, SECONDS, seconds)
        batch[3] += seconds
        kept[2] += requests * seconds

    def _batch(self, rows: int) -> Slots:
        slots = self._metrics.slots(Kept.batches, *self._labels, str(rows))
        self._batches[rows] = slots
        return slots

    def replied(self, request_bytes: int, response_bytes: int) -> None:
        """One request was answered: the sizes of the two messages."""
        with self._lock:
            self._request_bytes[0] += request_bytes
            self._response_bytes[0] += response_bytes

    def failed(self, code: str, reason: Rejection, seconds: float, message_bytes: int) -> None:
        """A request was refused or failed with that gRPC status name, so long after it came."""
        self._refusals.count(code, reason, message_bytes)
        with self._lock:
            self._kept[3] += seconds

    def pending(self, requests: int) -> None:
        """So many requests wait now; a store without a lock, for a caller that holds one."""
        self._pending[0] = requests

    def busy(self, more: int) -> None:
        """So many batches run more, or fewer, than before."""
        with self._lock:
            self._busy[0] += more

    def limits(self, queue: int, instances: int) -> None:
        """So many requests may wait, so many batches run at the same time."""
        self._metrics.set(Exported.queue_limit, queue, *self._labels)
        self._metrics.set(Exported.instances, instances, *self._labels)

    def runs_on(self, precision: str, device: str, provider: str) -> None:
        """What the version was loaded as."""
        self._metrics.show(Exported.model_info, self._labels, (precision, device, provider))

    def loaded(self, load_seconds: float) -> None:
        """The version is served from now on."""
        self._metrics.set(Exported.load_seconds, load_seconds, *self._labels)
        self._ready[0] = 1

    def unloaded(self) -> None:
        """The version is served no more."""
        self._ready[0] = self._pending[0] = 0
        self.limits(0, 0)
        self._metrics.show(Exported.model_info, self._labels)
        self.promised(None)

    def suspended(self, suspended: bool) -> None:
        """The version, which stays loaded, is given no requests, or is again."""
        self._ready[0] = not suspended

    def promised(self, accuracy: float | None) -> None:
        """What the manifest says the version reaches on its holdout; no probe has run yet."""
        self._metrics.slots(Exported.probe_failures, *self._labels)
        self._set(Exported.accuracy, accuracy, "holdout")
        self._set(Exported.accuracy, None, "probe")
        self._set(Exported.probe_passed, None)

    def probed(self, accuracy: float | None, passed: bool) -> None:
        """The holdout was replayed; without an accuracy, the model failed on it."""
        self._set(Exported.accuracy, accuracy, "probe")
        self._set(Exported.probe_passed, float(passed))

    def probe_failed(self) -> None:
        """One replay did not pass."""
        self._metrics.add(Exported.probe_failures, 1, *self._labels)

    def _set(self, family: Family, value: float | None, *more: str) -> None:
        """Set a LIVE_LEAST gauge; None for no value, which shows no series."""
        self._metrics.set(family, math.nan if value is None else value, *self._labels, *more)
