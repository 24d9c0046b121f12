"""Counts what the server does, into this process's counter file. Knows no gRPC and no Prometheus.

`families` says which metrics there are, `model_metrics` has those of one version, and `exposition`
shows the sum over all processes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from serving import counter_directory
from serving.counter_directory import Sums
from serving.counters import SUPERVISOR, Counters
from serving.errors import LoadFailure, Rejection
from serving.families import Exported
from serving.model_metrics import ModelMetrics, Refusals
from serving.series import SeriesWriter
from serving.statistics import ModelTotals, model_totals

# What can happen to a request before it is known which loaded model it is for.
_BEFORE_LOOKUP = (
    ("RESOURCE_EXHAUSTED", Rejection.OVERLOADED),
    ("UNAVAILABLE", Rejection.DRAINING),
    ("INVALID_ARGUMENT", Rejection.INVALID_INPUT),
    ("NOT_FOUND", Rejection.MODEL_NOT_FOUND),
    ("UNAVAILABLE", Rejection.MODEL_NOT_READY),
)

log = logging.getLogger(__name__)


class Metrics(SeriesWriter):
    """The metrics that one process writes in the directory; any number of threads may.

    Raises OSError where the directory is missing or full, here and when a series is new.
    """

    def __init__(self, directory: Path, server_version: str, worker: int = 0) -> None:
        super().__init__(directory, worker)
        self._directory = directory
        self.set(Exported.server_info, 1, server_version)
        self._refusals = Refusals(self, ("", ""), _BEFORE_LOOKUP)

    def model(self, name: str, version: int) -> ModelMetrics:
        """The series of a version that is served, or about to be."""
        return ModelMetrics(self, name, str(version))

    def refused(self, code: str, reason: Rejection, message_bytes: int) -> None:
        """A request got that gRPC status, and it is not known for which loaded model it was.

        `message_bytes` is 0 for one that was not read.
        """
        self._refusals.count(code, reason, message_bytes)

    def load_failed(self, name: str, version: int, reason: LoadFailure) -> None:
        """A version of the repository was refused, and is not served."""
        labels = (name, str(version))
        self.add(Exported.load_failures, 1, *labels, reason)
        self.set(Exported.model_ready, 0, *labels)

    def totals(self) -> Mapping[tuple[str, str], ModelTotals]:
        """What every version did in all processes of the directory, by name and version."""
        return model_totals(self.sums())

    def sums(self) -> Sums:
        """Every series, over all processes of the directory.

        It reads and adds up all the files: about a millisecond for each.
        """
        return counter_directory.read(self._directory).sums


class SupervisorMetrics:
    """What a supervisor counts; it also folds what dead workers leave behind."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        counters = Counters(directory, SUPERVISOR)
        family = Exported.worker_restarts
        self._restarts = counters.record(family.series(), family.slots).slots

    def restarted(self) -> None:
        """A worker died, was waited for, and another took its place. Of one thread only."""
        self._restarts[0] += 1
        try:
            counter_directory.fold(self._directory)
        except OSError as error:  # nothing is lost: the files stay until the next time
            log.error("the counters of dead workers could not be folded: %s", error)
