"""The thread that looks for drift, in the process that serves /metrics, and sets the gauges."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from serving import counter_directory
from serving.config import ServerConfig
from serving.counter_directory import Sums
from serving.counters import SUPERVISOR
from serving.drift import PARTS, DriftWindow, Judgement, judge, models, references, temperature
from serving.families import Exported, Kept
from serving.series import SeriesWriter

# Seconds between two looks, at least and at most: each costs about a millisecond per process.
SHORTEST, LONGEST = 0.25, 5.0
# For a few hundred versions; the file grows by another where that is too little.
CHUNK_BYTES = 64 * 1024

log = logging.getLogger("serving.drift")


class DriftWatch:
    """Judges every version with a reference over `config.drift_window`, until `stop`.

    The gauges lie in a file of this process's own in the directory, for whoever reads that.
    """

    def __init__(self, config: ServerConfig, directory: Path) -> None:
        self._directory = directory
        self._threshold = config.drift_threshold
        self._gauges = SeriesWriter(directory, SUPERVISOR, CHUNK_BYTES)
        self._window = DriftWindow(config.drift_window, time.monotonic())
        self._pause = min(max(config.drift_window / PARTS, SHORTEST), LONGEST)
        self._judged: dict[tuple[str, str], tuple[object, ...]] = {}  # by which references
        self._drifted: set[tuple[str, str, str]] = set()  # name, version, feature
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more; the gauges stay as they are."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._pause):
            try:
                self._look(counter_directory.read(self._directory).sums)
            except (OSError, ValueError) as error:
                log.error("drift cannot be looked for: %s", error)

    def _look(self, sums: Sums) -> None:
        judged = [m for m in models(sums) if temperature(sums, m) or m in self._judged]
        for model in judged:
            self._restart_if_replaced(model, sums)
        counted = self._window.add(time.monotonic(), sums)
        for model in judged:
            self._tell(model, judge(counted, sums, model, self._threshold))

    def _restart_if_replaced(self, model: tuple[str, str], sums: Sums) -> None:
        """Other content of the same number must not answer for the rows of what it replaced."""
        found = references(sums, model)
        if self._judged.get(model, found) != found:
            self._window.restart(model, sums)
        self._judged[model] = found

    def _tell(self, model: tuple[str, str], judgement: Judgement) -> None:
        for feature, index in judgement.psi.items():
            limit = judgement.limits[feature]
            self._gauges.set(Exported.drift, index, *model, feature)
            self._gauges.set(Exported.drift_limit, limit, *model, feature)
            self._note((*model, feature), index, limit)
        self._gauges.set(Kept.window_rows, judgement.rows, *model)
        self._gauges.set(Exported.estimated_accuracy, judgement.estimated_accuracy, *model)
        self._gauges.set(Exported.estimate_reliable, judgement.reliable, *model)

    def _note(self, key: tuple[str, str, str], index: float, limit: float) -> None:
        """Log when drift begins and when it ends; NaN, of too few rows, is neither."""
        if index >= limit and key not in self._drifted:
            self._drifted.add(key)
            text = "model %s version %s: %s has drifted, its estimated accuracy is unreliable"
            log.warning(f"{text} (index %.2f, limit %.2f)", *key, index, limit)
        elif index < limit and key in self._drifted:
            self._drifted.remove(key)
            log.warning("model %s version %s: %s has drifted back (index %.2f)", *key, index)
