"""ModelRegistry: which models are served, which are loading, and which could not be loaded."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import model_repository
from model_repository import Manifest, RepositoryError
from serving import model as models
from serving.batcher import Answer, DynamicBatcher, Request
from serving.device import Runtime
from serving.errors import ModelLoadError, ModelNotFound, ModelNotReady, StartupError
from serving.metrics import Metrics, ModelMetrics
from serving.model import Model

Tensors = dict[str, NDArray[np.generic]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batching:
    """How the requests of every model are grouped; see DynamicBatcher."""

    max_batch_size: int
    max_queue_delay: float
    max_queue_size: int
    instance_count: int


class ServedModel:
    """A loaded version with its batcher and its metrics."""

    def __init__(self, model: Model, batching: Batching, metrics: ModelMetrics) -> None:
        self.model = model
        self.metrics = metrics
        self.batcher = DynamicBatcher(
            model.run if model.batchable else self._run_single,
            max_batch_size=batching.max_batch_size if model.batchable else 1,
            max_queue_delay=batching.max_queue_delay,
            max_queue_size=batching.max_queue_size,
            instance_count=batching.instance_count,
            observe=metrics.executed,
        )
        metrics.loaded(model.load_seconds, lambda: self.batcher.pending)

    @property
    def manifest(self) -> Manifest:
        """The facts of the version that is served."""
        return self.model.manifest

    def request(self, inputs: Tensors, deadline: float = math.inf) -> Request:
        """A request for the batcher; where rows cannot be shared, it is one row by itself."""
        if not self.model.batchable:
            inputs = {name: array[np.newaxis] for name, array in inputs.items()}
        return Request(inputs, deadline)

    def infer(self, request: Request) -> Answer:
        """Wait for the answer; raises what DynamicBatcher.infer does."""
        answer = self.batcher.infer(request)
        if not self.model.batchable:
            for name, array in answer.outputs.items():
                answer.outputs[name] = array[0]
        return answer

    def _run_single(self, inputs: Tensors) -> Tensors:
        outputs = self.model.run({name: array[0] for name, array in inputs.items()})
        return {name: np.asarray(array)[np.newaxis] for name, array in outputs.items()}


class ModelRegistry:
    """The latest version of every model in a repository.

    Raises StartupError when there is no repository or nothing in it. Names are known from the
    start; `load` then makes them ready one by one.
    """

    def __init__(
        self, repository: Path, runtime: Runtime, batching: Batching, metrics: Metrics
    ) -> None:
        self._repository = repository
        self._runtime = runtime
        self._batching = batching
        self._metrics = metrics
        self._why_not_ready = dict.fromkeys(_names(repository), "is still loading")
        self._served: dict[str, ServedModel] = {}

    @property
    def names(self) -> list[str]:
        """Every model of the repository, whether it can be served or not."""
        return sorted({*self._why_not_ready, *self._served})

    @property
    def served(self) -> list[ServedModel]:
        """The models that are ready, by name."""
        return [model for _, model in sorted(self._served.items())]

    def load(self, on_ready: Callable[[str], None]) -> None:
        """Load every model, telling of each that became ready; a broken one is logged, no more."""
        for name in self.names:
            try:
                self._served[name] = self._load_latest(name)
            except (RepositoryError, ModelLoadError) as error:
                log.error("model %s is not served: %s", name, error)
                self._why_not_ready[name] = "could not be loaded; the server's log says why"
            except Exception:  # one broken model, however broken, must not keep the others away
                log.exception("model %s is not served", name)
                self._why_not_ready[name] = "could not be loaded; the server's log says why"
            else:
                del self._why_not_ready[name]
                on_ready(name)

    def get(self, name: str, version: str = "") -> ServedModel:
        """The served model of that name, where an empty version means the latest.

        Raises ModelNotFound, or ModelNotReady while it is loading or when it could not be.
        """
        served = self._served.get(name)
        if served is None:
            reason = self._why_not_ready.get(name)
            if reason is None:
                raise ModelNotFound(f"model {name!r} is unknown")
            raise ModelNotReady(f"model {name!r} {reason}")
        if version not in ("", str(served.manifest.version)):
            raise ModelNotFound(
                f"model {name!r} has no version {version!r} here; "
                f"version {served.manifest.version} is served"
            )
        return served

    def _load_latest(self, name: str) -> ServedModel:
        version = model_repository.versions(self._repository / name)[-1]
        directory = self._repository / name / str(version)
        manifest = model_repository.read_manifest(directory)
        if (manifest.name, manifest.version) != (name, version):
            raise ModelLoadError(
                f"{directory}: the manifest is that of {manifest.name} {manifest.version}",
                "manifest",
            )
        model = models.load(directory, manifest, self._runtime)
        return ServedModel(model, self._batching, self._metrics.model(name, version))


def _names(repository: Path) -> list[str]:
    try:
        names = model_repository.model_names(repository)
    except RepositoryError as error:
        raise StartupError(f"--model-repository: {error}") from None
    if not names:
        raise StartupError(f"--model-repository: {repository}: holds no published model")
    return names
