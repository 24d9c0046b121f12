"""ModelRegistry: which versions are served, and for the others, why not. Loads nothing itself."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from model_repository import Manifest
from serving import holdout, tensors
from serving.batch import Answer, Batcher, Outcome, Request, Tensors
from serving.batcher import DynamicBatcher
from serving.config import ServerConfig
from serving.errors import ModelNotFound, ModelNotReady
from serving.model import Model
from serving.model_metrics import ModelMetrics
from serving.native_models import NativeModels
from serving.prediction_counts import PredictionCounts
from serving.predictions import Prediction, predictor

if TYPE_CHECKING:  # it need not be built
    from serving.lane import native


class State(StrEnum):
    """What a version is to Triton's repository index."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class VersionState:
    """One line of the repository index. One that is ready has a reason only where its files were
    replaced by others that could not be loaded. One that is suspended is unavailable."""

    name: str
    version: int
    state: State
    reason: str = ""


class ServedModel:
    """A loaded version with its batcher and its metrics; by the lane's batcher where it can be."""

    def __init__(
        self,
        model: Model,
        config: ServerConfig,
        metrics: ModelMetrics,
        lane: NativeModels | None = None,
    ) -> None:
        self.model = model
        self.version = str(model.manifest.version)
        self.metrics = metrics
        self.batchable = model.batchable
        self.all_outputs = tensors.as_they_are(model.manifest.outputs)
        manifest = model.manifest
        # int8 is not as sure as fp32: what runs is compared with what that very file answered.
        manifest = dataclasses.replace(manifest, quality=manifest.quality_of(model.variant))
        self._predictor = predictor(model.run, manifest)
        self._compute = self._predictor.run if self._predictor else model.run
        self._counts = PredictionCounts(metrics, manifest) if self._predictor else None
        self._queue_limit, self._instances = config.max_queue_size, config.instance_count
        self.max_batch_size = config.max_batch_size if self.batchable else 0
        # Whatever way a request comes, it waits in the one queue of its version.
        self.batcher: Batcher
        self.routed: native.ServedModel | None = None  # for the lane, where it serves the version
        if lane and lane.takes(model):
            plan = self._predictor.plan if self._predictor else None
            self.batcher, self.routed = lane.serve(model, plan)
        else:
            self.batcher = self._dynamic_batcher(config)

    def _dynamic_batcher(self, config: ServerConfig) -> DynamicBatcher:
        model, metrics = self.model, self.metrics
        return DynamicBatcher(
            self._run if self.batchable else self._run_single,
            max_batch_size=config.max_batch_size if self.batchable else 1,
            max_queue_delay=config.max_queue_delay,
            max_queue_size=config.max_queue_size,
            instance_count=config.instance_count,
            buckets=config.buckets if self.batchable else (),
            priority_levels=config.priority_levels,
            observe=metrics.executed,
            waiting=metrics.pending,
            buffers=model.buffers,
            name=f"{model.manifest.name}-{model.manifest.version}",
        )

    @property
    def manifest(self) -> Manifest:
        """The facts of the version that is served."""
        return self.model.manifest

    def request(
        self,
        inputs: Tensors,
        complete: Callable[[Outcome], None],
        *,
        deadline: float,
        priority: int,
        arrived: float,
    ) -> Request:
        """A request for the batcher; where rows cannot be shared, it is one row by itself."""
        inputs = self._stackable(inputs)
        return Request(inputs, complete, deadline=deadline, priority=priority, arrived=arrived)

    def background(self, inputs: Tensors, complete: Callable[[Outcome], None]) -> Request:
        """A request of the server's own."""
        return Request(self._stackable(inputs), complete, background=True)

    def submit(self, request: Request) -> None:
        """Queue the request; raises what DynamicBatcher.submit does."""
        self.batcher.submit(request)

    def announce(self) -> None:
        """Count it as served from now on."""
        model = self.model
        self.metrics.runs_on(model.variant.precision, model.device, model.provider)
        self.metrics.limits(self._queue_limit, self._instances)
        self.metrics.loaded(model.load_seconds)

    def outputs(self, answer: Answer) -> Tensors:
        """The outputs in the shapes that the model gives them."""
        if self.batchable:
            return answer.outputs
        return {name: array[0, ...] for name, array in answer.outputs.items()}

    @property
    def tells_classes(self) -> bool:
        """It has class labels, and an output that tells which."""
        return self._predictor is not None

    def predictions(self, outputs: Tensors) -> Sequence[Prediction]:
        """What the model says of each row of a request's `outputs`; none without class labels."""
        return self._predictor.of(outputs) if self._predictor else ()

    def observe(self, predictions: Sequence[Prediction]) -> None:
        """Count what a request was answered."""
        if self._counts:
            self._counts.add(predictions)

    @property
    def promised_accuracy(self) -> float | None:
        """What the manifest says that the variant which is served reaches on the holdout."""
        return holdout.promised(self.model.variant)

    def _stackable(self, inputs: Tensors) -> Tensors:
        if self.batchable:
            return inputs
        return {name: array[np.newaxis] for name, array in inputs.items()}

    def _run(self, inputs: Tensors) -> Tensors:
        """The model's outputs, counted as busy meanwhile."""
        self.metrics.busy(1)
        try:
            return self._compute(inputs)
        finally:
            self.metrics.busy(-1)

    def _run_single(self, inputs: Tensors) -> Tensors:
        outputs = self._run({name: array[0, ...] for name, array in inputs.items()})
        return {name: np.asarray(array)[np.newaxis] for name, array in outputs.items()}


class ModelRegistry:
    """What is served by name and version. `get` takes no lock; changes are rare, and copy.

    A version that is loaded is served unless it is suspended. That is each process's own: another
    worker, whose memory is sound, goes on answering. `on_change` is told of a model that is new or
    has changed, and whether it is served at all.
    """

    def __init__(self, on_change: Callable[[str, bool], None] = lambda name, served: None) -> None:
        self._on_change = on_change
        self._lock = threading.Lock()
        self._states: dict[str, dict[int, VersionState]] = {}
        self._loaded: dict[str, dict[int, ServedModel]] = {}
        self._suspended: dict[tuple[str, int], str] = {}  # why
        self._routes: dict[tuple[str, str], ServedModel] = {}  # version "": the latest

    def get(self, name: str, version: str = "") -> ServedModel:
        """The served version, where an empty one means the latest.

        Raises ModelNotFound, or ModelNotReady, saying why, while it loads or when it could not be.
        """
        served = self._routes.get((name, version))
        if served is None:
            raise self._missing(name, version)
        return served

    @property
    def routes(self) -> Mapping[tuple[str, str], ServedModel]:
        """What `get` finds, by name and version; an empty version means the latest."""
        return self._routes

    def versions(self, name: str) -> list[int]:
        """Versions of the model that are served, ascending."""
        return [v for v in self.loaded_versions(name) if not self.is_suspended(name, v)]

    def loaded_versions(self, name: str) -> list[int]:
        """Versions of the model that are served or suspended, ascending."""
        return sorted(self._loaded.get(name, ()))

    @property
    def served(self) -> list[ServedModel]:
        """Every version that is served, by name, then version."""
        return [
            each
            for each in self.loaded
            if not self.is_suspended(each.manifest.name, each.manifest.version)
        ]

    @property
    def loaded(self) -> list[ServedModel]:
        """Every version that is served or suspended, by name, then version."""
        items = sorted(self._loaded.items())
        return [models[version] for _, models in items for version in sorted(models)]

    def find(self, name: str, version: int) -> ServedModel | None:
        """The version, where it is served or suspended."""
        return self._loaded.get(name, {}).get(version)

    def is_suspended(self, name: str, version: int) -> bool:
        """Whether the version is loaded and yet gets no requests, for what a probe found."""
        return (name, version) in self._suspended

    @property
    def index(self) -> list[VersionState]:
        """Every version that is known of, by name, then version."""
        with self._lock:
            names = sorted(self._states)
        return [state for name in names for state in self.index_of(name)]

    def index_of(self, name: str) -> list[VersionState]:
        """Every version of one model that is known of, ascending."""
        with self._lock:
            return [state for _, state in sorted(self._states.get(name, {}).items())]

    def add(self, served: ServedModel) -> ServedModel | None:
        """Serve a version, from now on as the latest where its number is the highest.

        Returns what was served under that number before, which is the caller's to close.
        """
        name, version = served.manifest.name, served.manifest.version
        with self._lock:
            models = self._loaded.get(name, {})
            self._suspend(name, version, "")
            self._replace(name, {**models, version: served})
            self._set(name, version, State.READY)
        self._changed(name)
        return models.get(version)

    def remove(self, name: str, version: int) -> ServedModel | None:
        """Send no more requests to a version; it is the caller's to let it finish and close it."""
        with self._lock:
            models = dict(self._loaded.get(name, {}))
            served = models.pop(version, None)
            if served is None:
                return None
            self._suspend(name, version, "")
            self._replace(name, models)
            self._set(name, version, State.UNLOADING)
        self._changed(name)
        return served

    def judge(self, served: ServedModel, reached: float | None, fault: str) -> bool:
        """What a probe of a version found: one with a fault is suspended, one without is served.

        Whether that changed; never for what is not loaded any more.
        """
        name, version = served.manifest.name, served.manifest.version
        with self._lock:
            if self.find(name, version) is not served:
                return False
            served.metrics.probed(reached, not fault)
            before = self._suspended.get((name, version), "")
            if before == fault:
                return False
            self._suspend(name, version, fault)
            served.metrics.suspended(bool(fault))
            self._replace(name, self._loaded[name])
            self._settle(name, version)
        self._changed(name)
        return bool(before) != bool(fault)

    def retired(self, name: str, version: int, why: str) -> bool:
        """A version that was removed is closed; false where its number is served again already."""
        with self._lock:
            if self.find(name, version):
                return False
            # Not so for one that left the repository and is forgotten, or is loading again.
            state = self._states.get(name, {}).get(version)
            if state and state.state is State.UNLOADING:
                self._set(name, version, State.UNAVAILABLE, why)
            return True

    def note(self, name: str, version: int, state: State, reason: str = "") -> None:
        """Remember why a version is not served; one that is served stays READY."""
        with self._lock:
            new = name not in self._states
            if self.find(name, version):
                self._settle(name, version, reason)
            else:
                self._set(name, version, state, reason)
        if new:
            self._changed(name)

    def forget(self, name: str, version: int) -> None:
        """The version is neither served nor in the repository any more."""
        with self._lock:
            states = self._states.get(name, {})
            states.pop(version, None)
            if not states:
                self._states.pop(name, None)

    def _changed(self, name: str) -> None:
        self._on_change(name, (name, "") in self._routes)

    def _suspend(self, name: str, version: int, fault: str) -> None:
        """Routes are still to be replaced. The lock is held."""
        others = {key: why for key, why in self._suspended.items() if key != (name, version)}
        self._suspended = others | ({(name, version): fault} if fault else {})

    def _settle(self, name: str, version: int, reason: str = "") -> None:
        """The state of one that is loaded. The lock is held."""
        suspended = self._suspended.get((name, version), "")
        state = State.UNAVAILABLE if suspended else State.READY
        self._set(name, version, state, "; ".join(filter(None, (suspended, reason))))

    def _set(self, name: str, version: int, state: State, reason: str = "") -> None:
        """The lock is held."""
        states = self._states.setdefault(name, {})
        states[version] = VersionState(name, version, state, reason)

    def _replace(self, name: str, models: dict[int, ServedModel]) -> None:
        """Keep these versions of a model, and route to those not suspended. The lock is held."""
        served = {v: each for v, each in models.items() if not self.is_suspended(name, v)}
        routes = {key: model for key, model in self._routes.items() if key[0] != name}
        routes |= {(name, str(version)): model for version, model in served.items()}
        if served:
            routes[name, ""] = served[max(served)]
        loaded = {other: kept for other, kept in self._loaded.items() if other != name}
        self._routes, self._loaded = routes, loaded | ({name: models} if models else {})

    def _missing(self, name: str, version: str) -> ModelNotFound | ModelNotReady:
        with self._lock:
            states = self._states.get(name)
            if not states:
                return ModelNotFound(f"model {name!r} is unknown")
            by_text = {str(number): state for number, state in states.items()}
            state = by_text.get(version or str(max(states)))
            served = ", ".join(map(str, self.versions(name))) or "none"
        if state is None:
            return ModelNotFound(
                f"model {name!r} has no version {version!r} here; served: {served}"
            )
        return ModelNotReady(f"model {name!r} version {state.version} {_why(state)}")


def _why(state: VersionState) -> str:
    if state.state is State.LOADING:
        return "is still loading"
    if state.state is State.UNLOADING:
        return "is being unloaded"
    return f"is not served: {state.reason}"
