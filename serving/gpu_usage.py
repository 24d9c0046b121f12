"""What NVIDIA's driver says of the GPUs that this process sees; nothing where it cannot be asked.

The only module that knows NVML, by way of nvidia-ml-py, which is optional and loaded when the first
model is seen to run on a GPU. https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GpuUsage:
    """One GPU, whoever uses it; None is what its kind, or a part of it (MIG), does not tell."""

    uuid: str
    utilization: float | None  # share of the last moments in which a kernel ran
    memory_used_bytes: float | None
    memory_total_bytes: float | None
    power_watts: float | None
    power_limit_watts: float | None
    energy_joules: float | None  # since the driver was loaded
    temperature_celsius: float | None


class Gpus:
    """The GPUs of this machine, as NVML has them."""

    def __init__(self) -> None:
        self._nvml: ModuleType | None = None
        self._missing = False

    def usages(self) -> list[GpuUsage]:
        """All of them; none without the library or the driver, which is logged once."""
        if self._missing:
            return []
        try:
            nvml = self._nvml = self._nvml or _load()
        except ImportError:
            return self._none("nvidia-ml-py is not installed")
        except Exception as error:  # NVMLError, whose class came with the library
            return self._none(f"NVML does not start: {error}")
        try:
            return [_usage(nvml, number) for number in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:  # such as one that fell off the bus; others may tell later
            log.warning("the GPUs could not be asked: %s", error)
            return []

    def _none(self, why: str) -> list[GpuUsage]:
        self._missing = True
        log.info("no metrics of the GPU: %s", why)
        return []


def _load() -> ModuleType:
    """NVML, ready to be asked."""
    import pynvml

    pynvml.nvmlInit()
    module: ModuleType = pynvml
    return module


def _usage(nvml: ModuleType, number: int) -> GpuUsage:
    gpu = nvml.nvmlDeviceGetHandleByIndex(number)

    def told(ask: Callable[[], float]) -> float | None:
        try:
            return ask()
        except nvml.NVMLError:  # not supported here
            return None

    return GpuUsage(
        uuid=nvml.nvmlDeviceGetUUID(gpu),
        utilization=told(lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100),
        memory_used_bytes=told(lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
        memory_total_bytes=told(lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
        power_watts=told(lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3),
        power_limit_watts=told(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3),
        energy_joules=told(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3),
        temperature_celsius=told(
            lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
        ),
    )
