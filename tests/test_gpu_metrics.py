"""What a GPU's usage is exported as, and that nothing is where there is none to ask."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from conftest import Running
from prometheus_client.core import Metric
from test_load_metrics import scraped
from test_metrics import registry_of, samples

from serving.gpu_metrics import TRITON, metrics
from serving.gpu_usage import Gpus, GpuUsage
from serving.metrics import Metrics

TELLS_ALL = GpuUsage("GPU-1", 0.37, 400.0, 1000.0, 71.5, 300.0, 1234.5, 41.0)
TELLS_MEMORY = GpuUsage("MIG-2", None, 4.0, 10.0, None, None, None, None)


def shown(family: Metric) -> dict[str, float]:
    """By GPU; the name of the samples is that of the family."""
    assert {sample.name.removesuffix("_total") for sample in family.samples} == {family.name}
    return {sample.labels["gpu_uuid"]: sample.value for sample in family.samples}


def test_what_a_gpu_tells_is_shown_in_base_units_and_the_rest_is_not() -> None:
    found = {family.name: shown(family) for family in metrics([TELLS_ALL, TELLS_MEMORY])}
    assert found == {
        "inference_gpu_utilization_ratio": {"GPU-1": 0.37},
        "inference_gpu_memory_used_bytes": {"GPU-1": 400, "MIG-2": 4},
        "inference_gpu_memory_total_bytes": {"GPU-1": 1000, "MIG-2": 10},
        "inference_gpu_power_watts": {"GPU-1": 71.5},
        "inference_gpu_power_limit_watts": {"GPU-1": 300},
        "inference_gpu_temperature_celsius": {"GPU-1": 41},
        "inference_gpu_energy_joules": {"GPU-1": 1234.5},
    }
    assert {family.name for family in metrics([TELLS_MEMORY], TRITON)} == {
        "nv_gpu_memory_total_bytes",
        "nv_gpu_memory_used_bytes",
    }
    assert [*metrics([])] == []


def test_nvml_is_asked_where_a_model_runs_on_a_gpu_and_its_absence_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serving.gpu_usage")
    here = {gpu.uuid for gpu in Gpus().usages()}
    caplog.clear()
    registry = registry_of(tmp_path)
    model = Metrics(tmp_path, "test").model("digits", 1)

    def uuids() -> set[str]:
        found = [dict(labels) for name, labels in samples(registry) if "_gpu_" in name]
        return {labels["gpu_uuid"] for labels in found}

    model.runs_on("fp32", "cpu", "CPUExecutionProvider")
    assert (uuids(), caplog.messages) == (set(), [])
    model.runs_on("fp32", "gpu", "CUDAExecutionProvider")
    for _ in range(2):
        assert uuids() == here
    said = [each for each in caplog.messages if each.startswith("no metrics of the GPU: ")]
    assert len(said) == (0 if here else 1)


def test_a_server_on_a_cpu_shows_no_gpu(running: Running) -> None:
    assert "_gpu_" not in scraped(running)[1]
