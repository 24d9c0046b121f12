"""Server processes, pinned to a core: start, stop, and what they used, from /proc.

A server is its whole tree of processes: MLServer, Triton and TorchServe start further ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.ports import reserved_port

_TICKS = os.sysconf("SC_CLK_TCK")  # per second, of utime and stime
_STOP_TIMEOUT = 15.0  # seconds after SIGTERM; then SIGKILL


class DidNotStart(Exception):
    """A server ended, or was silent for too long; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core is whose; the same twice on a machine that has only one."""

    server: int
    load: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a tree of processes, summed; pages that they share count once in each of them."""

    cpu_seconds: float
    rss_bytes: int
    peak_bytes: int


def cores() -> Cores:
    """The first two cores that this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[0], allowed[min(1, len(allowed) - 1)])


def pinned(core: int, command: list[str]) -> list[str]:
    """The command, on one core, and all that it starts."""
    return ["taskset", "--cpu-list", str(core), *command]


def free_ports(count: int) -> list[int]:
    """Ports for servers that are started next."""
    return [reserved_port() for _ in range(count)]


@contextmanager
def running(
    command: list[str], environment: Mapping[str, str], directory: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in the directory, its output in the file `log` there; all of it ends after."""
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _stop(process)


def log_tail(directory: Path, lines: int = 15) -> str:
    """The end of a server's log."""
    text = (directory / "log").read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def usage(pid: int) -> Usage:
    """What the process and its descendants used so far."""
    cpu = rss = peak = 0
    for each in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # it just ended
            stat = _stat(each)
            status = _status(each)
            cpu += int(stat[11]) + int(stat[12])  # utime, stime
            rss += status.get("VmRSS", 0)
            peak += status.get("VmHWM", 0)
    return Usage(cpu / _TICKS, rss, peak)


def busy_seconds(cores: Cores) -> float:
    """What the two cores have been busy for since the machine started, whoever it was with."""
    wanted = {f"cpu{core}" for core in (cores.server, cores.load)}
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    # user, nice, system, then idle and iowait, then irq, softirq, steal; guests are in user.
    ticks = [[*words[1:4], *words[6:9]] for words in lines if words[0] in wanted]
    return sum(int(each) for core in ticks for each in core) / _TICKS


def own_seconds() -> float:
    """What this process, and those of its children that ended, used so far."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                parent = int(_stat(int(entry.name))[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third, the state, on: the second may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _status(pid: int) -> dict[str, int]:
    """The values of /proc/PID/status that are in kB, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = (line.split() for line in lines if line.endswith(" kB"))
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in values}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM for the server; whatever of its tree is there after that is killed."""
    members = tree(process.pid)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT)
    end = time.monotonic() + 2
    while time.monotonic() < end and any(map(_alive, members)):
        time.sleep(0.05)
    for pid in filter(_alive, members):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _alive(pid: int) -> bool:
    try:
        return _stat(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
