"""ModelControl: decides which versions of the repository are served: Triton's control modes.

A version that cannot be loaded never takes down one that is served, nor does a repository that
cannot be read.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

import model_repository
from model_repository import RepositoryError
from serving.config import ServerConfig, VersionPolicy
from serving.errors import LoadFailed, ModelNotFound, NotAllowed, StartupError
from serving.lifecycle import Lifecycle, Load
from serving.metrics import Metrics
from serving.registry import ModelRegistry, State

log = logging.getLogger(__name__)


class ModelControl:
    """Brings the registry in line with the repository: at the start, then as the mode says.

    `load` is Lifecycle's. Changes are made one at a time. Raises StartupError where nothing can
    ever be served.
    """

    def __init__(
        self, config: ServerConfig, registry: ModelRegistry, load: Load, metrics: Metrics
    ) -> None:
        self._repository = config.model_repository
        self._mode = config.model_control_mode
        self._policy = VersionPolicy.parse(config.version_policy)
        self._poll_interval = config.poll_interval
        self._registry = registry
        self._lifecycle = Lifecycle(self._repository, registry, load, metrics, config.drain_timeout)
        self._outages: dict[str, str] = {}  # by model, "" for all: why it cannot be read
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        published = self._published_at_start()
        self._at_start = self._wanted_at_start(config.load_model, published)
        self._note(published)

    def start(self) -> None:
        """Load what is to be served from the start, which takes as long as that takes."""
        self._converge_each(self._at_start)

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
            names = model_repository.possible_names(self._repository)
            if self._registry.loaded and not any(map(self._may_hold_versions, names)):
                raise RepositoryError(f"{self._repository}: holds no published model any more")
        except (RepositoryError, OSError) as error:
            self._report("", str(error))
            return
        self._report("")
        self._converge_each(sorted({*names, *(state.name for state in self._registry.index)}))

    def load(self, name: str) -> None:
        """Load the versions of a model that the policy asks for, those that failed before as well.

        Raises LoadFailed where one of them could not be, though an older one may be served in its
        place; ModelNotFound; NotAllowed outside explicit mode.
        """
        self._require_explicit()
        with self._changing:
            published = self._require_published(name)
            for version in published:
                self._lifecycle.try_again(name, version)
            self._converge(name)
            self._require_served(name, self._policy.select(published))

    def unload(self, name: str) -> None:
        """Stop serving a model, and return when its requests in flight are answered.

        Raises ModelNotFound, and NotAllowed outside explicit mode.
        """
        self._require_explicit()
        with self._changing:
            versions = self._registry.loaded_versions(name)
            if not versions:
                self._require_published(name)
            retiring = [self._lifecycle.withdraw(name, v, "was unloaded") for v in versions]
        for thread in retiring:
            if thread:
                thread.join()

    def _published_at_start(self) -> list[str]:
        try:
            names = model_repository.possible_names(self._repository)
        except (RepositoryError, OSError) as error:
            raise StartupError(f"--model-repository: {_told(error)}") from None
        return [name for name in names if self._may_hold_versions(name)]

    def _wanted_at_start(self, asked: tuple[str, ...], published: list[str]) -> list[str]:
        if self._mode == "none" and not published:
            raise StartupError(f"--model-repository: {self._repository}: holds no published model")
        if self._mode != "explicit" or asked == ("*",):
            return published
        for name in asked:
            if name not in published:
                raise StartupError(f"--load-model: {self._repository} holds no model {name!r}")
        return list(asked)

    def _note(self, published: list[str]) -> None:
        """Make known what will be loaded, and what may be on request."""
        for name in published:
            loading = name in self._at_start
            state = State.LOADING if loading else State.UNAVAILABLE
            for version in self._policy.select(self._published(name)):
                self._registry.note(name, version, state, "" if loading else "was not loaded")

    def _require_explicit(self) -> None:
        if self._mode != "explicit":
            raise NotAllowed(
                "models are loaded and unloaded on request only with --model-control-mode explicit,"
                f" not {self._mode}"
            )

    def _require_published(self, name: str) -> list[int]:
        """Versions of a model; looked up, so that no name leads out of the repository."""
        try:
            known = name in model_repository.possible_names(self._repository)
            published = model_repository.versions(self._repository / name) if known else []
        except (RepositoryError, OSError) as error:
            raise LoadFailed(f"the model repository cannot be read: {_told(error)}") from None
        if not published:
            raise ModelNotFound(f"the model repository holds no model {name!r}")
        return published

    def _require_served(self, name: str, wanted: Iterable[int]) -> None:
        served = self._registry.versions(name)
        reasons = {state.version: state.reason for state in self._registry.index_of(name)}
        gone = "it left the repository meanwhile"
        failed = [
            f"version {version}: {reasons.get(version, gone)}"
            for version in wanted
            if version not in served or reasons.get(version)
        ]
        if failed or not served:
            listed = ", ".join(map(str, served)) or "none"
            why = "; ".join(failed) or "the version policy chooses none"
            raise LoadFailed(f"model {name!r} could not be loaded: {why} (served: {listed})")

    def _converge_each(self, names: Iterable[str]) -> None:
        for name in names:
            if self._stopping.is_set():
                return
            try:
                with self._changing:
                    self._converge(name)
            except OSError as error:
                self._report(name, str(error))
            except Exception:  # the others are to be served, and this one looked at again
                log.exception("model %s stays as it is", name)
            else:
                self._report(name)

    def _converge(self, name: str) -> None:
        """Serve of one model what the policy asks for and can be loaded.

        Where that is nothing at all though something is published, what is served stays. Raises
        OSError where the repository cannot tell.
        """
        published = model_repository.versions(self._repository / name)
        wanted = self._served_of(name, published)
        if wanted or not published:
            for version in self._registry.loaded_versions(name):
                if version not in wanted:
                    gone = version not in published
                    why = "left the repository" if gone else "is not wanted by the version policy"
                    self._lifecycle.withdraw(name, version, why)
        self._forget(name, published)

    def _served_of(self, name: str, published: list[int]) -> list[int]:
        """Versions that the policy chooses among those that can be served, loaded where needed.

        The latest are the latest that can be loaded: a broken one is passed over. So is one that is
        suspended, but it stays loaded, as it may recover.
        """
        serve = self._lifecycle.serve
        if self._policy.latest is None:
            return [v for v in self._policy.select(published) if serve(name, v)]
        latest: list[int] = []
        missing = self._policy.latest
        for version in reversed(published):
            if missing and serve(name, version):
                latest.append(version)
                missing -= not self._registry.is_suspended(name, version)
        return latest

    def _forget(self, name: str, published: Iterable[int]) -> None:
        """Drop from the index what is neither served nor in the repository."""
        here = {*published, *self._registry.loaded_versions(name)}
        for state in self._registry.index_of(name):
            if state.version not in here:
                self._lifecycle.forget(name, state.version)

    def _may_hold_versions(self, name: str) -> bool:
        """A directory that cannot be read is not an empty one."""
        try:
            return bool(model_repository.versions(self._repository / name))
        except OSError:
            return True

    def _published(self, name: str) -> list[int]:
        try:
            return model_repository.versions(self._repository / name)
        except OSError:
            return []

    def _report(self, name: str, reason: str = "") -> None:
        """Say once that a model, or with no name the repository, cannot be read, or can again."""
        before = self._outages.pop(name, "")
        if reason:
            self._outages[name] = reason
        if reason and reason != before:
            log.error("%s stays as it is: %s", name or "what is served", reason)
        elif before and not reason:
            log.info("%s can be read again", name or "the model repository")


def _told(error: RepositoryError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)
