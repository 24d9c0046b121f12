"""History: how each version did over the last minutes, from the counters of all workers.

It looks every few seconds whether anybody asks or not: who opens the page wants to see what has
just happened. A look reads all counter files, a few milliseconds, on a thread that is not the event
loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from serving.counter_directory import Sums
from serving.families import SECONDS, Exported

# Seconds between two looks, and how far back they are remembered.
INTERVAL = 5
KEPT = 300
# When each remembered interval ended, in seconds before the latest.
AGES = tuple(range(-KEPT, 1, INTERVAL))

Version = tuple[str, str]  # model and version

_COUNTED = {
    family.name for family in (Exported.request_rows, Exported.batch_rows, Exported.request_seconds)
}

log = logging.getLogger("serving.http")


@dataclass(frozen=True, slots=True)
class Figures:
    """What one version did in one interval; None where nothing was answered."""

    rows_per_second: float = 0.0
    batch_size: float | None = None  # rows, the mean
    latency_p50: float | None = None  # seconds
    latency_p99: float | None = None


@dataclass(frozen=True, slots=True)
class _Look:
    """Those that did anything in the interval that ended at `time`, which is monotonic."""

    time: float
    figures: Mapping[Version, Figures]


class History:
    """Remembers what `sums` tells. One thread at a time looks; any may ask what was seen.

    `clock` gives seconds that never go back. Tests look more often than every `INTERVAL`.
    """

    def __init__(
        self,
        sums: Callable[[], Sums],
        clock: Callable[[], float] = time.monotonic,
        interval: float = INTERVAL,
    ) -> None:
        self._interval = interval
        self.sums = sums
        self._clock = clock
        self._time = 0.0
        self._counted: Sums | None = None
        self._looks: tuple[_Look, ...] = ()

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Looks while the block runs; for an application's lifespan."""
        keeping = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping

    def look(self) -> None:
        """See what was done since the last look; the first only tells where it began.

        Raises OSError or ValueError where the counters cannot be read.
        """
        now = self._clock()
        counted = {series: slots for series, slots in self.sums().items() if _tells(series.name)}
        if self._counted is not None and now > self._time:
            more = _grown(self._counted, counted)
            self._looks = (*self._looks, _Look(now, _figures(more, now - self._time)))
            self._looks = self._looks[-len(AGES) :]
        self._time, self._counted = now, counted

    def seen(self, versions: Sequence[Version]) -> dict[Version, list[Figures | None]]:
        """Of these versions, and of all others that did something, by `AGES`; None for when nobody
        looked."""
        placed = self._placed()
        active = {version for look in placed if look for version in look.figures}
        return {
            version: [look.figures.get(version, Figures()) if look else None for look in placed]
            for version in sorted({*versions, *active})
        }

    def _placed(self) -> list[_Look | None]:
        """The looks by age; a look may have come late, or not at all."""
        looks = self._looks
        placed: list[_Look | None] = [None] * len(AGES)
        for look in looks:
            latest = looks[-1].time
            missed = int((self._clock() - latest) / self._interval)
            back = missed + round((latest - look.time) / self._interval)
            if back < len(AGES):
                placed[-1 - back] = look
        return placed

    async def _keep(self) -> None:
        due = self._clock()
        while True:
            try:
                await asyncio.to_thread(self.look)
            except (OSError, ValueError) as error:
                log.error("what the models did cannot be read: %s", error)
            now = self._clock()
            due += self._interval * max(1, math.ceil((now - due) / self._interval))
            await asyncio.sleep(due - now)


def quantile(share: float, bounds: Sequence[float], counts: Sequence[float]) -> float | None:
    """That share of the values is not above it, taking those of a bucket as evenly spread; None of
    no values. What lies beyond the last bound is told as that bound, as Prometheus has it."""
    rank = share * sum(counts)
    if not rank:
        return None
    below, low = 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and below + count >= rank:
            return low + (bound - low) * (rank - below) / count
        below, low = below + count, bound
    return low


def _tells(name: str) -> bool:
    return name in _COUNTED


def _grown(before: Sums, after: Sums) -> Sums:
    """Never below 0: sums of seconds may differ in their last bit when dead workers' were folded,
    and counters that begin again begin at 0."""
    return {
        series: [
            max(0.0, b - a)
            for a, b in zip(before.get(series, [0.0] * len(slots)), slots, strict=True)
        ]
        for series, slots in after.items()
    }


def _figures(more: Sums, seconds: float) -> dict[Version, Figures]:
    """Of each version that answered something."""
    answered = {
        (series.labels[0], series.labels[1]): slots[-1]
        for series, slots in more.items()
        if series.name == Exported.request_rows.name and slots[-1]
    }
    return {key: _of(more, key, rows / seconds) for key, rows in answered.items()}


def _of(more: Sums, version: Version, rows_per_second: float) -> Figures:
    *batches, rows = more.get(Exported.batch_rows.series(*version), [0.0])
    *requests, _ = more.get(Exported.request_seconds.series(*version), [0.0])
    return Figures(
        rows_per_second,
        rows / sum(batches) if sum(batches) else None,
        quantile(0.5, SECONDS, requests),
        quantile(0.99, SECONDS, requests),
    )
