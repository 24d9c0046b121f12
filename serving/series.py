"""SeriesWriter: writes metrics, by their declarations, into this process's counter file."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from serving.counters import CHUNK_BYTES, Counters
from serving.families import Family

Slots: TypeAlias = "memoryview[float]"


class SeriesWriter:
    """The series that one process writes in the directory; any number of threads may.

    Raises OSError where the directory is missing or full, here and when a series is new.
    """

    def __init__(self, directory: Path, worker: int = 0, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.counters = Counters(directory, worker, chunk_bytes=chunk_bytes)
        self._shown: dict[tuple[str, ...], Slots] = {}

    def add(self, family: Family, amount: float, *labels: str) -> None:
        """Add to a counter."""
        slots = self.slots(family, *labels)
        with self.counters.lock:
            slots[0] += amount

    def set(self, family: Family, value: float, *labels: str) -> None:
        """Set a gauge."""
        record = self.counters.record(family.series(*labels), family.slots, value)
        record.slots[0] = value  # nobody sees another value first

    def show(self, family: Family, labels: tuple[str, ...], facts: tuple[str, ...] = ()) -> None:
        """Set a gauge to 1 for these facts, its last labels, and to 0 for those before; or for
        those only, where there are none any more."""
        if before := self._shown.pop((family.name, *labels), None):
            before[0] = 0
        if facts:
            self._shown[family.name, *labels] = slots = self.slots(family, *labels, *facts)
            slots[0] = 1

    def observe(self, family: Family, value: float, *labels: str) -> None:
        """Add a value to a histogram."""
        slots = self.slots(family, *labels)
        with self.counters.lock:
            observe(slots, family.bounds, value)

    def slots(self, family: Family, *labels: str) -> Slots:
        """The slots of a series, for who looks its labels up once; adding takes the lock."""
        return self.counters.record(family.series(*labels), family.slots).slots


def observe(slots: Slots, bounds: tuple[float, ...], value: float) -> None:
    """Add a value to a histogram's slots; the lock is held."""
    slots[bisect_left(bounds, value)] += 1
    slots[-1] += value


def observe_all(slots: Slots, bounds: tuple[float, ...], values: Sequence[float]) -> None:
    """Add several values to a histogram's slots; the lock is held."""
    for value in values:
        slots[bisect_left(bounds, value)] += 1
    slots[-1] += sum(values)
