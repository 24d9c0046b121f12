"""What a process holds at rest, after each slice of a soak, and whether that grows."""

from __future__ import annotations

import math
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LOOK_EVERY = 0.1  # seconds
# Looks that must agree, that the server counts as at rest; and seconds until it is taken as it is.
STEADY_LOOKS, PATIENCE = 5, 30.0
# A later part of the slices may have so much more than an earlier one: the larger of the two.
GROWTH_SHARE, GROWTH_MB = 0.02, 5.0
# And where each reload serves a version with a number that is new to the process, so much for each:
# what is counted of a version is kept, so that no counter goes back (serving/counters.py), and read
# anew every few seconds. Those are MB, and descriptors of the mapped files.
VERSION_MB, VERSION_DESCRIPTORS = 0.3, 0.1
# Pools start theirs one by one, as they are needed, up to a bound each.
POOLED_THREADS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one process at rest; requests and reloads are those until then."""

    requests: int
    reloads: int
    rss_mb: float
    pss_mb: float  # pages that it shares counted in part
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """How much the last quarter has more than the second, in MB; and what may not be so."""

    slope_mb: float  # of RSS, per slice, fitted to all after the first quarter
    growth_mb: float  # of RSS, from median to median
    allowed_mb: float
    faults: tuple[str, ...]


def sample(pid: int, requests: int, reloads: int) -> Sample:
    """Once descriptors and threads have stopped to change."""
    looks: list[tuple[int, int]] = []
    end = time.monotonic() + PATIENCE
    while len(looks) < STEADY_LOOKS or len(set(looks[-STEADY_LOOKS:])) > 1:
        if time.monotonic() > end:
            break
        time.sleep(LOOK_EVERY)
        looks.append((_entries(pid, "fd"), _entries(pid, "task")))
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return Sample(requests, reloads, _mb(rollup, "Rss"), _mb(rollup, "Pss"), *looks[-1])


def judge(samples: Sequence[Sample], *, published: bool = False) -> Verdict:
    """Compare the second quarter of the slices with the last; the first is warm-up. `published`
    says that each reload served a new version."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    rss = [each.rss_mb for each in samples[quarter:]]
    slope = float(np.polyfit(np.arange(len(rss)), rss, 1)[0])
    before, after = (_median(part, lambda each: each.rss_mb) for part in (early, late))
    new = _median(late, lambda each: each.reloads) - _median(early, lambda each: each.reloads)
    new *= published
    allowed = max(GROWTH_SHARE * before, GROWTH_MB) + VERSION_MB * new
    faults = []
    if after - before > allowed:
        faults.append(f"RSS grew by {after - before:.1f} MB, and may by {allowed:.1f}")
    kinds: dict[str, tuple[Callable[[Sample], int], float]] = {
        "descriptors": (lambda each: each.descriptors, math.ceil(VERSION_DESCRIPTORS * new)),
        "threads": (lambda each: each.threads, POOLED_THREADS),
    }
    for name, (value, more) in kinds.items():
        first, last = _median(early, value), _median(late, value)
        if last > first + more:
            faults.append(f"{name} grew from {first:g} to {last:g}")
    return Verdict(slope, after - before, allowed, tuple(faults))


def _median(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    return statistics.median(map(value, samples))


def _entries(pid: int, folder: str) -> int:
    return len(os.listdir(f"/proc/{pid}/{folder}"))


def _mb(rollup: str, name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB$", rollup, re.MULTILINE)
    assert found
    return int(found[1]) * 1024 / 1e6
