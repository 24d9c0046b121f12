"""ModelRegistry: which versions are served, and for the others, why not. Loads nothing itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from model_repository import Manifest
from serving import tensors
from serving.batch import Answer, Outcome, Request, Tensors
from serving.batcher import DynamicBatcher
from serving.config import ServerConfig
from serving.errors import ModelNotFound, ModelNotReady
from serving.metrics import ModelMetrics
from serving.model import Model
from serving.prediction_counts import PredictionCounts
from serving.predictions import Prediction, predictor


class State(StrEnum):
    """What a version is to Triton's repository index."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class VersionState:
    """One line of the repository index. One that is ready has a reason only where its files were
    replaced by others that could not be loaded."""

    name: str
    version: int
    state: State
    reason: str = ""


class ServedModel:
    """A loaded version with its batcher and its metrics."""

    def __init__(self, model: Model, config: ServerConfig, metrics: ModelMetrics) -> None:
        self.model = model
        self.version = str(model.manifest.version)
        self.metrics = metrics
        self.batchable = model.batchable
        self.all_outputs = tensors.as_they_are(model.manifest.outputs)
        self._predictor = predictor(model.run, model.manifest)
        self._compute = self._predictor.run if self._predictor else model.run
        self._counts = PredictionCounts(metrics, model.manifest) if self._predictor else None
        self._queue_limit, self._instances = config.max_queue_size, config.instance_count
        self.max_batch_size = config.max_batch_size if self.batchable else 0
        self.batcher = DynamicBatcher(
            self._run if self.batchable else self._run_single,
            max_batch_size=config.max_batch_size if self.batchable else 1,
            max_queue_delay=config.max_queue_delay,
            max_queue_size=config.max_queue_size,
            instance_count=config.instance_count,
            buckets=config.buckets if self.batchable else (),
            priority_levels=config.priority_levels,
            observe=metrics.executed,
            waiting=metrics.pending,
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
        if not self.batchable:
            inputs = {name: array[np.newaxis] for name, array in inputs.items()}
        return Request(inputs, complete, deadline=deadline, priority=priority, arrived=arrived)

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

    `on_change` is told of a model that is new or has changed, and whether it is served at all.
    """

    def __init__(self, on_change: Callable[[str, bool], None] = lambda name, served: None) -> None:
        self._on_change = on_change
        self._lock = threading.Lock()
        self._states: dict[str, dict[int, VersionState]] = {}
        self._served: dict[str, dict[int, ServedModel]] = {}
        self._routes: dict[tuple[str, str], ServedModel] = {}  # version "": the latest

    def get(self, name: str, version: str = "") -> ServedModel:
        """The served version, where an empty one means the latest.

        Raises ModelNotFound, or ModelNotReady, saying why, while it loads or when it could not be.
        """
        served = self._routes.get((name, version))
        if served is None:
            raise self._missing(name, version)
        return served

    def versions(self, name: str) -> list[int]:
        """Versions of the model that are served, ascending."""
        return sorted(self._served.get(name, ()))

    @property
    def served(self) -> list[ServedModel]:
        """Every version that is served, by name, then version."""
        items = sorted(self._served.items())
        return [models[version] for _, models in items for version in sorted(models)]

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
            models = dict(self._served.get(name, {}))
            replaced = models.get(version)
            self._replace(name, {**models, version: served})
            self._set(name, version, State.READY)
        self._on_change(name, True)
        return replaced

    def remove(self, name: str, version: int) -> ServedModel | None:
        """Send no more requests to a version; it is the caller's to let it finish and close it."""
        with self._lock:
            models = dict(self._served.get(name, {}))
            served = models.pop(version, None)
            if served is None:
                return None
            self._replace(name, models)
            self._set(name, version, State.UNLOADING)
        self._on_change(name, bool(models))
        return served

    def retired(self, name: str, version: int, why: str) -> bool:
        """A version that was removed is closed; false where its number is served again already."""
        with self._lock:
            if version in self._served.get(name, {}):
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
            is_served = version in self._served.get(name, {})
            self._set(name, version, State.READY if is_served else state, reason)
        if new:
            self._on_change(name, False)

    def forget(self, name: str, version: int) -> None:
        """The version is neither served nor in the repository any more."""
        with self._lock:
            states = self._states.get(name, {})
            states.pop(version, None)
            if not states:
                self._states.pop(name, None)

    def _set(self, name: str, version: int, state: State, reason: str = "") -> None:
        """The lock is held."""
        states = self._states.setdefault(name, {})
        states[version] = VersionState(name, version, state, reason)

    def _replace(self, name: str, models: dict[int, ServedModel]) -> None:
        """Route to these versions of a model. The lock is held."""
        routes = {key: model for key, model in self._routes.items() if key[0] != name}
        routes |= {(name, str(version)): model for version, model in models.items()}
        served = {other: kept for other, kept in self._served.items() if other != name}
        if models:
            routes[name, ""] = models[max(models)]
            served[name] = models
        self._routes, self._served = routes, served

    def _missing(self, name: str, version: str) -> ModelNotFound | ModelNotReady:
        with self._lock:
            states = self._states.get(name)
            if not states:
                return ModelNotFound(f"model {name!r} is unknown")
            by_text = {str(number): state for number, state in states.items()}
            state = by_text.get(version or str(max(states)))
            served = ", ".join(map(str, sorted(self._served.get(name, ())))) or "none"
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
