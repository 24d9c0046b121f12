"""Shows Prometheus the sum of a directory's counter files, beside the use of their processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import registry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.utils import INF, floatToGoString

from serving import gpu_metrics, triton_metrics
from serving.counter_directory import Snapshot, Sums, read
from serving.counters import Merge
from serving.families import FAMILIES, Exported, Family
from serving.gpu_usage import Gpus
from serving.processes import usage


class Collector(registry.Collector):
    """Collects all metrics of a directory: `registry.register(Collector(directory))`.

    What it has shown of a counter it never takes back. Sums of seconds may differ in their last
    bit when dead files were folded, and a worker's CPU seconds pass to the supervisor only when
    that has waited for it; Prometheus would take the smallest step back for a restart from 0.
    """

    def __init__(self, directory: Path, triton: bool = False) -> None:
        self._directory = directory
        self._triton = triton  # show Triton's names, too
        self._gpus = Gpus()
        self._platform = PlatformCollector(registry=None)
        self._shown: Sums = {}
        self._cpu_seconds = 0.0

    def collect(self) -> Iterator[Metric]:
        """Every family, whether it has series yet or not."""
        snapshot = read(self._directory)
        self._never_back(snapshot.sums)
        for family in FAMILIES:
            yield _metric(family, snapshot.sums)
        workers = len(snapshot.workers)
        yield GaugeMetricFamily("inference_workers", "Processes that serve now.", workers)
        gpus = self._gpus.usages() if _on_gpu(snapshot.sums) else []
        yield from gpu_metrics.metrics(gpus)
        if self._triton:
            yield from triton_metrics.metrics(snapshot.sums)
            yield from gpu_metrics.metrics(gpus, gpu_metrics.TRITON)
        yield from self._processes(snapshot)
        yield from self._platform.collect()

    describe = collect

    def _never_back(self, sums: Sums) -> None:
        for series, slots in sums.items():
            if series.merge is Merge.SUM:
                shown = self._shown.get(series, slots)
                slots[:] = map(max, shown, slots)
                self._shown[series] = list(slots)

    def _processes(self, snapshot: Snapshot) -> Iterator[Metric]:
        """Sums under the standard names. The supervisor's usage, which includes that of the dead
        workers that it waited for, is read first: none is then counted twice."""
        used = [use for use in map(usage, snapshot.processes) if use]
        self._cpu_seconds = max(self._cpu_seconds, sum(use.cpu_seconds for use in used))
        yield CounterMetricFamily(
            "process_cpu_seconds_total",
            "User and system CPU seconds of all processes, and of those that ended.",
            self._cpu_seconds,
        )
        if not used:
            return
        for name, text, value in (
            ("virtual_memory_bytes", "Virtual memory in bytes", sum(u.virtual_bytes for u in used)),
            (
                "resident_memory_bytes",
                "Resident memory in bytes (a page that is shared counts in each)",
                sum(u.resident_bytes for u in used),
            ),
            ("open_fds", "Open file descriptors", sum(u.open_fds for u in used)),
            ("max_fds", "Allowed file descriptors", sum(u.max_fds for u in used)),
        ):
            yield GaugeMetricFamily(f"process_{name}", f"{text}, of all processes.", value)
        yield GaugeMetricFamily(
            "process_start_time_seconds",
            "When the oldest process started, in seconds since 1970.",
            min(u.start_time for u in used),
        )


def _on_gpu(sums: Sums) -> bool:
    """Some version runs on a GPU."""
    device = Exported.model_info.labels.index("device")
    infos = [series for series in sums if series.name == Exported.model_info.name]
    return any(sums[each][0] and each.labels[device] == "gpu" for each in infos)


def _metric(family: Family, sums: Sums) -> Metric:
    own = {s.labels: slots for s, slots in sums.items() if s.name == family.name}
    if not family.labels:
        own.setdefault((), [0.0] * family.slots)
    if family.kind == "histogram":
        metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, (*counts, total) in own.items():
            metric.add_metric(labels, _buckets(family.bounds, counts), total)
        return metric
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    single = kind(family.name, family.help, labels=family.labels)
    for labels, (value,) in own.items():
        single.add_metric(labels, value)
    return single


def _buckets(bounds: tuple[float, ...], counts: list[float]) -> list[tuple[str, float]]:
    """Upper bounds, with how many values lie at or below each."""
    names = map(floatToGoString, (*bounds, INF))
    return list(zip(names, itertools.accumulate(counts), strict=True))
