"""What the native lane is given of each version: its signature, its batcher, and where it counts.

The lane counts in records of its own, which readers add to Python's: `counters` says how.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from model_repository import CONFIDENCE_EDGES, INK_EDGES, Manifest
from serving.config import ServerConfig
from serving.families import MOST_LABELS, ROWS, SECONDS, Exported, Family, Kept
from serving.model import Model
from serving.native_batcher import REJECTIONS, NativeBatcher
from serving.predictions import PredictionPlan
from serving.series import SeriesWriter, Slots

if TYPE_CHECKING:  # it need not be built
    from serving.lane import native

# By the names that the lane has for them.
_SLOTS = {
    "inferences": Exported.inferences,
    "executions": Exported.executions,
    "request_bytes": Exported.request_bytes,
    "response_bytes": Exported.response_bytes,
    "pending": Exported.pending,
    "busy": Exported.instances_busy,
    "kept": Kept.requests,
    "last_inference": Kept.last_inference,
}
_HISTOGRAMS = {
    "request_rows": (Exported.request_rows, ROWS),
    "request_seconds": (Exported.request_seconds, SECONDS),
    "queue_seconds": (Exported.queue_seconds, SECONDS),
    "compute_input": (Exported.compute_input_seconds, SECONDS),
    "compute_infer": (Exported.compute_infer_seconds, SECONDS),
    "compute_output": (Exported.compute_output_seconds, SECONDS),
    "batch_rows": (Exported.batch_rows, ROWS),
}
# Those of a version that tells classes; of another, nothing is shown.
_PREDICTION_SLOTS = {"predicted": Kept.predicted}
_PREDICTION_HISTOGRAMS = {
    "confidence": (Exported.confidence, CONFIDENCE_EDGES),
    "ink": (Exported.ink, INK_EDGES),
}

# Why connections are dropped; the lane has a slot for each.
_DROPPED = ("abuse", "keepalive", "handshake", "stalled")

Version = tuple[str, str]

log = logging.getLogger("serving.batcher")


class NativeModel(NamedTuple):
    """One version as the lane serves it; `routed` is what it is given, of its own type."""

    batcher: NativeBatcher
    routed: native.ServedModel


class NativeSeries:
    """The lane's own slots of the metrics' series: only it writes them."""

    def __init__(self, metrics: SeriesWriter) -> None:
        self._metrics = metrics
        self._slots: dict[tuple[str, ...], Slots] = {}

    def slots(self, family: Family, *labels: str) -> Slots:
        """Those of one series, made when it is first asked for."""
        key = (family.name, *labels)
        if key not in self._slots:
            record = self._metrics.counters.private_record(family.series(*labels), family.slots)
            self._slots[key] = record.slots
        return self._slots[key]

    def refusals(self, *version: str) -> Callable[[str, int], tuple[Slots, Slots]]:
        """Where requests with a status, and those refused for the reason of a number, are
        counted."""

        def slots(code: str, reason: int) -> tuple[Slots, Slots]:
            return (
                self.slots(Exported.requests, *version, code),
                self.slots(Exported.rejected, *version, REJECTIONS[reason]),
            )

        return slots

    def connections(self) -> dict[str, Slots]:
        """Where the lane counts what becomes of connections, by its names."""
        return {
            "open": self.slots(Exported.connections),
            "turned_away": self.slots(Exported.connections_turned_away),
            "stalled_requests": self.slots(Exported.stalled_requests),
            **{why: self.slots(Exported.connections_dropped, why) for why in _DROPPED},
        }

    def of_version(
        self, version: Version, classes: bool, labels: tuple[str, ...]
    ) -> dict[str, Any]:
        """All that counting a version takes, for the lane's ModelCounters; `labels` are those that
        are counted by themselves, of one that tells `classes`."""
        slots = _SLOTS | (_PREDICTION_SLOTS if classes else {})
        histograms = _HISTOGRAMS | (_PREDICTION_HISTOGRAMS if classes else {})
        return {
            "slots": {
                "answered": self.slots(Exported.requests, *version, "OK"),
                **{name: self.slots(family, *version) for name, family in slots.items()},
            },
            "histograms": {
                name: (self.slots(family, *version), bounds)
                for name, (family, bounds) in histograms.items()
            },
            "predictions": [self.slots(Exported.predictions, *version, each) for each in labels],
            "refusal": self.refusals(*version),
            "batches": lambda rows: self.slots(Kept.batches, *version, str(rows)),
        }


class NativeModels:
    """Makes what a lane's server serves versions with.

    The counters of a version are made once: one that replaces another of its number goes on where
    that counted, at the same time as it.
    """

    def __init__(
        self, module: ModuleType, server: native.Server, series: NativeSeries, config: ServerConfig
    ) -> None:
        self._module = module
        self._server = server
        self._series = series
        self._config = config
        self._counters: dict[tuple[Version, bool, tuple[str, ...]], native.ModelCounters] = {}

    def takes(self, model: Model) -> bool:
        """Whether rows of its requests can be stacked as they are: not those of BYTES."""
        specs = (*model.manifest.inputs, *model.manifest.outputs)
        sized = all(spec.datatype != "BYTES" for spec in specs)
        return model.batchable and sized and all(spec.shape[:1] == (-1,) for spec in specs)

    def serve(self, model: Model, plan: PredictionPlan | None) -> NativeModel:
        """The version, with threads of its own that run it; `plan` where it tells classes."""
        manifest = model.manifest
        counters = self._counters_of(manifest, bool(plan))
        batcher = self._batcher(model, plan, counters)
        inputs, outputs = (
            [(spec.name, spec.datatype, list(spec.shape)) for spec in specs]
            for specs in (manifest.inputs, manifest.outputs)
        )
        labels = list(manifest.labels) if plan else []
        routed = self._module.ServedModel(
            manifest.name, str(manifest.version), inputs, outputs, labels, batcher.native, counters
        )
        return NativeModel(batcher, routed)

    def _batcher(
        self, model: Model, plan: PredictionPlan | None, counters: native.ModelCounters
    ) -> NativeBatcher:
        config = self._config
        return NativeBatcher(
            model.run,
            max_batch_size=config.max_batch_size,
            max_queue_delay=config.max_queue_delay,
            max_queue_size=config.max_queue_size,
            instance_count=config.instance_count,
            buckets=config.buckets,
            priority_levels=config.priority_levels,
            observer=self._server.observer(counters, log.warning),
            plan=plan,
            inputs=[spec.name for spec in model.manifest.inputs],
            buffers=model.buffers,
            name=f"{model.manifest.name}-{model.manifest.version}",
        )

    def _counters_of(self, manifest: Manifest, classes: bool) -> native.ModelCounters:
        version = (manifest.name, str(manifest.version))
        labels = manifest.labels if classes and len(manifest.labels) <= MOST_LABELS else ()
        key = (version, classes, labels)
        if key not in self._counters:
            found = self._series.of_version(*key)
            self._counters[key] = self._module.ModelCounters(**found)
        return self._counters[key]
