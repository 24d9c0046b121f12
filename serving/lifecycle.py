"""Lifecycle: takes one version at a time into service and out of it, and says why it could not.

Decides nothing: `control` says which versions are wanted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from model_repository import RepositoryError, read_manifest
from serving.errors import LoadFailure, ModelLoadError
from serving.metrics import Metrics
from serving.registry import ModelRegistry, ServedModel, State
from serving.session import printable

Load = Callable[[Path], ServedModel]
# Of a version's files: name, size, and the times of the last change of content and of attributes.
Fingerprint = tuple[tuple[str, int, int, int], ...]

log = logging.getLogger(__name__)


class Lifecycle:
    """`load` makes a version directory a served model, or raises RepositoryError or ModelLoadError.

    A version that failed is tried again when its files differ. Callers take turns; only what a
    version's last requests take is waited for elsewhere.
    """

    def __init__(
        self,
        repository: Path,
        registry: ModelRegistry,
        load: Load,
        metrics: Metrics,
        drain_timeout: float,
    ) -> None:
        self._repository = repository
        self._registry = registry
        self._load = load
        self._metrics = metrics
        self._drain_timeout = drain_timeout
        self._tried: dict[Path, Fingerprint] = {}  # the files as they were at the last attempt

    def serve(self, name: str, version: int) -> bool:
        """Whether the version is served, after it was loaded if need be.

        One whose number was given again to other content is loaded anew, as is one that is
        suspended; if that fails, what was loaded before goes on.
        """
        directory = self._directory(name, version)
        served = self._registry.find(name, version)
        fingerprint = _fingerprint(directory)
        if self._tried.get(directory) == fingerprint:
            return served is not None
        self._tried[directory] = fingerprint
        suspended = self._registry.is_suspended(name, version)
        if served and not suspended and not _differs(directory, served):
            return True
        return self._try(directory) or served is not None

    def withdraw(self, name: str, version: int, why: str) -> threading.Thread | None:
        """Send no more requests to a version; the thread ends when the last of them is answered."""
        self._tried.pop(self._directory(name, version), None)
        served = self._registry.remove(name, version)
        return self._retire(served, why) if served else None

    def try_again(self, name: str, version: int) -> None:
        """Forget that the version failed."""
        self._tried.pop(self._directory(name, version), None)

    def forget(self, name: str, version: int) -> None:
        """The version is neither served nor in the repository any more."""
        self.try_again(name, version)
        self._registry.forget(name, version)

    def _try(self, directory: Path) -> bool:
        name, version = directory.parent.name, int(directory.name)
        self._registry.note(name, version, State.LOADING)
        try:
            served = self._load(directory)
        except Exception as error:  # one broken version, however broken, must not stop the rest
            if directory.exists():
                self._refuse(name, version, error)
                if _kind(error) is LoadFailure.OTHER:  # such as no memory: it may pass
                    self.try_again(name, version)
            else:  # it was withdrawn or pruned meanwhile, and nothing is wrong with it
                self.forget(name, version)
            return False
        # Before the first probe can tell otherwise.
        served.metrics.promised(served.promised_accuracy)
        served.announce()
        replaced = self._registry.add(served)
        log.info("model %s version %d is served", name, version)
        if replaced:
            self._retire(replaced, "was replaced by another of its number")
        return True

    def _refuse(self, name: str, version: int, error: Exception) -> None:
        expected = isinstance(error, RepositoryError | ModelLoadError)
        reason = (
            printable(str(error))
            if expected
            else f"{type(error).__name__}; the server's log says more"
        )
        traceback = None if expected else error
        log.error(
            "model %s version %d is not served: %s", name, version, reason, exc_info=traceback
        )
        self._metrics.load_failed(name, version, _kind(error))
        self._registry.note(name, version, State.UNAVAILABLE, reason)
        served = self._registry.find(name, version)
        if served and not self._registry.is_suspended(name, version):  # it goes on
            served.announce()

    def _retire(self, served: ServedModel, why: str) -> threading.Thread:
        """On a thread of its own: one slow request must not keep other models waiting."""
        thread = threading.Thread(
            target=self._finish, args=(served, why), name=f"retire-{served.version}", daemon=True
        )
        thread.start()
        return thread

    def _finish(self, served: ServedModel, why: str) -> None:
        name, version = served.manifest.name, served.manifest.version
        if not served.batcher.close(self._drain_timeout):
            log.warning("model %s version %d did not finish in time", name, version)
        log.info("model %s version %d %s", name, version, why)
        if self._registry.retired(name, version, why):
            served.metrics.unloaded()

    def _directory(self, name: str, version: int) -> Path:
        return self._repository / name / str(version)


def _differs(directory: Path, served: ServedModel) -> bool:
    """Whether the directory's manifest is another than that of what is served from it."""
    try:
        return read_manifest(directory) != served.manifest
    except RepositoryError as error:
        log.error("%s is not what is served any more: %s", directory, error)
        return False


def _kind(error: Exception) -> LoadFailure:
    if isinstance(error, ModelLoadError):
        return error.reason
    return LoadFailure.MANIFEST if isinstance(error, RepositoryError) else LoadFailure.OTHER


def _fingerprint(directory: Path) -> Fingerprint:
    """Empty for a directory that cannot be read.

    With the time of the last change of attributes: permissions given later change nothing else, and
    `cp --preserve` brings the old time of the content.
    """
    try:
        stats = [(entry.name, entry.stat()) for entry in directory.iterdir()]
    except OSError:
        return ()
    return tuple(sorted((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats))
