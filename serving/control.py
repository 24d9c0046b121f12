"""ModelControl: decides which versions of the repository are served, and loads and unloads them.

Triton's control modes. A version that cannot be loaded never takes down one that is served.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import model_repository
from model_repository import RepositoryError
from serving.config import ServerConfig, VersionPolicy
from serving.errors import (
    LoadFailed,
    LoadFailure,
    ModelLoadError,
    ModelNotFound,
    NotAllowed,
    StartupError,
)
from serving.metrics import Metrics
from serving.registry import ModelRegistry, ServedModel, State

Load = Callable[[Path], ServedModel]
# Sizes and times of a version's files: one that failed is tried again only when these differ.
Fingerprint = tuple[tuple[str, int, int], ...]

log = logging.getLogger(__name__)


class ModelControl:
    """Brings the registry in line with the repository: at the start, then as the mode says.

    `load` makes a version directory a served model, or raises RepositoryError or ModelLoadError.
    Changes are made one at a time. Raises StartupError where nothing can ever be served.
    """

    def __init__(
        self, config: ServerConfig, registry: ModelRegistry, load: Load, metrics: Metrics
    ) -> None:
        self._repository = config.model_repository
        self._mode = config.model_control_mode
        self._policy = VersionPolicy.parse(config.version_policy)
        self._poll_interval = config.poll_interval
        self._drain_timeout = config.drain_timeout
        self._at_start = config.load_model
        self._registry = registry
        self._load = load
        self._metrics = metrics
        self._refused: dict[Path, Fingerprint] = {}
        self._outage = ""  # why the repository could not be read last time
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        for name in self._wanted_at_start():
            for version in self._policy.select(self._published(name)):
                registry.note(name, version, State.LOADING, "")

    def start(self) -> None:
        """Load what is to be served from the start, which takes as long as that takes."""
        for name in self._wanted_at_start():
            if not self._stopping.is_set():
                with self._changing:
                    self._converge(name)

    def run(self) -> None:
        """In poll mode, look for changes until `stop`; else return."""
        while self._mode == "poll" and not self._stopping.wait(self._poll_interval):
            self.poll()

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping.set()

    def poll(self) -> None:
        """Serve what was published since, and no longer what was withdrawn."""
        try:
            published = model_repository.model_names(self._repository)
            if not published and self._registry.served:
                raise RepositoryError(f"{self._repository}: holds no published model any more")
        except (RepositoryError, OSError) as error:
            self._report_outage(str(error))
            return
        self._report_outage("")
        known = {state.name for state in self._registry.index}
        for name in sorted({*published, *known}):
            if self._stopping.is_set():
                return
            with self._changing:
                self._converge(name)

    def load(self, name: str) -> None:
        """Load the versions of a model that the policy asks for, those that failed before as well.

        Raises ModelNotFound, LoadFailed where none could be, NotAllowed outside explicit mode.
        """
        self._require_explicit()
        with self._changing:
            self._load_now(name)

    def unload(self, name: str) -> None:
        """Stop serving a model, when its requests in flight are answered.

        Raises ModelNotFound, and NotAllowed outside explicit mode.
        """
        self._require_explicit()
        with self._changing:
            versions = self._registry.versions(name)
            if not versions and not self._published(name):
                raise ModelNotFound(f"model {name!r} is unknown")
            for version in versions:
                self._unload(name, version, "was unloaded")

    def _wanted_at_start(self) -> list[str]:
        try:
            published = model_repository.model_names(self._repository)
        except (RepositoryError, OSError) as error:
            raise StartupError(f"--model-repository: {error}") from None
        if self._mode == "explicit":
            return published if self._at_start == ("*",) else self._named_at_start(published)
        if not published and self._mode == "none":
            raise StartupError(f"--model-repository: {self._repository}: holds no published model")
        return published

    def _named_at_start(self, published: list[str]) -> list[str]:
        for name in self._at_start:
            if name not in published:
                raise StartupError(f"--load-model: {self._repository} holds no model {name!r}")
        return list(self._at_start)

    def _require_explicit(self) -> None:
        if self._mode != "explicit":
            raise NotAllowed(
                "models are loaded and unloaded on request only with --model-control-mode explicit,"
                f" not {self._mode}"
            )

    def _load_now(self, name: str) -> None:
        published = self._published(name)
        if not published:
            raise ModelNotFound(f"{self._repository} holds no model {name!r}")
        for version in published:
            self._refused.pop(self._directory(name, version), None)
        if not self._converge(name):
            reasons = [s.reason for s in self._registry.index if s.name == name and s.reason]
            raise LoadFailed(f"model {name!r} could not be loaded: {'; '.join(reasons)}")

    def _converge(self, name: str) -> list[int]:
        """Serve of one model what the policy asks for and can be loaded; these versions.

        Where that is nothing at all though something is published, what is served stays.
        """
        published = self._published(name)
        wanted = self._loaded(name, published)
        if wanted or not published:
            for version in self._registry.versions(name):
                if version not in wanted:
                    self._unload(name, version, "is not wanted by the version policy any more")
        self._forget(name, published)
        return wanted

    def _loaded(self, name: str, published: list[int]) -> list[int]:
        """Versions that the policy chooses among those that can be served, loaded where needed.

        The latest are the latest that can be loaded: a broken one is passed over.
        """
        if self._policy.latest is None:
            return [v for v in self._policy.select(published) if self._is_served(name, v)]
        latest: list[int] = []
        for version in reversed(published):
            if len(latest) < self._policy.latest and self._is_served(name, version):
                latest.append(version)
        return latest

    def _is_served(self, name: str, version: int) -> bool:
        """Whether the version is served, after it was loaded if need be."""
        directory = self._directory(name, version)
        if version in self._registry.versions(name):
            return True
        fingerprint = _fingerprint(directory)
        if self._refused.get(directory) == fingerprint:
            return False
        self._registry.note(name, version, State.LOADING, "")
        try:
            served = self._load(directory)
        except Exception as error:  # one broken version, however broken, must not stop the rest
            self._refuse(name, version, error)
            self._refused[directory] = fingerprint
            return False
        self._registry.add(served)
        served.metrics.loaded(served.model.load_seconds)
        log.info("model %s version %d is served", name, version)
        return True

    def _refuse(self, name: str, version: int, error: Exception) -> None:
        expected = isinstance(error, RepositoryError | ModelLoadError)
        reason = str(error) if expected else f"{type(error).__name__}; the server's log says more"
        log.error("model %s version %d is not served: %s", name, version, reason)
        if not expected:
            log.error("unexpected error", exc_info=error)
        self._metrics.load_failed(name, version, _kind(error))
        self._registry.note(name, version, State.UNAVAILABLE, reason)

    def _unload(self, name: str, version: int, why: str) -> None:
        """Route no more requests to a version, let it finish, and free it."""
        served = self._registry.remove(name, version)
        if served is None:
            return
        self._registry.note(name, version, State.UNLOADING, "")
        if not served.batcher.close(self._drain_timeout):
            log.warning("model %s version %d did not finish in time", name, version)
        served.metrics.unloaded()
        self._registry.note(name, version, State.UNAVAILABLE, why)
        log.info("model %s version %d %s", name, version, why)

    def _forget(self, name: str, published: Iterable[int]) -> None:
        """Drop from the index what is neither served nor in the repository."""
        here = {*published, *self._registry.versions(name)}
        for state in self._registry.index:
            if state.name == name and state.version not in here:
                self._registry.forget(name, state.version)
                self._refused.pop(self._directory(name, state.version), None)

    def _published(self, name: str) -> list[int]:
        return model_repository.versions(self._repository / name)

    def _directory(self, name: str, version: int) -> Path:
        return self._repository / name / str(version)

    def _report_outage(self, reason: str) -> None:
        """Say once that the repository cannot be read, and once that it can again."""
        if reason and reason != self._outage:
            log.error("what is served stays as it is: %s", reason)
        elif self._outage and not reason:
            log.info("the model repository can be read again")
        self._outage = reason


def _kind(error: Exception) -> LoadFailure:
    if isinstance(error, ModelLoadError):
        return error.reason
    return LoadFailure.MANIFEST if isinstance(error, RepositoryError) else LoadFailure.OTHER


def _fingerprint(directory: Path) -> Fingerprint:
    """Empty for a directory that cannot be read."""
    try:
        stats = [(entry.name, entry.stat()) for entry in directory.iterdir()]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))
