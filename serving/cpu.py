"""What of this machine's processor the server may use: CPUs by affinity and cgroup, instructions.

Reads Linux's /proc and /sys; sets nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
CPUINFO = Path("/proc/cpuinfo")

# Instructions that multiply int8 faster than float32; the names are Linux's.
INT8_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")


def available_cpus(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> int:
    """CPUs this process may use: its affinity, and the tightest quota over it, rounded up."""
    cpus = len(os.sched_getaffinity(0))
    quota = cpu_quota(cgroup, membership)
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def cpu_quota(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> float | None:
    """The smallest quota, in CPUs, of this process's cgroup and those above it; None without one.

    The mount's root is looked at too: in a container it is often the process's own cgroup, while
    the path in `membership` is the host's.
    """
    found = [_quota(directory) for directory in _directories(cgroup, membership)]
    return min((quota for quota in found if quota is not None), default=None)


def threads_for(workers: int, cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> int:
    """Threads within one batch, so that all workers together use every CPU once; at least 1."""
    return max(1, available_cpus(cgroup, membership) // workers)


def int8_instructions(cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """Those of INT8_INSTRUCTIONS that this CPU has."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    return tuple(name for name in INT8_INSTRUCTIONS if name in flags)


def _directories(cgroup: Path, membership: Path) -> Iterator[Path]:
    """Directories of v2's one hierarchy and of v1's for the CPU, from the mounts' roots down."""
    roots = (cgroup, cgroup / "cpu", cgroup / "cpu,cpuacct")
    for root in roots:
        yield root
        for path in _paths(membership):
            for above in (path, *path.parents):
                yield root / above


def _paths(membership: Path) -> list[Path]:
    """Where this process is: `0::/a/b` in v2, `4:cpu,cpuacct:/a/b` in v1; relative to the root."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    parts = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    mine = [path for _, names, path in parts if not names or "cpu" in names.split(",")]
    return [Path(path.lstrip("/")) for path in mine if ".." not in Path(path).parts]


def _quota(directory: Path) -> float | None:
    """cpu.max in v2, cfs_quota_us over cfs_period_us in v1; "max" and -1 mean no quota."""
    try:
        quota, period = (directory / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (directory / "cpu.cfs_quota_us").read_text().strip()
            period = (directory / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return int(quota) / int(period) if quota.isdigit() else None
