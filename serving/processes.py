"""Processes by pid and start time: whether one still runs, and what it uses, by /proc; and how this
one collects garbage."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
# Columns of /proc/PID/stat, counted from the state that follows the name; see proc_pid_stat(5).
_STATE, _USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM = 0, 11, 12, 13, 14
_THREADS, _START, _VIRTUAL, _RESIDENT = 17, 19, 20, 21


@dataclass(frozen=True, slots=True)
class Process:
    """A pid is given out again; together with its start, in clock ticks since boot, it is unique.

    Where there is no /proc the start is 0, and the pid alone must do.
    """

    pid: int
    start: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process uses now; `cpu_seconds` includes the children that it has waited for."""

    cpu_seconds: float
    virtual_bytes: float
    resident_bytes: float
    start_time: float  # seconds since the epoch
    open_fds: float
    max_fds: float


def current_process() -> Process:
    """The process that asks."""
    stat = _stat(os.getpid())
    return Process(os.getpid(), int(stat[_START]) if stat else 0)


def alive(process: Process, proc: Path = PROC) -> bool:
    """Whether it can still write: a zombie cannot, once the last of its threads has ended."""
    if not proc.exists():
        return _answers(process.pid)
    stat = _stat(process.pid, proc)
    if stat is None or int(stat[_START]) != process.start:
        return False
    return stat[_STATE] not in ("Z", "X") or int(stat[_THREADS]) > 1


def usage(process: Process) -> Usage | None:
    """None where the process is gone, or not ours to look at."""
    stat = _stat(process.pid)
    if stat is None or int(stat[_START]) != process.start:
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    columns = (_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM)
    open_fds, max_fds = _fds(process.pid)
    return Usage(
        cpu_seconds=sum(int(stat[column]) for column in columns) / ticks,
        virtual_bytes=float(stat[_VIRTUAL]),
        resident_bytes=float(stat[_RESIDENT]) * os.sysconf("SC_PAGE_SIZE"),
        start_time=_boot_time() + process.start / ticks,
        open_fds=open_fds,
        max_fds=max_fds,
    )


def _stat(pid: int, proc: Path = PROC) -> list[str] | None:
    try:
        text = (proc / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()  # the name before it may hold anything


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _boot_time() -> float:
    for line in (PROC / "stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    raise ValueError("/proc/stat has no btime")


def _fds(pid: int) -> tuple[float, float]:
    """Open now and allowed; 0 and 0 for a process that has just ended, or is another user's."""
    try:
        limits = (PROC / str(pid) / "limits").read_text()
        allowed = next(line for line in limits.splitlines() if line.startswith("Max open files"))
        limit = allowed.split()[3]
        number = float("inf") if limit == "unlimited" else float(limit)
        return len(os.listdir(PROC / str(pid) / "fd")), number
    except (OSError, StopIteration):
        return 0.0, 0.0


def collect_less_often() -> None:
    """Set Python's garbage collector for a server: once all is imported, and before it serves.

    What is there now stays, and is looked at no more; what requests leave behind is freed by its
    reference counts, and cycles are rare. It is a tenth of what a request costs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 50, 100)
