"""What a GPU's usage is exported as: under our names, and under Triton's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from serving.gpu_usage import GpuUsage

Families = tuple[tuple[str, str, Callable[[GpuUsage], float | None]], ...]

OURS: Families = (
    (
        "inference_gpu_utilization_ratio",
        "Share of the last moments in which the GPU ran something, whoever's.",
        lambda gpu: gpu.utilization,
    ),
    (
        "inference_gpu_memory_used_bytes",
        "Memory of the GPU that is taken, by whomever.",
        lambda gpu: gpu.memory_used_bytes,
    ),
    (
        "inference_gpu_memory_total_bytes",
        "Memory of the GPU.",
        lambda gpu: gpu.memory_total_bytes,
    ),
    ("inference_gpu_power_watts", "Power that the GPU draws.", lambda gpu: gpu.power_watts),
    (
        "inference_gpu_power_limit_watts",
        "Power that the GPU may draw.",
        lambda gpu: gpu.power_limit_watts,
    ),
    (
        "inference_gpu_temperature_celsius",
        "Temperature of the GPU.",
        lambda gpu: gpu.temperature_celsius,
    ),
    (
        "inference_gpu_energy_joules_total",
        "Energy that the GPU took since its driver was loaded.",
        lambda gpu: gpu.energy_joules,
    ),
)
# Without nv_energy_consumption, which counts from when Triton started.
TRITON: Families = (
    ("nv_gpu_utilization", "Share of time in use.", lambda gpu: gpu.utilization),
    (
        "nv_gpu_memory_total_bytes",
        "Memory.",
        lambda gpu: gpu.memory_total_bytes,
    ),
    ("nv_gpu_memory_used_bytes", "Memory taken.", lambda gpu: gpu.memory_used_bytes),
    ("nv_gpu_power_usage", "Watts drawn.", lambda gpu: gpu.power_watts),
    (
        "nv_gpu_power_limit",
        "Watts that may be drawn.",
        lambda gpu: gpu.power_limit_watts,
    ),
)


def metrics(gpus: Iterable[GpuUsage], families: Families = OURS) -> Iterator[Metric]:
    """The families that some GPU has a value for, by its `gpu_uuid`."""
    for name, text, value_of in families:
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        metric = kind(name, text, labels=("gpu_uuid",))
        for gpu in gpus:
            if (value := value_of(gpu)) is not None:
                metric.add_metric((gpu.uuid,), value)
        if metric.samples:
            yield metric
